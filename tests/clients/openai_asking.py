"""The client that all of openai_*.py ask with, and what they ask most."""

from __future__ import annotations

from typing import Any, Literal

from openai import OpenAI
from pydantic import BaseModel
from report import DESKS, TICKET

client = OpenAI(max_retries=0, timeout=120)
MESSAGES: list[Any] = [{"role": "user", "content": TICKET}]
GREEDY: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 8, "temperature": 0}
ROOMY = GREEDY | {"max_tokens": 96}
STORY: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}


class Routing(BaseModel):
    """Where a ticket goes."""

    desk: Literal["billing", "delivery", "returns", "account", "technical", "sales"]
    urgent: bool


DESK_PARAMETERS = {
    "type": "object",
    "properties": {"desk": {"type": "string", "enum": list(DESKS)}},
    "required": ["desk"],
    "additionalProperties": False,
}


def text_of(model: str) -> str:
    return client.chat.completions.create(model=model, **GREEDY).choices[0].message.content or ""

"""instructor: pydantic models out of answers, by tools, by a JSON schema and by JSON mode."""

from __future__ import annotations

from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel
from report import MODELS, TICKET, feature, finish, holds


class Routing(BaseModel):
    """Where a ticket goes."""

    desk: Literal["billing", "delivery", "returns", "account", "technical", "sales"]
    urgent: bool


MODES = {
    instructor.Mode.TOOLS: "tools",
    instructor.Mode.JSON_SCHEMA: "response_format",
}


def check(model: str) -> None:
    options = {"model": model, "messages": [{"role": "user", "content": TICKET}], "max_tokens": 64, "temperature": 0}
    for mode, needs in MODES.items():
        client = instructor.from_openai(OpenAI(max_retries=0, timeout=120), mode=mode)
        with feature(f"a model, mode {mode.value}", model, needs=needs):
            routing = client.create(response_model=Routing, max_retries=0, **options)
            holds(isinstance(routing, Routing), routing)
        with feature(f"a partial model, streamed, mode {mode.value}", model, needs=needs):
            parts = list(client.create_partial(response_model=Routing, max_retries=0, **options))
            holds(parts[-1].urgent in (True, False), parts)
    with feature("a plain answer, no model of its own", model):
        client = instructor.from_openai(OpenAI(max_retries=0, timeout=120))
        holds(client.create(response_model=None, **options).choices[0].message.content, "an answer")


for name in MODELS:
    check(name)
finish()

"""instructor: pydantic models out of answers, by tools, by a JSON schema and by JSON mode."""

from __future__ import annotations

from contextlib import suppress
from typing import Literal

import instructor
from instructor.core import IncompleteOutputException
from openai import OpenAI
from pydantic import BaseModel
from report import MODELS, TICKET, feature, finish, holds, same


class Routing(BaseModel):
    """Where a ticket goes."""

    desk: Literal["billing", "delivery", "returns", "account", "technical", "sales"]
    urgent: bool


class Anything(BaseModel):
    """Any object is one: JSON mode promises no more, and small models keep to no more."""

    desk: object = None


def check(model: str) -> None:
    options = {"model": model, "messages": [{"role": "user", "content": TICKET}], "max_tokens": 96, "temperature": 0}
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        client = instructor.from_openai(OpenAI(max_retries=0, timeout=120), mode=mode)
        with feature(f"a model, mode {mode.name}", model):
            routing = client.create(response_model=Routing, max_retries=0, **options)
            holds(isinstance(routing, Routing), routing)
        with feature(f"a partial model, streamed, mode {mode.name}", model):
            parts = list(client.create_partial(response_model=Routing, max_retries=0, **options))
            same(parts[-1].model_dump(), routing.model_dump())
            holds(len(parts) > 1, parts)
    with feature("a model, mode JSON", model):
        client = instructor.from_openai(OpenAI(max_retries=0, timeout=120), mode=instructor.Mode.JSON)
        seen = []
        client.on("completion:response", seen.append)
        with suppress(IncompleteOutputException):  # an object of a small model may have no end
            holds(isinstance(client.create(response_model=Anything, max_retries=0, **options), Anything), seen)
        holds(seen[-1].choices[0].message.content.startswith("{"), seen)
    with feature("a plain answer, no model of its own", model):
        client = instructor.from_openai(OpenAI(max_retries=0, timeout=120))
        holds(client.create(response_model=None, **options).choices[0].message.content, "an answer")


for name in MODELS:
    check(name)
finish()

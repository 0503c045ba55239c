"""Structured answers of a real server, asked for with the official client."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from e2e.server import BASE
from pydantic import BaseModel, Field

MESSAGES = [{"role": "user", "content": "Who?"}]


class Pet(BaseModel):
    kind: Literal["cat", "dog"]
    age: int = Field(ge=0, le=20)


class Person(BaseModel):
    name: str = Field(max_length=8)
    pets: list[Pet] = Field(min_length=1, max_length=2)


def test_pydantic_models_are_answered_with(site):
    """By the base and by adapters of two tenants at a time, whole and streamed."""
    acme, globex = site.server.openai(site.acme), site.server.openai(site.globex)
    options = {"messages": MESSAGES, "max_tokens": 400, "temperature": 1}

    def ask(client, model, seed):
        parsed = client.chat.completions.parse(model=model, response_format=Person, seed=seed, **options)
        return parsed.choices[0]

    with ThreadPoolExecutor(8) as threads:
        models = (acme, BASE), (acme, "tickets"), (acme, "short"), (globex, "tickets")
        answers = list(threads.map(lambda asked: ask(*asked), [(*model, seed) for model in models for seed in (1, 2)]))
    with acme.chat.completions.stream(model="tickets", response_format=Person, seed=3, **options) as stream:
        streamed = stream.get_final_completion().choices[0]

    for answer in [*answers, streamed]:
        assert answer.finish_reason == "stop"
        assert isinstance(answer.message.parsed, Person)


def test_vllms_fields_work_for_plain_completions(site):
    """A choice and a regular expression; a stop string still ends the text before it."""
    client = site.server.openai(site.acme)

    def text(asked, **options):
        body = {"structured_outputs": asked}
        created = client.completions.create(
            model="tickets", prompt="x", max_tokens=40, temperature=1, seed=5, extra_body=body, **options
        )
        return created.choices[0].text

    assert text({"choice": ["yes", "no", "maybe"]}) in ("yes", "no", "maybe")
    assert re.fullmatch("[a-c]{4}-[0-9]{2}", text({"regex": "[a-c]{4}-[0-9]{2}"}))
    assert re.fullmatch("[a-c]{4}", text({"regex": "[a-c]{4}-[0-9]{2}"}, stop="-"))
    assert json.loads(text({"json": {"enum": [{"a": [1, 2]}]}})) == {"a": [1, 2]}

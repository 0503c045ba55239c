"""A stream of the Messages API as Anthropic's own types know it."""

from __future__ import annotations

import json

from anthropic.types import Message, RawMessageStreamEvent
from pydantic import BaseModel, TypeAdapter

EVENT = TypeAdapter(RawMessageStreamEvent)


def events_of(text: str) -> list[dict]:
    """The payloads of all frames. Fails for one that is no event of Anthropic's to the letter, or has another's name.

    Comments, which keep silent streams alive, are no frames."""
    frames = [frame for frame in text.split("\n\n") if frame and not frame.startswith(":")]
    events = []
    for frame in frames:
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        if event["type"] != "error":
            exact(EVENT.validate_json(data.removeprefix("data: "), strict=True), event)
        events.append(event)
    return events


def message_of(text: str) -> dict:
    """The body of a whole answer, checked as events are."""
    exact(Message.model_validate_json(text, strict=True), json.loads(text))
    return json.loads(text)


def exact(model: BaseModel, payload: dict) -> None:
    """All of the payload is what the type declares."""
    assert model.model_dump(mode="json", exclude_unset=True) == payload
    check_declared(model)


def check_declared(value: object) -> None:
    """Anthropic's types take any field more."""
    if isinstance(value, BaseModel):
        assert not value.model_extra, value
        check_declared(list(value.__dict__.values()))
    elif isinstance(value, list):
        for item in value:
            check_declared(item)


def shape_of(events: list[dict]) -> list[str]:
    """The order of a stream: its events with the kinds of their blocks and deltas, repeated deltas once."""
    words = []
    for event in events:
        inner = event.get("content_block") or event.get("delta") or {}
        word = " ".join(filter(None, (event["type"], str(event.get("index", "")), inner.get("type", ""))))
        if not words or words[-1] != word:
            words.append(word)
    return words

"""An answer from its text to content blocks, whole and as the events that tell of them.

Knows the parts of an answer; knows no format that a model writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from loraplex.platform.anthropic.events import (
    Content,
    ContentBlockDelta,
    ContentBlockStart,
    ContentBlockStop,
    Event,
    InputJsonDelta,
    SignatureDelta,
    TextContent,
    TextDelta,
    ThinkingContent,
    ThinkingDelta,
    ToolUseContent,
)
from loraplex.platform.openai.answer_parts import ArgumentsGrown, CallBegun, Part, PartReader, Said, Thought, joined
from loraplex.platform.openai.chat_reading import new_call_id
from loraplex.platform.openai.structured_output import MAX_SCHEMA_DEPTH, is_deeper

SIGNATURE = "unsigned"
"""Of every thought. Clients send back only what has one; nothing here checks it."""

ID_PREFIX = "toolu_"
"""Before the id of a call as chat templates know it."""

INVALID_JSON = "INVALID_JSON"
"""The one field of an input that is no JSON object: Anthropic's own name, in what it tells clients to do with such."""


class ContentWriter:
    """One answer. Its text is pushed, piece by piece or at once; `content` is whole after `finish`.

    reader: finds thoughts and calls in it; None: it is all text. tells_thoughts: else their blocks are empty.
    """

    def __init__(self, reader: PartReader | None, *, tells_thoughts: bool = True) -> None:
        self.content: list[Content] = []
        self._reader = reader
        self._tells_thoughts = tells_thoughts
        self._open: Content | None = None
        self._pieces: list[str] = []

    @property
    def has_calls(self) -> bool:
        return any(isinstance(block, ToolUseContent) for block in self.content)

    def push(self, text: str) -> list[Event]:
        """What this text makes certain."""
        return self._written([Said(text)] if self._reader is None else self._reader.push(text))

    def finish(self) -> list[Event]:
        """What was held back, now that no more text comes."""
        return [*self._written([] if self._reader is None else self._reader.finish()), *self._close()]

    def _written(self, parts: list[Part]) -> list[Event]:
        return [event for part in joined(parts) for event in self._write(part)]

    def _write(self, part: Part) -> Iterator[Event]:
        match part:
            case CallBegun(name=name):
                yield from self._begin(ToolUseContent(ID_PREFIX + new_call_id(), name, {}))
            case ArgumentsGrown(text=text):  # told when the call is whole: only then it is known to be JSON
                self._pieces.append(text)
            case Thought(text=text):
                if not isinstance(self._open, ThinkingContent):
                    yield from self._begin(ThinkingContent("", ""))
                if text and self._tells_thoughts:
                    self._pieces.append(text)
                    yield ContentBlockDelta(len(self.content), ThinkingDelta(text))
            case Said(text=text) if text:
                if not isinstance(self._open, TextContent):
                    yield from self._begin(TextContent(""))
                self._pieces.append(text)
                yield ContentBlockDelta(len(self.content), TextDelta(text))

    def _begin(self, block: Content) -> Iterator[Event]:
        yield from self._close()
        self._open = block
        yield ContentBlockStart(len(self.content), block)

    def _close(self) -> Iterator[Event]:
        index, text = len(self.content), "".join(self._pieces)
        match self._open:
            case None:
                return
            case TextContent():
                self.content.append(TextContent(text))
            case ThinkingContent():
                yield ContentBlockDelta(index, SignatureDelta(SIGNATURE))
                self.content.append(ThinkingContent(text, SIGNATURE))
            case ToolUseContent(id=call_id, name=name):
                call = ToolUseContent(call_id, name, input_of(text))
                yield ContentBlockDelta(index, InputJsonDelta(msgspec.json.encode(call.input).decode()))
                self.content.append(call)
        yield ContentBlockStop(index)
        self._open, self._pieces = None, []


def input_of(arguments: str) -> dict[str, Any]:
    """Of a call, from what the model wrote. What is no object, since the model errs or was cut off, becomes one whose
    field INVALID_JSON holds it: no tool takes it for what was meant, and the model can be shown it."""
    try:
        value = msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        value = None
    if not isinstance(value, dict) or is_deeper(value, MAX_SCHEMA_DEPTH):
        return {INVALID_JSON: arguments}
    return value

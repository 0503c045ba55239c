"""An answer of chat from its text to OpenAI's words: the deltas of a stream, or one message.

Knows the wire of chat and the parts of an answer; knows no format that a model writes.
"""

from __future__ import annotations

import secrets
import string

from msgspec import UNSET

from loraplex.platform.openai.answer_parts import ArgumentsGrown, CallBegun, Part, PartReader, Said, Thought, joined
from loraplex.platform.openai.chat_types import AssistantMessage, ChatDelta
from loraplex.platform.openai.generation_types import FinishReason
from loraplex.platform.openai.tool_types import FunctionCall, FunctionCallDelta, ToolCall, ToolCallDelta

_ALPHABET = string.ascii_letters + string.digits


def new_call_id() -> str:
    """Nine letters and digits: templates of Mistral's models take no other."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(9))


class ChatReading:
    """One choice of an answer. Either deltas are taken, by `push` and `finish`, or the `message`."""

    def __init__(self, reader: PartReader) -> None:
        self._reader = reader
        self._has_calls = False

    def push(self, text: str) -> list[ChatDelta]:
        """What this text makes certain."""
        return self._deltas(self._reader.push(text))

    def finish(self) -> list[ChatDelta]:
        """What was held back, now that no more text comes."""
        return self._deltas(self._reader.finish())

    def finish_reason(self, reason: FinishReason) -> FinishReason:
        """After all text: an answer with calls has stopped for them."""
        return "tool_calls" if self._has_calls and reason == "stop" else reason

    def message(self, text: str) -> AssistantMessage:
        """The whole answer."""
        parts = joined(self._reader.push(text) + self._reader.finish())
        said = "".join(part.text for part in parts if isinstance(part, Said))
        thought = "".join(part.text for part in parts if isinstance(part, Thought))
        names = {part.index: part.name for part in parts if isinstance(part, CallBegun)}
        arguments = dict.fromkeys(names, "")
        for part in parts:
            if isinstance(part, ArgumentsGrown):
                arguments[part.index] += part.text
        calls = [ToolCall(new_call_id(), FunctionCall(name, arguments[index])) for index, name in names.items()]
        self._has_calls = bool(calls)
        return AssistantMessage(
            said if said or not (calls or thought) else None,
            tool_calls=calls or UNSET,
            reasoning_content=thought or UNSET,
        )

    def _deltas(self, parts: list[Part]) -> list[ChatDelta]:
        return [self._delta(part) for part in joined(parts)]

    def _delta(self, part: Part) -> ChatDelta:
        match part:
            case Said(text):
                return ChatDelta(content=text)
            case Thought(text):
                return ChatDelta(reasoning_content=text)
            case ArgumentsGrown(index, text):
                return ChatDelta(tool_calls=[ToolCallDelta(index, FunctionCallDelta(arguments=text))])
            case CallBegun(index, name):
                self._has_calls = True
                function = FunctionCallDelta(arguments="", name=name)
                return ChatDelta(tool_calls=[ToolCallDelta(index, function, new_call_id(), "function")])

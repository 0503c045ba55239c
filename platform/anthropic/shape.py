"""How the Messages API words and frames an answer. Its content is worded in `content`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loraplex.platform.anthropic.content import ContentWriter
from loraplex.platform.anthropic.errors import error_body
from loraplex.platform.anthropic.events import (
    Content,
    Event,
    Message,
    MessageDelta,
    MessageStart,
    MessageStop,
    StopDelta,
    TokenUsage,
    event_bytes,
)
from loraplex.platform.openai.answer import Answer
from loraplex.platform.openai.choices import Choices
from loraplex.platform.openai.generation_types import Heading, Usage
from loraplex.platform.openai.logprobs import ScoredToken
from loraplex.platform.openai.sse import event_frame, stream_error


@dataclass(frozen=True, slots=True)
class MessageShape:
    """The one choice as a message. choices: tell how much was read of the prompt before there is any text.

    stop_sequences, max_tokens: as asked for. request_id: of the HTTP request.
    """

    heading: Heading
    choices: Choices
    writer: ContentWriter
    stop_sequences: Sequence[str]
    max_tokens: int
    request_id: str

    def whole(self, choices: Sequence[tuple[Answer, str]], usage: Usage) -> Message:
        [(answer, text)] = choices
        self.writer.push(text)
        self.writer.finish()
        return self._message(self.writer.content, self._stop(answer), usage)

    def opening(self) -> bytes:
        return event_bytes(MessageStart(self._message([], None, self.choices.usage)))

    def frames(self, index: int) -> MessageShape:
        return self

    def of(self, text: str) -> bytes:
        """As `response.Frames`."""
        return _framed(self.writer.push(text))

    def scored(self, index: int, text: str, scores: Sequence[ScoredToken]) -> bytes:
        return self.of(text)  # no field asks for log-probabilities

    def finish(self, index: int, answer: Answer) -> bytes:
        held = _framed(self.writer.finish())
        return held + event_bytes(MessageDelta(self._stop(answer), TokenUsage.of(answer.usage)))

    def closing(self, usage: Usage) -> bytes:
        return event_bytes(MessageStop())

    def failure(self, error: Exception) -> bytes:
        return event_frame("error", error_body(stream_error(error), self.request_id))

    def _message(self, content: list[Content], stop: StopDelta | None, usage: Usage) -> Message:
        return Message(
            id=self.heading.id,
            model=self.heading.model,
            content=content,
            stop_reason=None if stop is None else stop.stop_reason,
            stop_sequence=None if stop is None else stop.stop_sequence,
            usage=TokenUsage.of(usage),
        )

    def _stop(self, answer: Answer) -> StopDelta:
        """After all text. A stop string of the version's profile ends a turn like any other end."""
        if answer.finish_reason == "length":
            is_full = answer.usage.completion_tokens < self.max_tokens
            return StopDelta("model_context_window_exceeded" if is_full else "max_tokens", None)
        if answer.stop_string in self.stop_sequences:
            return StopDelta("stop_sequence", answer.stop_string)
        return StopDelta("tool_use" if self.writer.has_calls else "end_turn", None)


def _framed(events: Iterable[Event]) -> bytes:
    return b"".join(map(event_bytes, events))

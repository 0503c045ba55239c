"""Answers as responses: one object, or OpenAI's events in their order. Knows no HTTP and no database."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from msgspec import structs

from loraplex.platform.openai.answer import Answer
from loraplex.platform.openai.answer_parts import Part, PartReader, Said
from loraplex.platform.openai.generation_types import Usage
from loraplex.platform.openai.logprobs import ChatTokenLogprob, ScoredToken, Wording, chat_logprobs
from loraplex.platform.openai.responses.open_items import Event
from loraplex.platform.openai.responses.output import Output
from loraplex.platform.openai.responses.response_types import (
    IncompleteDetails,
    ResponseError,
    ResponseObject,
    ResponseUsage,
)
from loraplex.platform.openai.sse import event_frame, stream_error


class ResponseShape:
    """One answer."""

    def __init__(
        self, response: ResponseObject, num_input_items: int, wording: Wording, reader: PartReader | None
    ) -> None:
        """response: as it has begun. reader: finds thoughts and tool calls in the text; None: it is all text."""
        self._response = response
        self._wording = wording
        self._reader = reader
        self._output = Output(response.id, num_input_items)
        self._sent = 0

    def whole(self, choices: Sequence[tuple[Answer, str]], usage: Usage) -> ResponseObject:
        ((answer, text),) = choices
        scores = answer.take_scores()
        for piece, told in self._pieces(text, scores) if self._wording.of_answer else [(text, [])]:
            self._output.push(self._read(piece), told)
        self._end(answer)
        return self.ended(usage)

    def ended(self, usage: Usage) -> ResponseObject:
        """The response once its answer has ended."""
        if self._response.usage is None:
            thoughts = self._output.thoughts
            reasoning_tokens = len(self._wording.text.encode_rendered(thoughts)) if thoughts else 0
            self._response = structs.replace(self._response, usage=ResponseUsage.of(usage, reasoning_tokens))
        return self._response

    def opening(self) -> bytes:
        fields = {"response": self._response}
        return self._frames([("response.created", fields), ("response.in_progress", fields)])

    def frames(self, index: int) -> ResponseShape:
        return self

    def of(self, text: str) -> bytes:
        """Text as it becomes certain."""
        return self._frames(self._output.push(self._read(text)))

    def scored(self, index: int, text: str, scores: Sequence[ScoredToken]) -> bytes:
        return self._frames(self._output.push(self._read(text), self._told(scores)))

    def finish(self, index: int, answer: Answer) -> bytes:
        return self._frames(self._end(answer))

    def closing(self, usage: Usage) -> bytes:
        return self._frames([(f"response.{self._response.status}", {"response": self.ended(usage)})])

    def failure(self, error: Exception) -> bytes:
        """What broke off, as an event of its own and as the response's end, which is all that some clients look at."""
        told = stream_error(error)
        failed = ResponseError(
            "rate_limit_exceeded" if told.status == 429 else "invalid_prompt" if told.status < 500 else "server_error",
            told.message,
        )
        response = structs.replace(
            self._response,
            status="failed",
            error=failed,
            output=self._output.items,
            completed_at=None,
            incomplete_details=None,
            usage=None,
        )
        fields = {"code": told.code, "message": told.message, "param": told.param}
        return self._frames([("error", fields), ("response.failed", {"response": response})])

    def _end(self, answer: Answer) -> list[Event]:
        is_cut = answer.finish_reason == "length"
        held = self._output.push(self._reader.finish() if self._reader else [])
        events = held + self._output.close("incomplete" if is_cut else "completed")
        self._response = structs.replace(
            self._response,
            status="incomplete" if is_cut else "completed",
            incomplete_details=IncompleteDetails("max_output_tokens") if is_cut else None,
            completed_at=None if is_cut else int(time.time()),
            output=self._output.items,
        )
        return events

    def _read(self, text: str) -> list[Part]:
        if self._reader is not None:
            return self._reader.push(text)
        return [Said(text)] if text else []

    def _told(self, scores: Sequence[ScoredToken]) -> list[ChatTokenLogprob]:
        return chat_logprobs(scores, self._wording.text).content

    def _pieces(self, text: str, scores: Sequence[ScoredToken]) -> list[tuple[str, list[ChatTokenLogprob]]]:
        """The text token by token, as a stream would bring it."""
        if not scores:
            return [(text, [])]
        ends = [score.offset for score in scores[1:]] + [len(text)]
        cuts = pairwise([0, *ends])
        return [(text[start:end], [told]) for (start, end), told in zip(cuts, self._told(scores), strict=True)]

    def _frames(self, events: Sequence[Event]) -> bytes:
        return b"".join(self._frame(name, fields) for name, fields in events)

    def _frame(self, name: str, fields: dict[str, Any]) -> bytes:
        payload = {"type": name, "sequence_number": self._sent, **fields}
        self._sent += 1
        return event_frame(name, payload)

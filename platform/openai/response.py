"""The response to a request with all its choices, in one piece or as events that are sent when their text is certain.

Knows when what is written. The endpoint words it.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec
from anyio import to_thread
from litestar import Response
from litestar.types import Receive

from loraplex.platform.catalog import ResolvedModel
from loraplex.platform.openai.answer import Answer
from loraplex.platform.openai.choices import Choices
from loraplex.platform.openai.connection import while_connected
from loraplex.platform.openai.generation_types import Usage
from loraplex.platform.openai.logprobs import ScoredToken
from loraplex.platform.openai.sse import EventStream, Write

INLINE_SCORED = 256
"""Tokens whose log-probabilities are worded in 2 to 20 ms, with those beside them. More are in a thread, so that the
event loop turns."""


class Frames(Protocol):
    """Words text as frames, of which there may be none."""

    def of(self, text: str) -> bytes: ...


class Shape(Protocol):
    """How an endpoint words and frames an answer. index: of the choice."""

    def whole(self, choices: Sequence[tuple[Answer, str]], usage: Usage) -> msgspec.Struct:
        """The body of an answer in one piece."""

    def opening(self) -> bytes:
        """What a stream begins with, before any text."""

    def frames(self, index: int) -> Frames:
        """What adds text."""

    def scored(self, index: int, text: str, scores: Sequence[ScoredToken]) -> bytes:
        """Adds this text, if any, and tells how likely these tokens were."""

    def finish(self, index: int, answer: Answer) -> bytes:
        """After all text of a choice."""

    def closing(self, usage: Usage) -> bytes:
        """After all choices: the end of the stream."""

    def failure(self, error: Exception) -> bytes:
        """The end of a stream that breaks off."""


Settle = Callable[[Usage], Awaitable[None]]


async def respond(
    receive: Receive,
    choices: Choices,
    shape: Shape,
    *,
    stream: bool,
    model: ResolvedModel,
    settle: Settle | None = None,
) -> Response[Any]:
    """Wait for the whole answer or, of a stream, for the first token: what fails until then has its own HTTP status.

    settle: awaited once all is said, before the client hears that it is; what it raises is told instead. It is not
    called for a client that has gone.
    """
    try:
        if stream:
            await while_connected(receive, choices.begin())
            produce = partial(_stream, choices, shape, settle)
            return EventStream(produce, on_close=choices.close, headers=_headers(choices, model))
        texts = await while_connected(receive, choices.texts())
    except BaseException:
        choices.close()
        raise
    choices.close()
    choices.tell()
    if sum(answer.num_scored for answer, _ in texts) > INLINE_SCORED:
        whole = await to_thread.run_sync(shape.whole, texts, choices.usage)
    else:
        whole = shape.whole(texts, choices.usage)
    if settle is not None:
        await settle(choices.usage)
    return Response(whole, headers=_headers(choices, model))


async def _stream(choices: Choices, shape: Shape, settle: Settle | None, write: Write) -> None:
    """Write chunks as their text becomes certain, those that are due at the same time together: a write costs most."""
    frames = [shape.frames(index) for index, _ in choices.running]
    due = shape.opening()
    try:
        while choices.running:
            for index, answer, text in await choices.news():
                added = b""
                if scores := answer.take_scores():
                    added += shape.scored(index, text, scores)
                elif text:
                    added += frames[index].of(text)
                if answer.finish_reason is not None:
                    added += shape.finish(index, answer)
                if added:
                    answer.tell()
                    due += added
            if due and choices.running:
                await write(due, more=True)
                due = b""
        if settle is not None:
            await write(due, more=True)
            due = b""
            await settle(choices.usage)
        due += shape.closing(choices.usage)
    except Exception as error:
        due += shape.failure(error)
    await write(due, more=False)


def _headers(choices: Choices, model: ResolvedModel) -> dict[str, str]:
    """What is left of limits. Which version answers; if it acts on the first prompt, whether it was on the device when
    the request came to the engine, and in milliseconds how long the first choice waited for it, and for the rest until
    its first step."""
    if not model.adapters:
        return {**choices.admission.headers}
    first, headers = choices.first, {**choices.admission.headers, "x-adapter-version": model.name}
    if (started := first.started) is not None and first.has_adapter:
        headers["x-loraplex-adapter-state"] = "cold" if started.loads else "warm"
        headers["x-loraplex-load-ms"] = str(math.ceil(started.load_seconds * 1000))
        headers["x-loraplex-queue-ms"] = str(round(started.queue_seconds * 1000))
    return headers

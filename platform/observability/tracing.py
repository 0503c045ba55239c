"""Traces of inference requests: what the rest of the server asks of them. Without `traces` nothing is done, and nothing
of OpenTelemetry is imported; `otel` does it.

A trace holds times, counts and names of models; never what was asked or answered.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

from litestar.types import HTTPScope

from loraplex.engine.messages import Embed, Generate, Started
from loraplex.platform.settings import Settings


class SequenceEnd(NamedTuple):
    """How a sequence in the engine went. started: None if it was in no step. first_token_at, ended_at: on the clock
    `time.monotonic`; the first is None if there was no token."""

    finish_reason: str
    cached_tokens: int
    completion_tokens: int
    started: Started | None
    first_token_at: float | None
    ended_at: float


class SequenceSpan(Protocol):
    """One sequence, from when the engine was asked."""

    def end(self, how: SequenceEnd) -> None: ...


class Tracing(Protocol):
    def request(self, scope: HTTPScope) -> AbstractContextManager[str | None]:
        """The whole of an HTTP request. The id of its trace; None where it has none."""

    def span(self, name: str) -> AbstractContextManager[object]:
        """A part of the request that runs now."""

    def sequence(self, endpoint: str, asked: Generate | Embed, model: str, tenant_id: str | None) -> SequenceSpan:
        """A sequence of the request that runs now. model: as the response names it."""

    def close(self) -> None:
        """Send what is not sent, within some seconds; blocks."""


class NoTracing:
    """What it does costs nothing."""

    _NOTHING: AbstractContextManager[None] = nullcontext()

    def request(self, scope: HTTPScope) -> AbstractContextManager[str | None]:
        return self._NOTHING

    def span(self, name: str) -> AbstractContextManager[object]:
        return self._NOTHING

    def sequence(self, endpoint: str, asked: Generate | Embed, model: str, tenant_id: str | None) -> SequenceSpan:
        return _NO_SPAN

    def close(self) -> None:
        pass


class _NoSpan:
    def end(self, how: SequenceEnd) -> None:
        pass


_NO_SPAN = _NoSpan()


def tracing_of(settings: Settings) -> Tracing:
    """As the setting `traces` has it."""
    if not settings.traces:
        return NoTracing()
    from loraplex.platform.observability.otel import OtelTracing

    return OtelTracing.exporting()


def phases(begun_at: float, how: SequenceEnd) -> Iterator[tuple[str, float, float]]:
    """(name, start, end) of what a sequence did one after the other, by the engine's own times up to the first step."""
    if how.started is None:
        yield "queue", begun_at, how.ended_at
        return
    loaded_at = begun_at + how.started.load_seconds
    stepped_at = loaded_at + how.started.queue_seconds
    if how.started.loads:
        yield "adapter load", begun_at, loaded_at
    yield "queue", loaded_at, stepped_at
    first_token_at = how.first_token_at or how.ended_at
    yield "prefill", stepped_at, max(first_token_at, stepped_at)
    if how.first_token_at is not None:
        yield "decode", first_token_at, how.ended_at

"""Server-sent events as OpenAI sends them, and a response that always closes what it streams from.

Frames are `data: {json}` and an empty line; the last is `data: [DONE]`. While a stream is silent, comments keep proxies
from taking it for dead. Knows no field of any chunk.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any, Protocol

import msgspec
import structlog
from litestar import Request, Response
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send

from loraplex.platform.errors import ApiError, to_api_error
from loraplex.platform.openai.connection import ClientGone, while_connected

DONE = b"data: [DONE]\n\n"

PING = b": ping\n\n"
"""A comment, which clients pass over."""

PING_SECONDS = "stream_ping_seconds"
"""Of the application's state: how long a stream may be silent."""

DEFAULT_PING_SECONDS = 15.0

HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}

_LINE_BREAKS = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"), (b"\xc2\x85", b"\\u0085"))
"""Legal inside JSON strings, yet clients that split lines by Unicode's rules would cut a frame there."""

_PLACEHOLDER = "\0"

_encoder = msgspec.json.Encoder()
logger = structlog.get_logger(__name__)


def frame(payload: Any) -> bytes:
    return b"data: " + _json(payload) + b"\n\n"


def event_frame(name: str, payload: Any) -> bytes:
    return b"event: " + name.encode() + b"\n" + frame(payload)


def framed(payloads: Iterable[Any]) -> bytes:
    return b"".join(map(frame, payloads))


def stream_error(error: Exception) -> ApiError:
    """What a stream says in place of the status, which is long sent."""
    api_error = to_api_error(error)
    if api_error.status == 500:
        logger.error("stream_failed", exc_info=error)
    return api_error


def error_body(error: Exception) -> dict[str, Any]:
    return stream_error(error).body()


class TextFrame:
    """Frames that differ in one text, which `payload_of` puts into a payload; the rest is encoded once."""

    def __init__(self, payload_of: Callable[[str], msgspec.Struct]) -> None:
        self._before, self._after = frame(payload_of(_PLACEHOLDER)).split(_json(_PLACEHOLDER))

    def of(self, text: str) -> bytes:
        return self._before + _json(text) + self._after


class ChangingFrame:
    """Frames that differ in more than one text."""

    def __init__(self, payload_of: Callable[[str], msgspec.Struct]) -> None:
        self._payload_of = payload_of

    def of(self, text: str) -> bytes:
        return frame(self._payload_of(text))


class Write(Protocol):
    """Sends frames, and waits while the client is slow. `more` False ends the response."""

    async def __call__(self, frames: bytes, *, more: bool) -> None: ...


class EventStream(Response[None]):
    """Whatever ends the response (its end, the client, an error, a cancellation), `on_close` has run afterwards."""

    def __init__(
        self,
        produce: Callable[[Write], Coroutine[Any, Any, None]],
        *,
        on_close: Callable[[], None],
        headers: dict[str, str],
    ) -> None:
        super().__init__(None, headers=HEADERS | headers, media_type="text/event-stream")
        self._produce = produce
        self._on_close = on_close

    def to_asgi_response(
        self, app: Any, request: Request[Any, Any, Any], *, headers: dict[str, str] | None = None, **_: Any
    ) -> ASGIResponse:
        return _EventResponse(
            self._produce,
            self._on_close,
            request.app.state.get(PING_SECONDS, DEFAULT_PING_SECONDS),
            headers={**(headers or {}), **self.headers},
            media_type=self.media_type,
            status_code=200,
        )


class _EventResponse(ASGIResponse):
    _should_set_content_length = False

    def __init__(
        self,
        produce: Callable[[Write], Coroutine[Any, Any, None]],
        on_close: Callable[[], None],
        ping_seconds: float,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._produce = produce
        self._on_close = on_close
        self._ping_seconds = ping_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_close()

    async def send_body(self, send: Send, receive: Receive) -> None:
        written_at = time.monotonic()

        async def write(frames: bytes, *, more: bool) -> None:
            nonlocal written_at
            if not more:
                pings.cancel()
            await send({"type": "http.response.body", "body": frames, "more_body": more})
            written_at = time.monotonic()

        async def ping() -> None:
            while True:
                silent_seconds = time.monotonic() - written_at
                if silent_seconds >= self._ping_seconds:
                    await write(PING, more=True)
                else:
                    await asyncio.sleep(self._ping_seconds - silent_seconds)

        pings = asyncio.create_task(ping())
        try:
            with suppress(ClientGone):
                await while_connected(receive, self._produce(write))
        finally:
            pings.cancel()


def _json(value: Any) -> bytes:
    data = _encoder.encode(value)
    if data.isascii():
        return data
    for raw, escaped in _LINE_BREAKS:
        data = data.replace(raw, escaped)
    return data

"""Server-sent events as OpenAI sends them, and a response that always closes what it streams from.

Frames are `data: {json}` and an empty line; the last is `data: [DONE]`. Knows no field of any chunk.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import msgspec
import structlog
from litestar import Request, Response
from litestar.response.base import ASGIResponse
from litestar.response.streaming import ASGIStreamingResponse
from litestar.types import Receive, Scope, Send

from loraplex.platform.errors import to_api_error

DONE = b"data: [DONE]\n\n"

HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}

_LINE_BREAKS = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"), (b"\xc2\x85", b"\\u0085"))
"""Legal inside JSON strings, yet clients that split lines by Unicode's rules would cut a frame there."""

_encoder = msgspec.json.Encoder()
logger = structlog.get_logger(__name__)


def frame(payload: Any) -> bytes:
    data = _encoder.encode(payload)
    for raw, escaped in _LINE_BREAKS:
        data = data.replace(raw, escaped)
    return b"data: " + data + b"\n\n"


async def frames(payloads: AsyncGenerator[msgspec.Struct]) -> AsyncGenerator[bytes]:
    """Encode each payload. A failure becomes an error frame, since the status is long sent; [DONE] ends all."""
    async with aclosing(payloads):
        try:
            async for payload in payloads:
                yield frame(payload)
        except Exception as error:
            api_error = to_api_error(error)
            if api_error.status == 500:
                logger.error("stream_failed", exc_info=error)
            yield frame(api_error.body())
    yield DONE


class _ClosingResponse(ASGIStreamingResponse):
    """Whatever ends the response (its end, the client, an error, a cancellation), `on_close` has run afterwards."""

    def __init__(self, *, on_close: Callable[[], None], **options: Any) -> None:
        super().__init__(**options)
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_close()


class EventStream(Response[None]):
    """Streams `payloads` as events, then calls `on_close`."""

    def __init__(
        self, payloads: AsyncGenerator[msgspec.Struct], *, on_close: Callable[[], None], headers: dict[str, str]
    ) -> None:
        super().__init__(None, headers=HEADERS | headers, media_type="text/event-stream")
        self._payloads = payloads
        self._on_close = on_close

    def to_asgi_response(
        self, app: Any, request: Request[Any, Any, Any], *, headers: dict[str, str] | None = None, **_: Any
    ) -> ASGIResponse:
        iterator: AsyncIterator[bytes] = frames(self._payloads)
        return _ClosingResponse(
            on_close=self._on_close,
            iterator=iterator,
            headers={**(headers or {}), **self.headers},
            media_type=self.media_type,
            status_code=200,
        )

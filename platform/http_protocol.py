"""HTTP/1.1 by uvicorn and httptools, with what these lack: a bound on the size of a request's head, errors in our one
shape, and an end to requests whose client has gone, where more were sent behind them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from loraplex.platform.errors import ApiError

MAX_HEAD_BYTES = 64 << 10

IS_CONNECTED = "loraplex.is_connected"
"""The key in an ASGI scope of a function that tells whether what is sent now goes out: uvicorn drops it without a word
where the client has gone."""


class BoundedHttpToolsProtocol(HttpToolsProtocol):
    """Answers 400 and closes when a request line and its headers exceed MAX_HEAD_BYTES by more than one read."""

    _head_bytes = 0
    _in_head = False
    _answering: RequestResponseCycle | None = None
    """The request that is answered now; `cycle` is the one that was read last."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._head_bytes = self._head_bytes + len(data) if self._in_head else 0
        if self._head_bytes > MAX_HEAD_BYTES:
            self.send_400_response("The request's headers are too large.")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        cycle = self._answering
        if cycle is not None and cycle is not self.cycle and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    def send_400_response(self, msg: str) -> None:
        """For what is no request. Behind a request whose answer is not whole yet it would be read as a part of that,
        so then the connection just ends."""
        cycle = self._answering
        if cycle is None or cycle.response_complete:
            self.transport.write(_bad_request(msg))
        self.transport.close()

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Callable[..., Any]) -> None:
        self._answering = cycle
        transport = self.transport
        cast("dict[str, Any]", cycle.scope)[IS_CONNECTED] = lambda: not transport.is_closing()
        super()._start_asgi_task(cycle, app)


def _bad_request(message: str) -> bytes:
    body = json.dumps(ApiError(400, "invalid_request", message).body()).encode()
    head = (
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body

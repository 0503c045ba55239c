"""One streamed completion on one connection, read as cheaply as Python can: when text came, and the server's usage.

Knows HTTP and OpenAI's events; knows no load and no figures.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httptools
import msgspec

INCOMPLETE = "the connection closed before the answer was complete"


class Choice(msgspec.Struct):
    text: str = ""


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class Event(msgspec.Struct):
    """What matters of a streamed chunk. `error` is whatever a server sends when a stream breaks."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(Event).decode


class Stream(asyncio.Protocol):
    """One request on one connection. `done` is resolved when the answer ended, however it did.

    arrivals: times of the events that carried text. failure: why the answer is no full answer, or None.
    """

    def __init__(self, request: bytes, done: asyncio.Future[None]) -> None:
        self.arrivals: list[float] = []
        self.usage: Usage | None = None
        self.failure: str | None = INCOMPLETE
        self.started = 0.0
        self._request = request
        self.done = done
        self._parser = httptools.HttpResponseParser(self)
        self._pending = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, msgspec.DecodeError) as error:
            self._end(f"the answer cannot be read: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(self.failure)

    def on_body(self, body: bytes) -> None:
        """Called by the parser with pieces of the body, cut anywhere."""
        *lines, self._pending = (self._pending + body).split(b"\n")
        if self._parser.get_status_code() == 200:
            for line in lines:
                if line.startswith(b"data:"):
                    self._take(line[5:].strip())

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != 200:
            self.failure = f"status {status}: {self._pending[:300].decode(errors='replace')}"
        self._end(self.failure)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _take(self, event: bytes) -> None:
        if event == b"[DONE]":
            if self.failure == INCOMPLETE and self.usage is not None:
                self.failure = None
            return
        told = _decode(event)
        if told.error is not None:
            self.failure = f"error event: {str(told.error)[:300]}"
        if told.usage is not None:
            self.usage = told.usage
        if any(choice.text for choice in told.choices):
            self.arrivals.append(time.perf_counter())

    def _end(self, failure: str | None) -> None:
        self.failure = failure
        self.close()
        if not self.done.done():
            self.done.set_result(None)

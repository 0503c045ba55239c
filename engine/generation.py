"""One request as the API process follows it: its tokens as they come, and how it can end.

Knows no process and no socket: `client` delivers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from loraplex.engine.messages import Generate, TokenChunk


class EngineUnavailable(Exception):
    """The engine cannot take a request now. `retry_after_seconds` is when to try again."""

    def __init__(self, message: str, retry_after_seconds: int = 1) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class GenerationFailed(Exception):
    """One request ended with an error of its own. `code` is stable, the message is for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Generation:
    """The tokens of one request as they come: an async iterator of TokenChunk that ends after the finish reason.

    Chunks that were not fetched in time are handed out together, so a slow reader costs the engine nothing. Iterating
    raises GenerationFailed when the request fails.
    """

    def __init__(self, request: Generate, on_abort: Callable[[str], None]) -> None:
        self.request = request
        self.has_output = False
        self._on_abort = on_abort
        self._chunks: deque[TokenChunk | GenerationFailed] = deque()
        self._arrived = asyncio.Event()
        self._ended = False

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> TokenChunk:
        while not self._chunks:
            if self._ended:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        item = self._chunks.popleft()
        if isinstance(item, GenerationFailed):
            raise item
        while self._chunks and isinstance(later := self._chunks[0], TokenChunk):
            item = _joined(item, later)
            self._chunks.popleft()
        return item

    def abort(self) -> None:
        """Stop the sequence and free what it holds. Does nothing once the request has ended."""
        if not self._ended:
            self._end()
            self._on_abort(self.request.request_id)

    def deliver(self, chunk: TokenChunk) -> None:
        self.has_output = True
        self._chunks.append(chunk)
        if chunk.finish_reason is not None:
            self._end()
        self._arrived.set()

    def fail(self, error: GenerationFailed) -> None:
        self._chunks.append(error)
        self._end()

    def _end(self) -> None:
        self._ended = True
        self._arrived.set()


def _joined(first: TokenChunk, second: TokenChunk) -> TokenChunk:
    logprobs = None if first.logprobs is None or second.logprobs is None else first.logprobs + second.logprobs
    return TokenChunk(
        first.request_id, first.token_ids + second.token_ids, logprobs, second.finish_reason, first.cached_tokens
    )

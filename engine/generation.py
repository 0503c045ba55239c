"""One request as the API process follows it: its tokens as they come, and how it can end.

Knows no process and no socket: `client` delivers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from loraplex.engine.messages import Embed, Generate, Started, TokenChunk


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
    raises GenerationFailed when the request fails. started: what it waited for, known before its first token is.
    expires: what will end it then, if it has a time limit.
    """

    def __init__(self, request: Generate | Embed, on_abort: Callable[[str], None]) -> None:
        self.request = request
        self.has_output = False
        self.started: Started | None = None
        self.expires: asyncio.TimerHandle | None = None
        self._on_abort = on_abort
        self._chunks: deque[TokenChunk | GenerationFailed] = deque()
        self._arrival: asyncio.Future[None] | None = None  # what the reader waits on
        self._ended = False

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> TokenChunk:
        while not self._chunks:
            if self._ended:
                raise StopAsyncIteration
            self._arrival = asyncio.get_running_loop().create_future()
            try:
                await self._arrival
            finally:
                self._arrival = None
        item = self._chunks.popleft()
        if isinstance(item, GenerationFailed):
            raise item
        if not self._chunks:
            return item
        chunks = [item]
        while self._chunks and isinstance(later := self._chunks[0], TokenChunk):
            chunks.append(later)
            self._chunks.popleft()
        return _joined(chunks)

    @property
    def has_news(self) -> bool:
        """Whether the next chunk, or the end, can be fetched without waiting."""
        return bool(self._chunks) or self._ended

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
        self._wake()

    def fail(self, error: GenerationFailed) -> None:
        self._chunks.append(error)
        self._end()

    def _end(self) -> None:
        self._ended = True
        if self.expires is not None:
            self.expires.cancel()
        self._wake()

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)


async def news_of_any(generations: Sequence[Generation]) -> None:
    """Wait until one of them has news. Meanwhile nobody else may wait for any of them."""
    if any(generation.has_news for generation in generations):
        return
    arrival = asyncio.get_running_loop().create_future()
    for generation in generations:
        generation._arrival = arrival
    try:
        await arrival
    finally:
        for generation in generations:
            generation._arrival = None


def _joined(chunks: list[TokenChunk]) -> TokenChunk:
    """`chunks` of one sequence as one chunk. A sequence has log-probabilities for all of its tokens or for none."""
    logprobs = [value for chunk in chunks for value in chunk.logprobs or ()]
    scores = [score for chunk in chunks for score in chunk.scores or ()]
    return TokenChunk(
        request_id=chunks[0].request_id,
        token_ids=[token_id for chunk in chunks for token_id in chunk.token_ids],
        logprobs=logprobs or None,
        finish_reason=chunks[-1].finish_reason,
        cached_tokens=chunks[0].cached_tokens,
        scores=scores or None,
        stopped_by=chunks[-1].stopped_by,
        prompt_scores=chunks[0].prompt_scores,
    )

"""One sequence in the engine, seen from the API: text as it becomes certain, its usage, and a sure end.

Knows tokens, text and stop strings. Knows no request or response shape.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Literal

from loraplex.engine.client import EngineUnavailable, Generation, GenerationFailed
from loraplex.engine.messages import Generate, Started, TokenChunk
from loraplex.engine.text import TextCodec
from loraplex.platform.openai.generation_types import FinishReason, PromptTokensDetails, Usage
from loraplex.platform.openai.stop_strings import StopStrings
from loraplex.platform.services import Services

Endpoint = Literal["chat", "completions"]


class Answer:
    """One sequence in the engine. Whoever starts it closes it, whatever happens; `close` also settles the usage."""

    def __init__(
        self,
        services: Services,
        endpoint: Endpoint,
        asked: Generate,
        stops: tuple[str, ...],
        tenant_id: str | None,
        text: TextCodec,
        markers: Collection[str] = (),
    ) -> None:
        """Submit to the engine for a tenant. text: of the model that is asked. markers: told even as special tokens.

        Raises EngineUnavailable or GenerationFailed when it cannot be taken.
        """
        self.finish_reason: FinishReason | None = None
        self.has_adapter = bool(asked.adapters)
        self._metrics = services.metrics
        self._endpoint = endpoint
        self._prompt_tokens = len(asked.prompt)
        self._cached_tokens = 0
        self._completion_tokens = 0
        self._failed = False
        self._closed = False
        self._detokenizer = text.detokenizer(markers)
        self._stops = StopStrings(stops)
        self._started = time.monotonic()
        self._first_token_at: float | None = None
        self._first_chunk: TokenChunk | None = None
        self._generation: Generation = services.engine.generate(asked)
        self._uses = services.uses
        self._used = (tenant_id or "", {use.digest for use in asked.adapters})
        self._uses.begin(*self._used)

    async def begin(self) -> None:
        """Wait for the first token: what fails before it still has an HTTP status of its own."""
        self._first_chunk = await self._next_chunk()

    async def next_text(self) -> str:
        """Text that the next tokens make certain: never half a character, "" when they make none so.

        `finish_reason` is set with the last of it; do not ask again then.
        """
        chunk, self._first_chunk = self._first_chunk or await self._next_chunk(), None
        return self._take(chunk)

    async def text(self) -> str:
        """All of it."""
        pieces = []
        while self.finish_reason is None:
            pieces.append(await self.next_text())
        return "".join(pieces)

    @property
    def started(self) -> Started | None:
        """What it waited for before its first step; None if there was none."""
        return self._generation.started

    @property
    def usage(self) -> Usage:
        prompt, completion = self._prompt_tokens, self._completion_tokens
        return Usage(prompt, completion, prompt + completion, PromptTokensDetails(self._cached_tokens))

    def close(self) -> None:
        """Abort the sequence if it still runs, and count it. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._generation.abort()
        self._uses.end(*self._used, self.started)
        now = time.monotonic()
        self._metrics.request_finished(
            self._endpoint,
            self.finish_reason or ("error" if self._failed else "client_closed"),
            self._prompt_tokens,
            self._cached_tokens,
            self._completion_tokens,
            self._first_token_at - self._started if self._first_token_at is not None else None,
            now - self._started,
        )

    async def _next_chunk(self) -> TokenChunk:
        try:
            chunk = await anext(self._generation)
        except GenerationFailed:
            self._failed = True
            raise
        if chunk.finish_reason == "abort":
            self._failed = True
            raise EngineUnavailable("the engine gave this request up; send it again")
        if self._first_token_at is None:
            self._first_token_at = time.monotonic()
            self._cached_tokens = chunk.cached_tokens
            if (started := self.started) is not None:
                load_seconds = started.load_seconds if self.has_adapter else None
                self._metrics.request_started(started.queue_seconds, load_seconds)
        return chunk

    def _take(self, chunk: TokenChunk) -> str:
        """Text that a chunk makes certain. Token by token, so that usage does not depend on how they were joined."""
        text = ""
        for token_id in chunk.token_ids:
            self._completion_tokens += 1
            text += self._stops.push(self._detokenizer.push([token_id]))
            if self._stops.found:
                break
        if chunk.finish_reason is not None and not self._stops.found:
            text += self._stops.push(self._detokenizer.flush())
        if self._stops.found:
            self.finish_reason = "stop"
            self._generation.abort()
        elif chunk.finish_reason is not None:
            assert chunk.finish_reason != "abort"
            text += self._stops.flush()
            self.finish_reason = chunk.finish_reason
        return text

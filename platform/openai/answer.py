"""One sequence in the engine, seen from the API: text as it becomes certain, how likely its tokens were, its usage, and
a sure end.

Knows tokens, text and stop strings. Knows no request or response shape.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from typing import Literal

from loraplex.engine import generation
from loraplex.engine.client import EngineUnavailable, Generation, GenerationFailed
from loraplex.engine.messages import Generate, Started, TokenChunk, TokenScore
from loraplex.engine.text import TextCodec
from loraplex.platform.catalog import ResolvedModel
from loraplex.platform.ledger.record import NO_TOKENS, Tokens
from loraplex.platform.observability.tracing import SequenceEnd
from loraplex.platform.openai.generation_types import FinishReason, PromptTokensDetails, Reading, Usage
from loraplex.platform.openai.logprobs import ScoredToken, echoed
from loraplex.platform.openai.stop_strings import StopStrings
from loraplex.platform.services import Services
from loraplex.platform.tenants import Principal

Endpoint = Literal["chat", "completions", "responses", "messages"]


class Answer:
    """One sequence in the engine. Whoever starts it closes it, whatever happens; `close` also settles the usage."""

    def __init__(
        self,
        services: Services,
        endpoint: Endpoint,
        asked: Generate,
        reading: Reading,
        principal: Principal,
        model: ResolvedModel,
        text: TextCodec,
        markers: Collection[str] = (),
    ) -> None:
        """Submit to the engine. text: of the model that is asked. markers: told even as special tokens.

        prompt_scores: of the prompt's tokens from the second on, if they are asked for; known with the first text.
        Raises EngineUnavailable or GenerationFailed when it cannot be taken.
        """
        self.finish_reason: FinishReason | None = None
        self.has_adapter = bool(asked.adapters)
        self.has_failed = False
        self.prompt_scores: list[TokenScore] = []
        self._metrics = services.metrics
        self._endpoint = endpoint
        self._asked = asked
        self._reading = reading
        self._text = text
        self._min_tokens = asked.sampling.rules.min_tokens if asked.sampling.rules else 0
        self._prompt_tokens = len(asked.prompt)
        self._cached_tokens = 0
        self._completion_tokens = 0
        self._told_tokens = 0
        self._logprob_sum = 0.0
        self._closed = False
        self._detokenizer = text.detokenizer(special_tokens=reading.special_tokens, markers=markers)
        self._stops = StopStrings(reading.stops, included=reading.includes_stop)
        self._offset = len(reading.echo or "")  # of the next token, in characters
        self._scored: list[ScoredToken] = []
        self._started = time.monotonic()
        self._first_token_at: float | None = None
        self._first_chunk: TokenChunk | None = None
        self._generation: Generation = services.engine.generate(asked)
        self._uses = services.uses
        self._used = (principal.tenant_id or "", {use.digest for use in asked.adapters})
        self._uses.begin(*self._used)
        self._in_hand = services.metrics.request_begun(principal, model, self._generation)
        self._span = services.tracing.sequence(endpoint, asked, model.name, principal.tenant_id)

    async def begin(self) -> None:
        """Wait for the first token: what fails before it still has an HTTP status of its own."""
        self._first_chunk = await self._next_chunk()

    async def next_text(self) -> str:
        """Text that the next tokens make certain: never half a character, "" when they make none so.

        `finish_reason` is set with the last of it; do not ask again then.
        """
        chunk, self._first_chunk = self._first_chunk or await self._next_chunk(), None
        return self._take(chunk)

    def tell(self) -> None:
        """What its tokens came to so far is in frames, or in the whole answer."""
        self._told_tokens = self._completion_tokens

    def told(self) -> Tokens:
        """Of a prompt that has begun, and of its tokens those that were told."""
        if self._first_token_at is None:
            return NO_TOKENS
        return Tokens(self._prompt_tokens, self._cached_tokens, self._told_tokens)

    @property
    def first_token_at(self) -> float | None:
        """As of the monotonic clock; None: there was none."""
        return self._first_token_at

    @property
    def has_news(self) -> bool:
        """Whether `begin` and `next_text` need not wait."""
        return self._first_chunk is not None or self._generation.has_news

    @property
    def mean_logprob(self) -> float:
        """Of its tokens, where `asked` wants log-probabilities; what has no tokens is the least likely of all."""
        return self._logprob_sum / self._completion_tokens if self._completion_tokens else -math.inf

    def take_scores(self) -> list[ScoredToken]:
        """How likely the tokens were, of those that were taken since the last call; of an echoed prompt, too, if these
        were asked for. Nothing if no log-probabilities were."""
        scored, self._scored = self._scored, []
        return scored

    @property
    def stop_string(self) -> str | None:
        """The one that ended it, of the request's or the profile's; None: it ended otherwise, or goes on."""
        return self._stops.found

    @property
    def num_scored(self) -> int:
        """Tokens whose scores are there to be told."""
        return len(self._scored) + len(self.prompt_scores)

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
        reason = self.finish_reason or ("error" if self.has_failed else "client_closed")
        self._metrics.request_finished(
            self._endpoint,
            reason,
            self._prompt_tokens,
            self._cached_tokens,
            self._completion_tokens,
            self._first_token_at - self._started if self._first_token_at is not None else None,
            now - self._started,
            self._in_hand,
        )
        end = SequenceEnd(reason, self._cached_tokens, self._completion_tokens, self.started, self._first_token_at, now)
        self._span.end(end)

    async def _next_chunk(self) -> TokenChunk:
        try:
            chunk = await anext(self._generation)
        except GenerationFailed:
            self.has_failed = True
            raise
        if chunk.finish_reason == "abort":
            self.has_failed = True
            raise EngineUnavailable("the engine gave this request up; send it again")
        if self._first_token_at is None:
            self._first_token_at = time.monotonic()
            self._cached_tokens = chunk.cached_tokens
            self._take_prompt_scores(chunk)
            if (started := self.started) is not None:
                load_seconds = started.load_seconds if self.has_adapter else None
                self._metrics.request_started(started.queue_seconds, load_seconds)
        return chunk

    def _take(self, chunk: TokenChunk) -> str:
        """Text that a chunk makes certain. Token by token, so that usage does not depend on how they were joined."""
        text = ""
        before = self._completion_tokens
        for index, token_id in enumerate(chunk.token_ids):
            self._completion_tokens += 1
            if chunk.scores is not None:
                self._scored.append(ScoredToken(token_id, self._offset, chunk.scores[index]))
            piece = self._detokenizer.push([token_id])
            self._offset += len(piece)
            text += self._stops.push(piece) if self._completion_tokens > self._min_tokens else piece
            if self._stops.found:
                break
        if chunk.logprobs is not None:
            self._logprob_sum += sum(chunk.logprobs[: self._completion_tokens - before])
        if chunk.finish_reason is not None and not self._stops.found:
            text += self._stops.push(self._detokenizer.flush())
            if chunk.stopped_by is not None and self._endpoint == "completions":
                self._scored.append(ScoredToken(chunk.stopped_by.token, self._offset, chunk.stopped_by))
        if self._stops.found:
            self.finish_reason = "stop"
            self._generation.abort()
        elif chunk.finish_reason is not None:
            assert chunk.finish_reason != "abort"
            text += self._stops.flush()
            self.finish_reason = chunk.finish_reason
        return text

    def _take_prompt_scores(self, chunk: TokenChunk) -> None:
        if self._asked.sampling.prompt_logprobs is None:
            return
        self.prompt_scores = chunk.prompt_scores or []
        if self._reading.echo is not None and self._asked.sampling.logprobs:
            detokenizer = self._text.detokenizer(special_tokens=self._reading.echoes_special_tokens)
            self._scored.extend(echoed(self._asked.prompt, self.prompt_scores, detokenizer))


async def news_of_any(answers: Sequence[Answer]) -> None:
    """Wait until one of them has news."""
    if not any(answer.has_news for answer in answers):
        await generation.news_of_any([answer._generation for answer in answers])

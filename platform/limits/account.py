"""What one tenant, key or adapter has used of its limits, as this server knows it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from loraplex.platform.limits.bucket import Bucket, Use
from loraplex.platform.limits.rules import NO_LIMITS, RateLimits
from loraplex.platform.limits.shared_use import Told

OUTAGE_SECONDS = 5.0
"""What was taken longer ago and could not be told is no debt: each server goes by its own bucket then."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request needs, in tokens: as many as it may use, and of these those of its prompts."""

    tokens: int
    prompt_tokens: int


class Account:
    """For the tasks of one event loop.

    look: the exchange with other servers that is under way for it. look_due: from when on it has to hear of them before
    it admits anything. used_at: when a request came last.
    """

    __slots__ = ("_limits", "look", "look_due", "queued_tokens", "requests", "running", "tokens", "used_at")

    def __init__(self, now: float) -> None:
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self.running = 0
        self.queued_tokens = 0
        self.used_at = now
        self.look: asyncio.Task[None] | None = None
        self.look_due = now
        self._limits = NO_LIMITS

    @property
    def limits(self) -> RateLimits:
        return self._limits

    def go_by(self, limits: RateLimits, now: float) -> None:
        """These limits from now on. What was used stays used."""
        self.used_at = now
        if limits == self._limits:
            return
        self._limits = limits
        self.requests = _resized(self.requests, limits.requests_per_minute, now)
        self.tokens = _resized(self.tokens, limits.tokens_per_minute, now)

    @property
    def is_shared(self) -> bool:
        """Whether other servers' use counts."""
        return self.requests is not None or self.tokens is not None

    @property
    def is_idle(self) -> bool:
        return not self.running and all(bucket.untold == 0 for bucket in self.buckets())

    def buckets(self) -> Iterator[Bucket]:
        return (bucket for bucket in (self.requests, self.tokens) if bucket is not None)

    def admit(self, demand: Demand, now: float) -> None:
        """Take what the request needs; that it is there has been looked at."""
        self.running += 1
        self.queued_tokens += demand.prompt_tokens
        if self.requests is not None:
            self.requests.charge(1, now)
        if self.tokens is not None:
            self.tokens.charge(demand.tokens, now)

    def tell(self, now: float) -> Told:
        """What the others have to hear."""

        def use_of(bucket: Bucket | None) -> Use | None:
            return None if bucket is None else bucket.tell(OUTAGE_SECONDS, now)

        return Told(use_of(self.requests), use_of(self.tokens))

    def hear(self, used: tuple[float, float], now: float) -> None:
        """What all have used, of requests and of tokens."""
        for bucket, of_all in zip((self.requests, self.tokens), used, strict=True):
            if bucket is not None:
                bucket.hear(of_all, now)


def _resized(bucket: Bucket | None, capacity: int | None, now: float) -> Bucket | None:
    if bucket is None or capacity is None:
        return None if capacity is None else Bucket(capacity, now)
    bucket.resize(capacity, now)
    return bucket

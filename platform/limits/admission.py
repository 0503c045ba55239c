"""A request that was admitted: what it took of limits, until it is settled. Knows accounts; knows no server beside."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from loraplex.platform.limits.account import Account, Demand
from loraplex.platform.limits.bucket import Bucket
from loraplex.platform.limits.rules import RateLimits
from loraplex.platform.limits.wording import LimitType, Shortage, refusal, told_headers

BUSY_SECONDS = 1.0
"""After which to try again where others have to end first."""


class Claim(NamedTuple):
    """Somebody whose limits a request counts for. whose: in words."""

    subject: str
    whose: str
    account: Account
    limits: RateLimits

    @property
    def owner(self) -> str:
        """The kind of it: key, tenant or adapter."""
        return self.subject.partition("/")[0]


class Admission:
    """headers: where the caller stood when the request was admitted. is_held: it is not settled."""

    def __init__(
        self, accounts: Sequence[Account], demand: Demand, headers: Mapping[str, str], clock: Callable[[], float]
    ) -> None:
        self.headers = headers
        self._accounts = accounts
        self._demand = demand
        self._clock = clock
        # These alone, whatever an operator changes meanwhile.
        self._buckets = [account.tokens for account in accounts if account.tokens is not None]
        self.is_held = self._waits = bool(accounts)

    def begin(self) -> None:
        """Its answer has begun: its prompt waits no more. Again is fine."""
        if self._waits:
            self._waits = False
            for account in self._accounts:
                account.queued_tokens -= self._demand.prompt_tokens

    def settle(self, tokens: int) -> None:
        """It has ended and used so many tokens: give back, or charge, what differs from what was taken. Only the first
        time counts."""
        self.begin()
        if not self.is_held:
            return
        self.is_held = False
        now = self._clock()
        for account in self._accounts:
            account.running -= 1
        for bucket in self._buckets:
            bucket.charge(tokens - self._demand.tokens, now)


UNLIMITED = Admission((), Demand(0, 0), {}, lambda: 0.0)
"""Of every request that counts for no limit."""


def admission_of(claims: Sequence[Claim], demand: Demand, clock: Callable[[], float]) -> Admission:
    """Take the demand from all or, by raising ApiError, from none. A request that has to wait is told of the limit that
    it has to wait for longest."""
    now = clock()
    if shortages := [shortage for claim in claims for shortage in _shortages(claim, demand, now)]:
        raise refusal(max(shortages, key=lambda shortage: shortage.seconds), _headers(claims, now))
    accounts = [claim.account for claim in claims]
    for account in accounts:
        account.admit(demand, now)
    return Admission(accounts, demand, _headers(claims, now), clock)


def _shortages(claim: Claim, demand: Demand, now: float) -> Iterator[Shortage]:
    """The limits in the way."""
    account, limits, owner, whose = claim.account, claim.limits, claim.owner, claim.whose
    buckets: tuple[tuple[LimitType, Bucket | None, int], ...] = (
        ("requests", account.requests, 1),
        ("tokens", account.tokens, demand.tokens),
    )
    for kind, bucket, needed in buckets:
        if bucket is not None and (left := bucket.remaining(now)) < needed:
            seconds = bucket.seconds_until(needed, now) if needed <= bucket.capacity else math.inf
            yield Shortage(owner, kind, whose, f"{kind} per minute", int(bucket.capacity), left, needed, seconds)
    counts: tuple[tuple[LimitType, str, int | None, int, int], ...] = (
        ("requests", "requests at the same time", limits.concurrent_requests, account.running, 1),
        ("tokens", "tokens of prompts that wait", limits.queued_tokens, account.queued_tokens, demand.prompt_tokens),
    )
    for kind, unit, limit, held, needed in counts:
        if limit is not None and held + needed > limit:
            yield Shortage(
                owner, kind, whose, unit, limit, limit - held, needed, BUSY_SECONDS if needed <= limit else math.inf
            )


def _headers(claims: Sequence[Claim], now: float) -> dict[str, str]:
    requests = [claim.account.requests for claim in claims if claim.account.requests is not None]
    tokens = [claim.account.tokens for claim in claims if claim.account.tokens is not None]
    return told_headers(requests, tokens, now)

"""Admit requests within the limits of their key, their tenant and their adapters.

Each server has buckets of its own, which a request takes from without asking anybody. What it took it tells the others
by the database once in EXCHANGE_SECONDS, all in one transaction, and hears what they took; about a tenant, key or
adapter that it has heard nothing of for FRESH_SECONDS it asks before it admits anything, for LOOK_SECONDS at most.

How right that is: a bucket allows limit * (1 + t / 60) in any t seconds, and one server keeps to that within the refill
of EXCHANGE_SECONDS. Of N servers each misses what the others took in the last FRESH_SECONDS + EXCHANGE_SECONDS. So
together they admit at most limit * (1 + (t + 1) / 60) + (N - 1) * limit * (1 + 3 / 60) and, since what is too much is
owed, then nothing until time has paid for it: over a long time the rate is right. What a server took in the last second
before it was killed is missing; and while the database is away, each server goes by its own buckets alone. Concurrent
requests and queued tokens each server counts for itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence

import structlog
from sqlalchemy.exc import SQLAlchemyError

from loraplex.platform.catalog import ResolvedModel
from loraplex.platform.errors import ApiError
from loraplex.platform.limits.account import Account, Demand
from loraplex.platform.limits.admission import UNLIMITED, Admission, Claim, admission_of
from loraplex.platform.limits.refusals import Refusals
from loraplex.platform.limits.rules import NO_LIMITS
from loraplex.platform.limits.shared_use import SharedUse
from loraplex.platform.tenants import Principal

EXCHANGE_SECONDS = 1.0
FRESH_SECONDS = 2.0
LOOK_SECONDS = 0.25
IDLE_SECONDS = 120.0
"""After so long without a request, an account is forgotten: a minute after the last use all has come back."""

logger = structlog.get_logger(__name__)


class Limiter:
    """For the tasks of one event loop."""

    def __init__(self, shared: SharedUse, clock: Callable[[], float] = time.monotonic) -> None:
        self.refusals = Refusals(clock)
        self._shared = shared
        self._clock = clock
        self._accounts: dict[str, Account] = {}
        self._to_exchange: dict[str, Account] = {}
        self._exchanging = asyncio.Lock()
        self._looks: set[asyncio.Task[None]] = set()

    async def admit(self, principal: Principal, model: ResolvedModel, demand: Demand) -> Admission:
        """Take what the request needs, from all that it counts for or from none. Whoever is admitted settles it.

        Raises ApiError 429, which says whose limit is reached and when to try again.
        """
        if principal.limits is None:
            return UNLIMITED
        claims = list(self._claims(principal, model))
        await self._hear_about(claims)
        try:
            return admission_of(claims, demand, self._clock)
        except ApiError as error:
            if error.limit is not None:
                self.refusals.note(principal.tenant_id or "", error.limit[1].replace("_", " "))
            raise

    async def follow(self) -> None:
        """For ever: tell the others what was taken here, and forget who has not come for long."""
        while True:
            await asyncio.sleep(EXCHANGE_SECONDS)
            await self.tell()
            self._forget_idle()

    async def tell(self) -> None:
        """Tell the others what was taken here and is not told, if anything is."""
        for subject, account in self._accounts.items():
            if any(bucket.untold for bucket in account.buckets()):
                self._to_exchange[subject] = account
        await self._exchange()

    def _claims(self, principal: Principal, model: ResolvedModel) -> Iterator[Claim]:
        """Of those whose limits the request counts for, that have any."""
        assert principal.limits is not None
        if principal.limits.key != NO_LIMITS:
            subject = f"key/{principal.key_id}"
            yield Claim(subject, "this API key", self._account(subject), principal.limits.key)
        if principal.limits.tenant != NO_LIMITS:
            subject = f"tenant/{principal.tenant_id}"
            yield Claim(subject, f"the tenant `{principal.tenant}`", self._account(subject), principal.limits.tenant)
        if principal.limits.adapter != NO_LIMITS:
            for version in {adapter.version.adapter_id: adapter.version for adapter in model.adapters}.values():
                subject, whose = f"adapter/{version.adapter_id}", f"the adapter `{version.tenant}/{version.name}`"
                yield Claim(subject, whose, self._account(subject), principal.limits.adapter)

    def _account(self, subject: str) -> Account:
        account = self._accounts.get(subject)
        if account is None:
            account = self._accounts[subject] = Account(self._clock())
        return account

    async def _hear_about(self, claims: Sequence[Claim]) -> None:
        """Of what the others took, where that was not heard lately. It is tried once in FRESH_SECONDS, so that a
        database that is away does not hold up every request."""
        now = self._clock()
        waiting: set[asyncio.Task[None]] = set()
        for claim in claims:
            account = claim.account
            account.go_by(claim.limits, now)
            if account.is_shared and account.look_due <= now:
                account.look_due = now + FRESH_SECONDS
                self._to_exchange[claim.subject] = account
                account.look = self._start_exchange()
            if account.look is not None:
                waiting.add(account.look)
        if waiting:
            await asyncio.wait(waiting, timeout=LOOK_SECONDS)
            for claim in claims:
                claim.account.look = None

    def _start_exchange(self) -> asyncio.Task[None]:
        """It goes on when nobody waits for it any more."""
        look = asyncio.create_task(self._exchange())
        self._looks.add(look)
        look.add_done_callback(self._looks.discard)
        return look

    async def _exchange(self) -> None:
        """All that is to be told now, in one transaction; one after the other, since each waits for its rows."""
        async with self._exchanging:
            accounts, self._to_exchange = self._to_exchange, {}
            if not accounts:
                return
            now = self._clock()
            told = {subject: account.tell(now) for subject, account in accounts.items()}
            try:
                used = await self._shared.exchange(told)
            except (OSError, SQLAlchemyError) as error:
                logger.warning("cannot share the use of limits; going by this server's own", error=str(error))
                return
            now = self._clock()
            for subject, account in accounts.items():
                account.hear(used[subject], now)
                account.look_due = now + FRESH_SECONDS

    def _forget_idle(self) -> None:
        now = self._clock()
        idle = [s for s, a in self._accounts.items() if a.is_idle and now - a.used_at > IDLE_SECONDS]
        for subject in idle:
            del self._accounts[subject]

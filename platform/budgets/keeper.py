"""Admit requests within the budgets of their key and of their tenant.

What was spent is what the ledger has written of all servers, which is read once in REFRESH_SECONDS for those who ask,
and what this server adds to it: what it has settled since, and for each request that runs the most that it may come to
spend. A request whose most does not fit any more is refused before anything runs.

How right that is: one server does not overspend, but for requests that nobody has set a limit on, which are taken to
need OPEN_TOKENS. Of N servers each misses what the others have running and what they settled in the last
WRITE_SECONDS + FRESH_SECONDS, some 5 s; so together they overspend by at most that, and by no more than N - 1 times
what was left when the last of them looked. Of a server that was killed that is missing until another one has taken over
its ledger, and of a budget that is new, or has a new period, what runs when it is set. None of that adds up: the next
look has what the ledger has.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

import structlog
from sqlalchemy.exc import SQLAlchemyError

from loraplex.adapters.database import Database
from loraplex.platform.budgets.account import UNBOUNDED, BudgetAccount, BudgetClaim, Reservation, spending_of
from loraplex.platform.budgets.rules import Budget, Place, Spending, period_start
from loraplex.platform.budgets.sums import spendings
from loraplex.platform.budgets.wording import refusal
from loraplex.platform.ledger.ledger import Ledger
from loraplex.platform.ledger.prices import PriceTable, TokenPrice, price_table
from loraplex.platform.ledger.record import Tokens
from loraplex.platform.limits.account import Demand
from loraplex.platform.tenants import Principal

REFRESH_SECONDS = 2.0
FRESH_SECONDS = 4.0
IDLE_SECONDS = 60.0
"""After so long without a request, an account is forgotten: the database has it."""

logger = structlog.get_logger(__name__)


def utc_now() -> datetime:
    return datetime.now(UTC)


class BudgetKeeper:
    """For the tasks of one event loop. calendar: says in which period a request begins."""

    def __init__(
        self,
        database: Database,
        ledger: Ledger,
        clock: Callable[[], float] = time.monotonic,
        calendar: Callable[[], datetime] = utc_now,
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._clock = clock
        self._calendar = calendar
        self._accounts: dict[Place, BudgetAccount] = {}
        self._prices = PriceTable()
        self._reading = asyncio.Lock()

    async def reserve(self, principal: Principal, adapter: str, demand: Demand) -> Reservation:
        """The most that a request may spend, from all budgets that it counts for or from none. Whoever has it settles
        it. adapter: by its name, as the ledger has it.

        Raises ApiError 429, which says whose budget is used up; the database's errors.
        """
        if principal.budgets is None:
            return UNBOUNDED
        claims = list(self._claims(principal))
        await self._look(claims)
        price = self._prices.of(f"{principal.tenant}/{adapter}")
        most = _most(demand, price)
        shares = [_share(claim.budget, claim.account.spent.plus(most)) for claim in claims]
        for claim, share in zip(claims, shares, strict=True):
            if share > 1:
                raise refusal(claim, most, self._prices.currency)
        accounts = [claim.account for claim in claims]
        for account in accounts:
            account.reserve(most)
        return Reservation(accounts, most, price, int(100 * max(shares)))

    async def follow(self) -> None:
        """For ever: read what others have spent, of those who ask, and forget who has not come for long."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                await self.refresh()
            except (OSError, SQLAlchemyError) as error:
                logger.warning("cannot read what was spent of budgets; trying again", error=str(error))

    async def refresh(self) -> None:
        """Read again what is known of all accounts. Raises the database's errors."""
        async with self._reading:
            now = self._clock()
            for place, account in list(self._accounts.items()):
                if account.is_idle and now - account.used_at > IDLE_SECONDS:
                    del self._accounts[place]
            await self._read(list(self._accounts))

    def _claims(self, principal: Principal) -> Iterator[BudgetClaim]:
        assert principal.budgets is not None
        today = self._calendar()
        owners: tuple[tuple[str, str, Budget | None], ...] = (
            (f"key/{principal.key_id}", "this API key", principal.budgets.key),
            (f"tenant/{principal.tenant_id}", f"the tenant `{principal.tenant}`", principal.budgets.tenant),
        )
        for subject, whose, budget in owners:
            if budget is not None:
                place = subject, period_start(budget.period, today)
                account = self._accounts.get(place)
                if account is None:
                    account = self._accounts[place] = BudgetAccount(self._clock())
                account.used_at = self._clock()
                yield BudgetClaim(place, whose, budget, account)

    async def _look(self, claims: Sequence[BudgetClaim]) -> None:
        """Nothing is admitted by what is older than FRESH_SECONDS."""
        if not any(self._is_stale(claim.account) for claim in claims):
            return
        async with self._reading:
            stale = [claim.place for claim in claims if self._is_stale(claim.account)]
            await self._read(stale)  # of what others waited for here, the first has read it for all

    def _is_stale(self, account: BudgetAccount) -> bool:
        return account.read_at is None or self._clock() - account.read_at >= FRESH_SECONDS

    async def _read(self, places: Sequence[Place]) -> None:
        if not places:
            return
        read_at, epochs = self._clock(), self._ledger.epochs_written
        async with self._database.read() as session:
            prices = await price_table(session)
            found = await spendings(session, places, prices.currency)
        self._prices = prices
        for place in places:
            if (account := self._accounts.get(place)) is not None:
                account.hear(found[place], epochs, read_at)


def _most(demand: Demand, price: TokenPrice | None) -> Spending:
    """As if the cache had nothing of the prompt or, where that is dearer, all of it."""
    prompt, completion = demand.prompt_tokens, demand.tokens - demand.prompt_tokens
    either = (spending_of(Tokens(prompt, cached, completion), price) for cached in (0, prompt))
    return max(either, key=lambda spending: spending.cost_micros)


def _share(budget: Budget, spent: Spending) -> float:
    """Of the amount of which most is used; above 1: more than there is."""
    shares = [used / amount for used, amount in zip(spent, (budget.tokens, budget.cost_micros), strict=True) if amount]
    return max(shares)

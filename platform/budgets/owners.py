"""Set the budgets of tenants and of keys, as rows, and show them with what was spent of them.

A change holds on this server at once and on others within `changes.MAX_STALE_SECONDS`, as all that decides about keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from loraplex.adapters.audit import SERVER, Actor, Facts, record
from loraplex.adapters.changes import KEYS, record_change
from loraplex.adapters.database import Database
from loraplex.platform.budgets.rules import Budget, Period, period_start, renewal, stored_budget, to_row
from loraplex.platform.budgets.sums import spendings
from loraplex.platform.ledger.prices import price_table
from loraplex.platform.limits.owners import key_row, tenant_row
from loraplex.platform.schema import ApiKey, Tenant

Change = Callable[[Budget], Budget]


@dataclass(frozen=True, slots=True)
class BudgetUse:
    """A budget, and what was spent in the period that goes on, as far as the ledger has written it. `tokens`,
    `cost_micros`: None: without bound. `renews_at`: None: never."""

    tokens: int | None
    cost_micros: int | None
    currency: str
    period: Period
    started_at: datetime
    renews_at: datetime | None
    used_tokens: int
    used_cost_micros: int


class BudgetOwners:
    """Each method is one transaction. change: gives the new budget for that of before."""

    def __init__(self, database: Database, calendar: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._database = database
        self._calendar = calendar

    async def of_tenant(self, slug: str) -> BudgetUse:
        """Raises TenantNotFound."""
        async with self._database.read() as session:
            return await self._use(session, await tenant_row(session, slug))

    async def of_key(self, key_id: str) -> BudgetUse:
        """Raises KeyNotFound."""
        async with self._database.read() as session:
            return await self._use(session, await key_row(session, key_id))

    async def set_tenant(self, slug: str, change: Change, *, by: Actor = SERVER) -> BudgetUse:
        """Raises TenantNotFound, and what `change` raises."""
        async with self._database.transaction() as session:
            tenant = await tenant_row(session, slug, for_update=True)
            before, after, use = await self._set(session, tenant, change)
            told = {"before": before, "after": after}
            await record(session, by, "tenant.budget", f"tenants/{slug}", tenant_id=tenant.id, **told)
            return use

    async def set_key(self, key_id: str, change: Change, *, by: Actor = SERVER) -> BudgetUse:
        """Raises KeyNotFound, and what `change` raises."""
        async with self._database.transaction() as session:
            key = await key_row(session, key_id, for_update=True)
            before, after, use = await self._set(session, key, change)
            told = {"before": before, "after": after}
            await record(session, by, "key.budget", f"keys/{key_id}", tenant_id=key.tenant_id, **told)
            return use

    async def _set(
        self, session: AsyncSession, owner: Tenant | ApiKey, change: Change
    ) -> tuple[Facts, Facts, BudgetUse]:
        """The budget of before, that of now, and its use."""
        before = stored_budget(owner.budget)
        after = change(before)
        owner.budget = to_row(after)
        use = await self._use(session, owner)
        await record_change(session, KEYS)
        return msgspec.to_builtins(before), msgspec.to_builtins(after), use

    async def _use(self, session: AsyncSession, owner: Tenant | ApiKey) -> BudgetUse:
        budget, currency = stored_budget(owner.budget), (await price_table(session)).currency
        start = period_start(budget.period, self._calendar())
        place = f"{'tenant' if isinstance(owner, Tenant) else 'key'}/{owner.id}", start
        spent = (await spendings(session, [place], currency))[place]
        return BudgetUse(
            tokens=budget.tokens,
            cost_micros=budget.cost_micros,
            currency=currency,
            period=budget.period,
            started_at=start,
            renews_at=renewal(budget.period, start),
            used_tokens=spent.tokens,
            used_cost_micros=spent.cost_micros,
        )

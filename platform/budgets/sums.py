"""What was spent since a day, as the ledger has written it. Knows rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from loraplex.platform.budgets.rules import NOTHING, Place, Spending, day_of
from loraplex.platform.ledger.schema import SpendingDay

SUBJECTS = 500
"""Of one statement."""


async def spendings(session: AsyncSession, places: Iterable[Place], currency: str) -> Mapping[Place, Spending]:
    """Of each. Costs: what was charged in that currency."""
    by_start: dict[datetime, list[str]] = defaultdict(list)
    for subject, start in places:
        by_start[start].append(subject)
    found: dict[Place, Spending] = {}
    for start, subjects in by_start.items():
        for first in range(0, len(subjects), SUBJECTS):
            await _add(session, subjects[first : first + SUBJECTS], start, currency, found)
    return found


async def _add(
    session: AsyncSession, subjects: Sequence[str], start: datetime, currency: str, found: dict[Place, Spending]
) -> None:
    group = SpendingDay.subject, SpendingDay.currency
    sums = func.sum(SpendingDay.tokens), func.sum(SpendingDay.cost_micros)
    wanted = SpendingDay.subject.in_(subjects), SpendingDay.day >= day_of(start)
    found.update(((subject, start), NOTHING) for subject in subjects)
    statement = select(*group, *sums).where(*wanted).group_by(*group)
    for subject, charged_in, tokens, cost in await session.execute(statement):
        spent = Spending(int(tokens), int(cost) if charged_in == currency else 0)
        found[subject, start] = found[subject, start].plus(spent)

"""What all servers of a database have used of limits: each tells what it took, and hears what all did.

Knows rows. An exchange is one short transaction, for all that a server has to tell at that moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError

from loraplex.adapters.database import Database
from loraplex.platform.limits.bucket import Use
from loraplex.platform.schema import RateUse

KEPT_SECONDS = 24 * 3600
"""A row that has not been written for so long says nothing but that all has come back; an older debt is forgiven."""


class Told(NamedTuple):
    """Of one tenant, key or adapter; None: it is not limited."""

    requests: Use | None
    tokens: Use | None


class SharedUse:
    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        """clock: of the wall, since servers share it. One that goes ahead of the others brings back that much early."""
        self._database = database
        self._clock = clock

    async def exchange(self, told: Mapping[str, Told]) -> dict[str, tuple[float, float]]:
        """By subject: of the requests and of the tokens that were taken, those that have not come back, on all servers.

        Raises the database's errors; then what was told may or may not have been heard.
        """
        try:
            return await self._exchange(told)
        except IntegrityError:  # another server has written the first row of the same subject
            return await self._exchange(told)

    async def drop_idle(self) -> None:
        """Forget rows that say nothing any more."""
        async with self._database.transaction() as session:
            await session.execute(delete(RateUse).where(RateUse.at < self._clock() - KEPT_SECONDS))

    async def _exchange(self, told: Mapping[str, Told]) -> dict[str, tuple[float, float]]:
        # All in one order, so that no two servers wait for each other.
        wanted = select(RateUse).where(RateUse.subject.in_(told)).order_by(RateUse.subject).with_for_update()
        async with self._database.transaction() as session:
            rows = {row.subject: row for row in await session.scalars(wanted)}
            now = self._clock()
            for subject in sorted(told):
                if subject not in rows:
                    rows[subject] = RateUse(subject=subject, requests=0.0, tokens=0.0, at=now)
                    session.add(rows[subject])
                _write(rows[subject], told[subject], now)
            return {subject: (row.requests, row.tokens) for subject, row in rows.items()}


def _write(row: RateUse, told: Told, now: float) -> None:
    seconds = max(0.0, now - row.at)
    row.requests = told.requests.after(row.requests, seconds) if told.requests else 0.0
    row.tokens = told.tokens.after(row.tokens, seconds) if told.tokens else 0.0
    row.at = max(row.at, now)

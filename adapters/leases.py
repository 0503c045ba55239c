"""Work that one server at a time does, of all that share a database.

Knows rows. A lease ends when its holder lets it go, or when its time is up: so long may work lie idle after a crash.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, select, update

from loraplex.adapters.database import Database
from loraplex.adapters.schema import Lease, now

JANITOR = "janitor"
"""The name of a lease; each has its row from the migrations on."""


class Leases:
    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def hold(self, name: str, time: timedelta) -> AsyncIterator[bool]:
        """Whether the lease is ours during the block: no while somebody else has it. Raises the database's errors."""
        began = now()
        ends = began + time
        is_ours = await self._set_end(name, Lease.expires_at <= began, ends)
        try:
            yield is_ours
        finally:
            if is_ours:
                await self._set_end(name, Lease.expires_at == ends, began)

    async def ends_at(self, name: str) -> datetime | None:
        """When the lease ends by itself, or began when somebody had it last; None: nobody ever has."""
        async with self._database.read() as session:
            return await session.scalar(select(Lease.expires_at).where(Lease.name == name))

    async def _set_end(self, name: str, condition: ColumnElement[bool], ends: datetime) -> bool:
        """Whether the condition held."""
        changed = update(Lease).where(Lease.name == name, condition).values(expires_at=ends).returning(Lease.name)
        async with self._database.transaction() as session:
            return await session.scalar(changed) is not None

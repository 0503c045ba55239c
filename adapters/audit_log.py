"""The reading side of the audit log: entries by what they are about, and whether the chain is whole.

Knows rows. Changes none; `note` alone writes, of what is done outside of the database.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Select, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from loraplex.adapters.audit import GENESIS, Actor, Facts, chained, content, record
from loraplex.adapters.database import Database
from loraplex.adapters.schema import AuditEntry, AuditHead

MAX_PAGE = 1000
"""Entries that are read at once."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which entries. What is None says nothing. `object`: an adapter's has the entries of its versions and aliases
    too. `actor`: an id or a login. `since` and `until`: the moments from which and before which it was."""

    tenant_id: str | None = None
    action: str | None = None
    object: str | None = None
    actor: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One change. `before`, `after`: what was told of the object; None: it was not there."""

    number: int
    at: datetime
    tenant_id: str | None
    action: str
    object: str
    actor: Actor
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    hash: str


@dataclass(frozen=True, slots=True)
class Link:
    """A place in the chain: an entry's number and hash."""

    number: int = 0
    hash: str = GENESIS


START = Link()


class ChainBroken(Exception):
    """An entry is not as it was written. `number`: the first that is not, or is missing."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(f"entry {number}: {why}")
        self.number = number


class AuditLog:
    """Each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def note(
        self, by: Actor, action: str, object: str, *, tenant_id: str | None = None, after: Facts | None = None
    ) -> None:
        """Record what has just been done, where there is no transaction that did it."""
        async with self._database.transaction() as session:
            await record(session, by, action, object, tenant_id=tenant_id, after=after)

    async def list(self, wanted: Wanted, limit: int, before: int | None = None) -> list[Entry]:
        """At most `limit` (1 to 1000) entries, the newest first; only those with numbers below `before`."""
        page = _select(wanted).order_by(AuditEntry.number.desc()).limit(min(max(limit, 1), MAX_PAGE))
        if before is not None:
            page = page.where(AuditEntry.number < before)
        async with self._database.read() as session:
            return [_entry(row) for row in await session.scalars(page)]

    async def contents(self, wanted: Wanted) -> AsyncIterator[dict[str, Any]]:
        """What all entries say, the first first, each with its `hash`; before and after are JSON already.

        Encoded with sorted keys, and without the hash, it is what the hash covers. No transaction is open while one is
        being looked at.
        """
        last = 0
        while True:
            page = _select(wanted).where(AuditEntry.number > last).order_by(AuditEntry.number).limit(MAX_PAGE)
            async with self._database.read() as session:
                rows = (await session.scalars(page)).all()
            for row in rows:
                yield {**content(row), "hash": row.hash}
            if len(rows) < MAX_PAGE:
                return
            last = rows[-1].number

    async def head(self) -> Link:
        """The end of the chain."""
        async with self._database.read() as session:
            return await _head(session)

    async def verify(self, after: Link = START) -> Link:
        """Follow the chain from a place that is known to be right, for at most MAX_PAGE entries; how far it was right.

        It is the end when it is `head`. Raises ChainBroken.
        """
        page = select(AuditEntry).where(AuditEntry.number > after.number).order_by(AuditEntry.number).limit(MAX_PAGE)
        async with self._database.read() as session:
            end = await _head(session)
            rows = (await session.scalars(page)).all()
        place = after
        for row in rows:
            if row.number != place.number + 1:
                raise ChainBroken(place.number + 1, "it is missing")
            if chained(place.hash, row) != row.hash:
                raise ChainBroken(row.number, "it is not what was written, or stands in another place")
            place = Link(row.number, row.hash)
        if len(rows) < MAX_PAGE and place != end:
            raise ChainBroken(min(place.number, end.number) + 1, f"the log ends otherwise, with entry {end.number}")
        return place


def _select(wanted: Wanted) -> Select[AuditEntry]:
    entries = select(AuditEntry)
    if wanted.tenant_id is not None:
        entries = entries.where(AuditEntry.tenant_id == wanted.tenant_id)
    if wanted.action is not None:
        entries = entries.where(AuditEntry.action == wanted.action)
    if wanted.object is not None:
        # "@" to "A", which comes after it: the versions and aliases, found by the index.
        parts = AuditEntry.object.between(f"{wanted.object}@", f"{wanted.object}A")
        entries = entries.where(or_(AuditEntry.object == wanted.object, parts))
    if wanted.actor is not None:
        entries = entries.where(or_(AuditEntry.actor_id == wanted.actor, AuditEntry.actor_name == wanted.actor))
    if wanted.since is not None:
        entries = entries.where(AuditEntry.at >= wanted.since)
    if wanted.until is not None:
        entries = entries.where(AuditEntry.at < wanted.until)
    return entries


async def _head(session: AsyncSession) -> Link:
    head = (await session.scalars(select(AuditHead))).one()
    return Link(head.number, head.hash)


def _entry(row: AuditEntry) -> Entry:
    actor = Actor(row.actor_kind, row.actor_id, row.actor_name, row.actor_tenant_id, row.request_id, row.address)  # type: ignore[arg-type]
    before, after = (None if facts is None else msgspec.json.decode(facts) for facts in (row.before, row.after))
    return Entry(row.number, row.at, row.tenant_id, row.action, row.object, actor, before, after, row.hash)

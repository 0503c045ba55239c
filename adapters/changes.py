"""What changed in the registry, in the order of commits, so that a server knows what it must ask for again.

Knows rows and subjects; knows no cache. A transaction that changes something others may have cached ends with
`record_change`; every server's `ChangeFeed` reads on from where it stood.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from sqlalchemy import delete, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from loraplex.adapters.database import Database
from loraplex.adapters.schema import RegistryChange, RegistryState

KEYS = "keys"
"""The subject of everything that decides whether an API key is valid."""

POLL_SECONDS = 1.0

MAX_STALE_SECONDS = 2.0
"""How old the last look may be for what was cached to be served: so long may a change made elsewhere go unseen."""

KEPT_CHANGES = 10_000
"""Changes that are kept; a server that missed more of them forgets all it cached."""

_RELEASE = "release/"
_DELETION = "deletion/"

Listener = Callable[[frozenset[str] | None], None]
"""Called with the subjects that changed; None: anything may have."""

_logger = logging.getLogger(__name__)


def names_of(tenant_id: str, adapter: str) -> str:
    """The subject of what the names of one adapter stand for."""
    return f"{tenant_id}/{adapter}"


def release_of(digest: str) -> str:
    """The subject of bytes whose quarantine has ended."""
    return _RELEASE + digest


def released(subjects: frozenset[str]) -> list[str]:
    """The digests among the subjects whose quarantine has ended."""
    return _digests(_RELEASE, subjects)


def deletion_of(digest: str) -> str:
    """The subject of bytes of which a version was deleted."""
    return _DELETION + digest


def deleted(subjects: frozenset[str]) -> list[str]:
    """The digests among the subjects of which a version was deleted. Others may have the same."""
    return _digests(_DELETION, subjects)


def _digests(kind: str, subjects: frozenset[str]) -> list[str]:
    return [subject.removeprefix(kind) for subject in subjects if subject.startswith(kind)]


async def record_change(session: AsyncSession, *subjects: str) -> None:
    """The last thing that a transaction does: it holds the counter's row until it commits, so that revisions rise in
    the order of commits, and whoever has seen one has seen all before it."""
    raised = RegistryState.revision + len(subjects)
    counted = update(RegistryState).values(revision=raised).returning(RegistryState.revision)
    revision = (await session.execute(counted)).scalar_one()
    session.add_all(RegistryChange(revision=revision - i, subject=subject) for i, subject in enumerate(subjects))
    await session.execute(delete(RegistryChange).where(RegistryChange.revision <= revision - KEPT_CHANGES))


class ChangeFeed:
    """Tells listeners on this server what changed, here or elsewhere. For the tasks of one event loop."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._listeners: list[Listener] = []
        self._seen: int | None = None
        self._looked_at = float("-inf")
        self._own_commits = 0

    def subscribe(self, listener: Listener) -> None:
        self._listeners.append(listener)

    async def refresh(self) -> None:
        """To be awaited before anything cached is served: looks, unless a look is recent and nothing was written here
        since. Raises the database's errors."""
        is_recent = self._clock() - self._looked_at < MAX_STALE_SECONDS
        if not is_recent or self._own_commits != self._database.commits:
            await self.look()

    async def look(self) -> None:
        """Read what changed since the last look and tell the listeners."""
        looked_at, own_commits = self._clock(), self._database.commits
        async with self._database.read() as session:
            revision = (await session.execute(select(RegistryState.revision))).scalar_one()
            subjects = await _subjects(session, self._seen, revision)
        # A look that began later may have ended earlier.
        if self._seen is None or revision >= self._seen:
            self._seen, self._looked_at, self._own_commits = revision, looked_at, own_commits
        if subjects is None or subjects:
            for listener in self._listeners:
                listener(subjects)

    async def follow(self) -> None:
        """Look at intervals, for ever. While the database does not answer, nothing that is cached is served."""
        while True:
            try:
                await self.look()
            except (OSError, SQLAlchemyError) as error:
                _logger.warning("cannot see what changed in the registry; trying again: %s", error)
            await asyncio.sleep(POLL_SECONDS)


async def _subjects(session: AsyncSession, seen: int | None, revision: int) -> frozenset[str] | None:
    """What changed after `seen`, up to `revision`; None when that is not known any more."""
    if seen == revision:
        return frozenset()
    if seen is None or revision - seen > KEPT_CHANGES:
        return None
    changes = select(RegistryChange.subject).where(RegistryChange.revision > seen)
    subjects = (await session.scalars(changes)).all()
    return frozenset(subjects) if len(subjects) == revision - seen else None

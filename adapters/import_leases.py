"""Imports as servers see them: take one up, hold it, end it or give it back.

Knows rows and leases; knows no network and no file. A job belongs to the server that holds its lease. Whoever has lost
it learns so at the next call and changes nothing; in particular nothing is published (`record_version`). So clocks that
differ between servers, or a server that hangs, can cost a second download, never a second version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from loraplex.adapters.database import Database
from loraplex.adapters.import_jobs import OPEN, ImportInfo, Progress, find_import, select_imports
from loraplex.adapters.lookup import VersionInfo
from loraplex.adapters.row_leases import LEASE, taken_up, write_held
from loraplex.adapters.schema import Adapter, BaseModel, ImportJob, now, storable

MAX_ATTEMPTS = 5

ABANDONED = {
    "code": "import_abandoned",
    "message": f"Its server stopped in the last of {MAX_ATTEMPTS} attempts; ask the operator what the log says.",
}


@dataclass(frozen=True, slots=True)
class Lease:
    """A job as it stood when it was taken up, and the proof of who took it up."""

    job: ImportInfo
    owner: str


class ImportLeases:
    """Each method is one transaction. Those that are given a lease raise LeaseLost where it is not held any more."""

    def __init__(self, database: Database, clock: Callable[[], datetime] = now) -> None:
        self._database = database
        self._clock = clock

    async def claim(self, base_model: str) -> Lease | None:
        """Take up, for LEASE, the job on a base that has been due longest; None where there is none."""
        jobs = select(ImportJob).join(Adapter).join(BaseModel, BaseModel.id == Adapter.base_model_id)
        open_jobs = jobs.where(ImportJob.state.in_(OPEN), BaseModel.name == base_model)
        async with taken_up(self._database, ImportJob, open_jobs, self._clock()) as taken:
            if taken is None:
                return None
            session, row = taken
            if row.attempt >= MAX_ATTEMPTS:
                row.state, row.lease_owner, row.error, row.finished_at = "failed", None, ABANDONED, self._clock()
                return None
            row.state, row.attempt, row.started_at = "running", row.attempt + 1, row.started_at or self._clock()
            row.file, row.bytes_done, row.bytes_total = None, 0, None
            await session.flush()
            assert row.lease_owner is not None
            job = await find_import(session, select_imports().where(ImportJob.id == row.id))
            return Lease(job, row.lease_owner)

    async def renew(self, lease: Lease, progress: Progress) -> None:
        """Hold the job for LEASE from now on, and tell how far it is."""
        await self._write(
            lease,
            due_at=self._clock() + LEASE,
            file=progress.file,
            bytes_done=progress.bytes_done,
            bytes_total=progress.bytes_total,
        )

    async def pin(self, lease: Lease, source: str) -> None:
        """From now on the job is about this source: what a name that moves stood for when the job began."""
        await self._write(lease, source=source)

    async def record_version(self, lease: Lease, session: AsyncSession, version: VersionInfo) -> None:
        """In the transaction that publishes the version of the job, so that both happen or neither does."""
        await _write(session, lease, version=version.number)

    async def succeed(self, lease: Lease) -> None:
        await self._write(lease, state="succeeded", error=None, lease_owner=None, finished_at=self._clock())

    async def fail(self, lease: Lease, error: Mapping[str, Any]) -> None:
        """error: code, message, details."""
        await self._write(lease, state="failed", error=storable(error), lease_owner=None, finished_at=self._clock())

    async def retry(self, lease: Lease, error: Mapping[str, Any], delay: timedelta) -> None:
        """Queue the job again, due when `delay` has passed; after the last attempt it fails."""
        if lease.job.attempt >= MAX_ATTEMPTS:
            await self.fail(lease, error)
        else:
            due_at = self._clock() + delay
            await self._write(lease, state="queued", error=storable(error), lease_owner=None, due_at=due_at)

    async def release(self, lease: Lease) -> None:
        """Give the job back as if it had not been taken up: its server is about to stop."""
        attempt, due_at = lease.job.attempt - 1, self._clock()
        await self._write(lease, state="queued", attempt=attempt, lease_owner=None, due_at=due_at)

    async def _write(self, lease: Lease, **values: Any) -> None:
        async with self._database.transaction() as session:
            await _write(session, lease, **values)


async def _write(session: AsyncSession, lease: Lease, **values: Any) -> None:
    await write_held(session, ImportJob, lease.job.id, lease.owner, **values)

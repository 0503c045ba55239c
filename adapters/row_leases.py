"""Rows that are jobs: each is worked on by one server at a time, of all that share a database.

Knows the columns that every table of jobs has (`schema.JobRow`); knows no job. A job belongs to the server that holds
its lease. Whoever has lost it learns so when it writes next, and changes nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import Select, update
from sqlalchemy.ext.asyncio import AsyncSession

from loraplex.adapters.database import Database
from loraplex.adapters.errors import LeaseLost
from loraplex.adapters.schema import JobRow, new_id

LEASE = timedelta(seconds=30)
"""How long after the last sign of life of its server another one takes a job up."""

Job = TypeVar("Job", bound=JobRow)


@asynccontextmanager
async def taken_up(
    database: Database, table: type[Job], open_jobs: Select[Job], moment: datetime
) -> AsyncIterator[tuple[AsyncSession, Job] | None]:
    """The first of the open jobs that are due, of equals the one that has been so longest, held for LEASE from the end
    of the block on; and the transaction that takes it up. None where there is none. Raises the database's errors."""
    first_due = open_jobs.where(table.due_at <= moment).order_by(table.due_at).limit(1)
    async with database.read() as session:  # servers look often and find something seldom
        is_due = await session.scalar(first_due) is not None
    if not is_due:
        yield None
        return
    async with database.transaction() as session:
        row = await session.scalar(first_due.with_for_update(of=table, skip_locked=True))
        if row is None:
            yield None
            return
        row.lease_owner, row.due_at = new_id(), moment + LEASE
        yield session, row


async def write_held(session: AsyncSession, table: type[JobRow], job_id: str, owner: str, **values: Any) -> None:
    """Change a job, in a transaction of the caller's. Raises LeaseLost, of which nothing may be committed, where
    `owner` does not hold it any more."""
    held = table.id == job_id, table.lease_owner == owner
    written = await session.execute(update(table).where(*held).values(**values).returning(table.id))
    if written.first() is None:
        raise LeaseLost("this job was ended, or another server has taken it up")

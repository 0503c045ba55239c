"""Batches as servers see them: take one up, hold it, write its answers down, end it or give it back.

Knows rows and leases; knows no engine and no file. An answer counts once it is in the database, in a transaction that
checks the lease: a server that was thought dead can cost lines that are run again, never a second answer to one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from loraplex.adapters.database import Database
from loraplex.adapters.errors import LeaseLost
from loraplex.adapters.row_leases import LEASE, taken_up, write_held
from loraplex.adapters.schema import now, storable
from loraplex.platform.batches.file_store import KeptFile
from loraplex.platform.batches.files import OPEN, file_row
from loraplex.platform.batches.rows import BatchStatus
from loraplex.platform.schema import Batch, BatchAnswer


@dataclass(frozen=True, slots=True)
class BatchLease:
    """A batch as it stood when it was taken up, and the proof of who took it up."""

    batch: Batch
    owner: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A line of the input by its number, and the line that answers it."""

    line: int
    is_error: bool
    content: bytes


class BatchLeases:
    """Each method is one transaction. Those that write raise LeaseLost where the lease is not held any more."""

    def __init__(self, database: Database, clock: Callable[[], datetime] = now) -> None:
        self._database = database
        self._clock = clock

    def now(self) -> datetime:
        return self._clock()

    async def claim(self, base_model: str) -> BatchLease | None:
        """Take up, for LEASE, the batch on a base that has been due longest, of the tenant with the fewest that are
        worked on; None where there is none.

        `attempt`: how often it was taken up since a line of it was last answered.
        """
        other, moment = aliased(Batch), self._clock()
        is_held = other.status.in_(OPEN), other.lease_owner.is_not(None), other.due_at > moment
        held = select(func.count()).where(other.tenant_id == Batch.tenant_id, *is_held).scalar_subquery()
        open_batches = select(Batch).where(Batch.status.in_(OPEN), Batch.base_model == base_model).order_by(held)
        async with taken_up(self._database, Batch, open_batches, moment) as taken:
            if taken is None:
                return None
            _, batch = taken
            batch.attempt += 1
        assert batch.lease_owner is not None
        return BatchLease(batch, batch.lease_owner)

    async def renew(self, lease: BatchLease) -> str:
        """Hold the batch for LEASE from now on; its status of now."""
        async with self._database.transaction() as session:
            await _write(session, lease, due_at=self._clock() + LEASE)
            return await _status(session, lease)

    async def begin(self, lease: BatchLease, total: int) -> None:
        """Its input is right and has that many lines; nothing happens where that is known."""
        async with self._database.transaction() as session:
            if await _status(session, lease) == "validating":
                await _write(session, lease, status="in_progress", in_progress_at=self._clock(), total=total)
            else:
                await _write(session, lease, total=total)

    async def fail(self, lease: BatchLease, errors: Sequence[Mapping[str, Any]]) -> None:
        """Its input is wrong. errors: code, line, message and param of each."""
        async with self._database.transaction() as session:
            await self._end(session, lease, "failed", errors=storable(errors))

    async def answered_lines(self, lease: BatchLease) -> set[int]:
        async with self._database.read() as session:
            return set(await session.scalars(select(BatchAnswer.line).where(BatchAnswer.batch_id == lease.batch.id)))

    async def record(self, lease: BatchLease, answers: Sequence[Answered]) -> None:
        """Answers to lines that have none. They are durable afterwards, and the lines have not to be run again."""
        failed = sum(answer.is_error for answer in answers)
        rows = [
            {"batch_id": lease.batch.id, "line": a.line, "is_error": a.is_error, "content": a.content} for a in answers
        ]
        async with self._database.transaction() as session:
            counts = {"completed": Batch.completed + len(answers) - failed, "failed": Batch.failed + failed}
            await _write(session, lease, attempt=0, **counts)
            await session.execute(insert(BatchAnswer), rows)

    async def answers(self, lease: BatchLease, first: int, last: int) -> dict[int, Answered]:
        """To the lines with these numbers and between, as far as there are any."""
        lines = BatchAnswer.batch_id == lease.batch.id, BatchAnswer.line >= first, BatchAnswer.line <= last
        async with self._database.read() as session:
            found = await session.scalars(select(BatchAnswer).where(*lines))
            return {row.line: Answered(row.line, row.is_error, row.content) for row in found}

    async def finalize(self, lease: BatchLease) -> str:
        """No more lines are run: its status from now on, finalizing unless it was cancelled."""
        async with self._database.transaction() as session:
            status = await _status(session, lease)
            if status == "in_progress":
                status = "finalizing"
                await _write(session, lease, status=status, finalizing_at=self._clock())
            return status

    async def finish(
        self, lease: BatchLease, status: BatchStatus, total: int, output: KeptFile | None, errors: KeptFile | None
    ) -> None:
        """End it with its files. Lines without an answer in the output have failed."""
        batch = lease.batch
        lifetime = timedelta(seconds=batch.output_seconds)
        async with self._database.transaction() as session:
            completed = await session.scalar(select(Batch.completed).where(Batch.id == batch.id)) or 0
            await self._end(
                session,
                lease,
                status,
                failed=total - completed,
                output_file_id=output and output.id,
                error_file_id=errors and errors.id,
            )
            for kept, name in ((output, "output"), (errors, "error")):
                if kept is not None:
                    filename = f"{batch.id}_{name}.jsonl"
                    args = batch.tenant_id, kept, filename
                    session.add(file_row(*args, "batch_output", lifetime, batch.api_key_id))

    async def release(self, lease: BatchLease, delay: timedelta | None = None) -> None:
        """Give it back: at once, as if it had not been taken up, since its server is about to stop; or to be taken up
        again when `delay` has passed, after an error that may pass."""
        due_at = self._clock() + (delay or timedelta())
        attempt = Batch.attempt if delay else Batch.attempt - 1
        async with self._database.transaction() as session:
            await _write(session, lease, lease_owner=None, due_at=due_at, attempt=attempt)

    async def _end(self, session: AsyncSession, lease: BatchLease, status: BatchStatus, **values: Any) -> None:
        moment = {f"{status}_at": self._clock()}
        await _write(session, lease, status=status, lease_owner=None, **moment, **values)
        await session.execute(delete(BatchAnswer).where(BatchAnswer.batch_id == lease.batch.id))


async def _status(session: AsyncSession, lease: BatchLease) -> str:
    """Which nobody else changes until the transaction ends."""
    held = Batch.id == lease.batch.id, Batch.lease_owner == lease.owner
    status = await session.scalar(select(Batch.status).where(*held).with_for_update())
    if status is None:
        raise LeaseLost("this batch was ended, or another server has taken it up")
    return status


async def _write(session: AsyncSession, lease: BatchLease, **values: Any) -> None:
    await write_held(session, Batch, lease.batch.id, lease.owner, **values)

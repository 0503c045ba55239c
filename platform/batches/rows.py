"""Batches as their tenants see them: asked for, how far they are, how they ended. The servers' side is `leases`.

Knows rows. Knows no line of any file.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Literal
from uuid import uuid4

from sqlalchemy import ColumnElement, delete, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from loraplex.adapters.audit import SERVER, Actor, record
from loraplex.adapters.database import Database
from loraplex.adapters.lookup import lock_tenant
from loraplex.adapters.schema import now, storable
from loraplex.platform.batches.errors import BatchEnded, BatchError, NoSuchBatch, TooManyBatches
from loraplex.platform.batches.files import OPEN, find_file
from loraplex.platform.schema import Batch, Tenant

BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
"""validating: until a server has read its input; finalizing: every line is answered, the files are being written."""

WINDOW = timedelta(hours=24)

MAX_ENDED = 1000
"""Ended batches of a tenant that are remembered."""


class Batches:
    """Each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self,
        tenant_id: str,
        *,
        api_key_id: str,
        base_model: str,
        endpoint: str,
        input_file_id: str,
        output_seconds: int,
        labels: Mapping[str, str] | None,
        max_open: int,
        by: Actor = SERVER,
    ) -> Batch:
        """A new batch. Raises NoSuchFile; TooManyBatches where the tenant has `max_open` that have not ended."""
        moment = now()
        async with self._database.transaction() as session:
            await lock_tenant(session, tenant_id)
            await find_file(session, tenant_id, input_file_id, "input_file_id")
            mine = select(Batch.id).where(Batch.tenant_id == tenant_id)
            unended = mine.where(Batch.status.in_(OPEN)).subquery()
            if (await session.scalar(select(func.count()).select_from(unended)) or 0) >= max_open:
                raise TooManyBatches(f"You have {max_open} batches open, the most allowed; wait for one or cancel one.")
            ended = mine.where(Batch.status.not_in(OPEN)).order_by(Batch.created_at.desc())
            await session.execute(delete(Batch).where(Batch.id.in_(ended.offset(MAX_ENDED))))
            batch = Batch(
                id=f"batch_{uuid4().hex}",
                tenant_id=tenant_id,
                api_key_id=api_key_id,
                base_model=base_model,
                endpoint=endpoint,
                input_file_id=input_file_id,
                output_seconds=output_seconds,
                labels=storable(labels),
                status="validating",
                due_at=moment,
                created_at=moment,
                expires_at=moment + WINDOW,
            )
            session.add(batch)
            after = {"endpoint": endpoint, "input_file_id": input_file_id}
            await record(session, by, "batch.create", f"batches/{batch.id}", tenant_id=tenant_id, after=after)
        return batch

    async def get(self, tenant_id: str, batch_id: str) -> Batch:
        """Raises NoSuchBatch."""
        async with self._database.read() as session:
            return await _find(session, *_is(tenant_id, batch_id))

    async def newest(self, tenant_id: str | None, limit: int) -> list[tuple[str, Batch]]:
        """At most `limit` batches of one tenant, or of all, newest first; each with its tenant's name."""
        wanted = select(Tenant.slug, Batch).join(Tenant, Tenant.id == Batch.tenant_id)
        if tenant_id is not None:
            wanted = wanted.where(Batch.tenant_id == tenant_id)
        ordered = wanted.order_by(Batch.created_at.desc(), Batch.id.desc()).limit(limit)
        async with self._database.read() as session:
            return [(tenant, batch) for tenant, batch in await session.execute(ordered)]

    async def list(self, tenant_id: str, limit: int, after: str | None) -> list[Batch]:
        """At most `limit` batches, the newest first. after: the last id of the page before; NoSuchBatch for no such."""
        wanted = select(Batch).where(Batch.tenant_id == tenant_id)
        async with self._database.read() as session:
            if after is not None:
                last = await _find(session, *_is(tenant_id, after))
                wanted = wanted.where(tuple_(Batch.created_at, Batch.id) < (last.created_at, last.id))
            ordered = wanted.order_by(Batch.created_at.desc(), Batch.id.desc())
            return list(await session.scalars(ordered.limit(limit)))

    async def cancel(self, tenant_id: str, batch_id: str, *, by: Actor = SERVER) -> Batch:
        """The batch, which its server ends at its next look; again is fine. Raises NoSuchBatch, BatchEnded."""
        async with self._database.transaction() as session:
            batch = await session.scalar(select(Batch).where(*_is(tenant_id, batch_id)).with_for_update())
            if batch is None:
                raise _no_batch()
            if batch.status in ("validating", "in_progress"):
                before = {"status": batch.status}
                batch.status, batch.cancelling_at = "cancelling", now()
                told = {"before": before, "after": {"status": "cancelling"}}
                await record(session, by, "batch.cancel", f"batches/{batch.id}", tenant_id=tenant_id, **told)
            elif batch.status not in ("cancelling", "cancelled"):
                raise BatchEnded(f"batch_id: this batch cannot be cancelled any more, its status is {batch.status}")
        return batch


async def _find(session: AsyncSession, *conditions: ColumnElement[bool]) -> Batch:
    batch = await session.scalar(select(Batch).where(*conditions))
    if batch is None:
        raise _no_batch()
    return batch


def _is(tenant_id: str, batch_id: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return Batch.tenant_id == tenant_id, Batch.id == batch_id


def _no_batch() -> BatchError:
    return NoSuchBatch("No such Batch object; GET /v1/batches lists yours.")

"""Tenants' files as rows: whose they are, how large, and until when. The bytes are in `file_store`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from sqlalchemy import ColumnElement, Select, delete, exists, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from loraplex.adapters.audit import SERVER, Actor, record
from loraplex.adapters.database import Database
from loraplex.adapters.lookup import lock_tenant
from loraplex.adapters.schema import now, storable
from loraplex.platform.batches.errors import FileInUse, FileLimitReached, NoSuchFile
from loraplex.platform.batches.file_store import KeptFile
from loraplex.platform.schema import Batch, StoredFile

Purpose = Literal["batch", "batch_output"]
Order = Literal["asc", "desc"]

OPEN = ("validating", "in_progress", "finalizing", "cancelling")
"""The statuses of batches that have not ended; they keep their input."""


@dataclass(frozen=True, slots=True)
class FileLimits:
    """Of one tenant: its files, and the sum of their sizes. What batches answer is kept beyond them."""

    max_files: int
    max_bytes: int


class Files:
    """Each method is one transaction. Nothing is found of a file that has expired."""

    def __init__(self, database: Database, limits: FileLimits) -> None:
        self._database = database
        self._limits = limits

    async def add(
        self, tenant_id: str, kept: KeptFile, filename: str, lifetime: timedelta, *, by: Actor = SERVER
    ) -> StoredFile:
        """A file for batches, whose bytes are kept. Raises FileLimitReached."""
        async with self._database.transaction() as session:
            await lock_tenant(session, tenant_id)
            await self._require_room(session, tenant_id, kept.size_bytes)
            file = file_row(tenant_id, kept, filename, "batch", lifetime, by.id)
            session.add(file)
            after = {"filename": file.filename, "size_bytes": file.size_bytes, "sha256": file.sha256}
            await record(session, by, "file.create", f"files/{file.id}", tenant_id=tenant_id, after=after)
        return file

    async def _require_room(self, session: AsyncSession, tenant_id: str, size_bytes: int) -> None:
        totals = select(func.count(StoredFile.id), func.coalesce(func.sum(StoredFile.size_bytes), 0))
        count, total_bytes = (await session.execute(totals.where(*_is_of(tenant_id)))).one()
        if count >= self._limits.max_files:
            raise FileLimitReached(f"You have {count} files, the most allowed; DELETE one that GET /v1/files lists.")
        if total_bytes + size_bytes > self._limits.max_bytes:
            raise FileLimitReached(
                f"With this file of {size_bytes} bytes your files would have {total_bytes + size_bytes}; the most "
                f"allowed is {self._limits.max_bytes}. DELETE one that GET /v1/files lists."
            )

    async def get(self, tenant_id: str, file_id: str, field: str = "file_id") -> StoredFile:
        """field: which names the file. Raises NoSuchFile."""
        async with self._database.read() as session:
            return await find_file(session, tenant_id, file_id, field)

    async def list(
        self, tenant_id: str, limit: int, *, after: str | None, order: Order, purpose: str | None
    ) -> list[StoredFile]:
        """At most `limit` files, by their age. after: the last id of the page before. Raises NoSuchFile for it."""
        position = tuple_(StoredFile.created_at, StoredFile.id)
        wanted = select(StoredFile).where(*_is_of(tenant_id))
        if purpose is not None:
            wanted = wanted.where(StoredFile.purpose == storable(purpose))
        async with self._database.read() as session:
            if after is not None:
                last = await find_file(session, tenant_id, after, "after")
                key = (last.created_at, last.id)
                wanted = wanted.where(position > key if order == "asc" else position < key)
            columns = (StoredFile.created_at, StoredFile.id)
            ordered = wanted.order_by(*(c.asc() if order == "asc" else c.desc() for c in columns))
            return list(await session.scalars(ordered.limit(limit)))

    async def delete(self, tenant_id: str, file_id: str, *, by: Actor = SERVER) -> None:
        """Raises NoSuchFile; FileInUse while a batch reads it."""
        async with self._database.transaction() as session:
            await lock_tenant(session, tenant_id)
            file = await find_file(session, tenant_id, file_id)
            if await session.scalar(_reading().where(Batch.input_file_id == file_id).limit(1)):
                raise FileInUse("file_id: a batch that has not ended reads this file; cancel it first, or wait")
            await session.delete(file)
            before = {"filename": file.filename, "size_bytes": file.size_bytes, "sha256": file.sha256}
            await record(session, by, "file.delete", f"files/{file.id}", tenant_id=tenant_id, before=before)

    async def drop_expired(self) -> None:
        """Forget the files whose time is up, unless a batch that has not ended reads them."""
        read = exists(_reading().where(Batch.input_file_id == StoredFile.id))
        async with self._database.transaction() as session:
            await session.execute(delete(StoredFile).where(StoredFile.expires_at <= now(), ~read))

    async def live_ids(self) -> Collection[str]:
        """Of all tenants' files."""
        async with self._database.read() as session:
            return set(await session.scalars(select(StoredFile.id)))


def file_row(
    tenant_id: str, kept: KeptFile, filename: str, purpose: Purpose, lifetime: timedelta, created_by: str | None
) -> StoredFile:
    moment = now()
    return StoredFile(
        id=kept.id,
        tenant_id=tenant_id,
        filename=storable(filename)[:255],
        purpose=purpose,
        size_bytes=kept.size_bytes,
        sha256=kept.sha256,
        created_at=moment,
        created_by=created_by,
        expires_at=moment + lifetime,
    )


async def find_file(session: AsyncSession, tenant_id: str, file_id: str, field: str = "file_id") -> StoredFile:
    """Raises NoSuchFile, of that field."""
    found = await session.scalar(select(StoredFile).where(StoredFile.id == file_id, *_is_of(tenant_id)))
    if found is None:
        raise NoSuchFile(file_id, field)
    return found


def _is_of(tenant_id: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return StoredFile.tenant_id == tenant_id, StoredFile.expires_at > now()


def _reading() -> Select[str]:
    return select(Batch.id).where(Batch.status.in_(OPEN))

"""Uploads that come in pieces: what was announced, for which adapter, and the version that it became.

Knows rows. The bytes, and how many of them are there, are in `upload_files`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Select, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from loraplex.adapters.audit import SERVER, Actor, record
from loraplex.adapters.database import Database
from loraplex.adapters.errors import UploadLimitReached, UploadNotFound
from loraplex.adapters.lookup import lock_adapter, lock_tenant, tenants
from loraplex.adapters.schema import Adapter, Upload, now
from loraplex.adapters.upload_files import AnnouncedFile

_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """Of one tenant: uploads that are open, and the sum of the sizes announced in them. `lifetime`: of an upload."""

    max_open: int
    max_bytes: int
    lifetime: timedelta


@dataclass(frozen=True, slots=True)
class UploadInfo:
    """`version`: the number of the version that it became; None while it is open."""

    id: str
    adapter: str
    files: tuple[AnnouncedFile, ...]
    version: int | None
    created_at: datetime
    expires_at: datetime

    def file(self, name: str) -> AnnouncedFile:
        """Raises UploadNotFound."""
        for file in self.files:
            if file.name == name:
                return file
        raise UploadNotFound(f"the upload has no file {ascii(name)[:70]}")


class UploadSessions:
    """Each method is one transaction. Nothing is found of an upload that has expired."""

    def __init__(self, database: Database, limits: UploadLimits) -> None:
        self._database = database
        self._limits = limits

    async def open(
        self, tenant_id: str, adapter: str, files: Sequence[AnnouncedFile], *, by: Actor = SERVER
    ) -> UploadInfo:
        """A new upload, of which no byte is there yet. Raises AdapterNotFound, UploadLimitReached."""
        size_bytes = sum(file.size_bytes for file in files)
        async with self._database.transaction() as session:
            await lock_tenant(session, tenant_id)
            owner = await lock_adapter(session, tenant_id, adapter)
            await self._require_room(session, tenant_id, size_bytes)
            upload = Upload(
                adapter_id=owner.id,
                files=[asdict(file) for file in files],
                size_bytes=size_bytes,
                created_by=by.id,
                expires_at=now() + self._limits.lifetime,
            )
            session.add(upload)
            await session.flush()
            after = {"adapter": adapter, "files": upload.files}
            await record(session, by, "upload.open", f"uploads/{upload.id}", tenant_id=tenant_id, after=after)
            return _info(upload, adapter)

    async def _require_room(self, session: AsyncSession, tenant_id: str, size_bytes: int) -> None:
        totals = select(func.count(Upload.id), func.coalesce(func.sum(Upload.size_bytes), 0))
        mine = totals.join(Adapter, Adapter.id == Upload.adapter_id).where(Adapter.tenant_id == tenant_id)
        count, open_bytes = (await session.execute(mine.where(*_is_open()))).one()
        remedy = "complete or DELETE one of those that GET /api/v1/uploads lists"
        if count >= self._limits.max_open:
            raise UploadLimitReached(f"you have {count} uploads open, the most allowed; {remedy}")
        if open_bytes + size_bytes > self._limits.max_bytes:
            raise UploadLimitReached(
                f"with these {size_bytes} bytes your open uploads would have {open_bytes + size_bytes}; "
                f"the most allowed is {self._limits.max_bytes}; {remedy}"
            )

    async def get(self, tenant_id: str, upload_id: str) -> UploadInfo:
        """Raises UploadNotFound."""
        if not _ID.fullmatch(upload_id):
            raise _not_found()
        async with self._database.read() as session:
            found = (await session.execute(_uploads_of(tenant_id).where(Upload.id == upload_id))).first()
        if found is None:
            raise _not_found()
        return _info(*found)

    async def list_open(self, tenant_id: str) -> list[UploadInfo]:
        """The newest first."""
        wanted = _uploads_of(tenant_id).where(*_is_open()).order_by(Upload.created_at.desc())
        async with self._database.read() as session:
            return [_info(upload, adapter) for upload, adapter in await session.execute(wanted)]

    async def newest_open(self, tenant_id: str | None, limit: int) -> list[tuple[str, UploadInfo]]:
        """At most `limit` of one tenant, or of all, newest first; each with its tenant's name."""
        uploads = select(Upload, Adapter.name, tenants.c.slug).join(Adapter, Adapter.id == Upload.adapter_id)
        wanted = uploads.join(tenants, tenants.c.id == Adapter.tenant_id).where(*_is_open())
        if tenant_id is not None:
            wanted = wanted.where(Adapter.tenant_id == tenant_id)
        async with self._database.read() as session:
            rows = await session.execute(wanted.order_by(Upload.created_at.desc(), Upload.id).limit(limit))
            return [(tenant, _info(upload, adapter)) for upload, adapter, tenant in rows]

    async def close(self, upload_id: str, version: int) -> None:
        """It has become this version; again is fine."""
        async with self._database.transaction() as session:
            await session.execute(update(Upload).where(Upload.id == upload_id).values(version_number=version))

    async def drop(self, tenant_id: str, upload: UploadInfo, *, by: Actor = SERVER) -> None:
        """Forget it; again is fine."""
        async with self._database.transaction() as session:
            dropped = await session.scalar(delete(Upload).where(Upload.id == upload.id).returning(Upload.id))
            if dropped is not None:
                before = {"adapter": upload.adapter, "version": upload.version}
                await record(session, by, "upload.drop", f"uploads/{upload.id}", tenant_id=tenant_id, before=before)

    async def drop_expired(self) -> None:
        """Forget those whose time is up, whatever became of them."""
        async with self._database.transaction() as session:
            await session.execute(delete(Upload).where(Upload.expires_at <= now()))

    async def open_ids(self) -> set[str]:
        """The uploads whose files are still needed: every tenant's that are open."""
        async with self._database.read() as session:
            return set(await session.scalars(select(Upload.id).where(*_is_open())))


def _uploads_of(tenant_id: str) -> Select[Upload, str]:
    uploads = select(Upload, Adapter.name).join(Adapter, Adapter.id == Upload.adapter_id)
    return uploads.where(Adapter.tenant_id == tenant_id, Upload.expires_at > now())


def _is_open() -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return Upload.version_number.is_(None), Upload.expires_at > now()


def _info(upload: Upload, adapter: str) -> UploadInfo:
    return UploadInfo(
        id=upload.id,
        adapter=adapter,
        files=tuple(AnnouncedFile(**file) for file in upload.files),
        version=upload.version_number,
        created_at=upload.created_at,
        expires_at=upload.expires_at,
    )


def _not_found() -> UploadNotFound:
    return UploadNotFound("no such upload; it may have expired")

"""Imports as jobs: what was asked for, how far it is, and how it ended. The servers' side of a job is `import_leases`.

Knows rows. Knows no network and no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast

from sqlalchemy import Select, and_, delete, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from loraplex.adapters.audit import SERVER, Actor, record
from loraplex.adapters.database import Database
from loraplex.adapters.errors import ImportEnded, ImportNotFound, InvalidName, TooManyImports
from loraplex.adapters.lookup import VersionState, lock_adapter, lock_tenant, tenants
from loraplex.adapters.schema import Adapter, AdapterVersion, ImportJob, new_id, now

ImportState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
"""queued: a server will take it up, at once or, after an error that may pass, later; running: a server is at it."""

OPEN: tuple[ImportState, ...] = ("queued", "running")

MAX_ENDED = 1000
"""Ended jobs of a tenant that are remembered."""


@dataclass(frozen=True, slots=True)
class Progress:
    """`file`: the one being fetched. The bytes are those of all files; their total is None until it is known."""

    file: str | None = None
    bytes_done: int = 0
    bytes_total: int | None = None


@dataclass(frozen=True, slots=True)
class ImportInfo:
    """A job as it stood at one moment. `version`: its number once published; `version_state`: the state of that now.

    `error`: code, message and details of the last attempt, unless it succeeded. `created_by`: the id of the API key or
    account.
    """

    id: str
    tenant_id: str
    tenant: str
    adapter: str
    source: str
    state: ImportState
    attempt: int
    progress: Progress
    version: int | None
    version_state: VersionState | None
    error: Mapping[str, Any] | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    created_by: str | None


class ImportJobs:
    """What tenants do with their imports. Each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self, tenant_id: str, adapter: str, source: str, *, max_open: int, by: Actor = SERVER
    ) -> ImportInfo:
        """A new job. Raises AdapterNotFound; TooManyImports where the tenant has `max_open` that have not ended."""
        async with self._database.transaction() as session:
            await lock_tenant(session, tenant_id)
            adapter_id = (await lock_adapter(session, tenant_id, adapter)).id
            jobs = select(ImportJob.id).join(Adapter).where(Adapter.tenant_id == tenant_id)
            unended = jobs.where(ImportJob.state.in_(OPEN)).subquery()
            if (await session.scalar(select(func.count()).select_from(unended)) or 0) >= max_open:
                raise TooManyImports(f"You have {max_open} imports open, the most allowed; wait for one or cancel one.")
            ended = jobs.where(ImportJob.state.not_in(OPEN)).order_by(ImportJob.created_at.desc())
            await session.execute(delete(ImportJob).where(ImportJob.id.in_(ended.offset(MAX_ENDED))))
            job = ImportJob(
                id=new_id(), adapter_id=adapter_id, source=source, state="queued", due_at=now(), created_by=by.id
            )
            session.add(job)
            after = {"adapter": adapter, "source": source}
            await record(session, by, "import.create", f"imports/{job.id}", tenant_id=tenant_id, after=after)
            return await find_import(session, _of(tenant_id, job.id))

    async def get(self, tenant_id: str, import_id: str) -> ImportInfo:
        """Raises ImportNotFound."""
        async with self._database.read() as session:
            return await find_import(session, _of(tenant_id, import_id))

    async def newest(self, tenant_id: str | None, limit: int) -> list[ImportInfo]:
        """At most `limit` jobs of one tenant, or of all, newest first."""
        jobs = select_imports().order_by(ImportJob.created_at.desc(), ImportJob.id.desc()).limit(limit)
        async with self._database.read() as session:
            return [_import_info(*row) for row in await session.execute(_owned(jobs, tenant_id))]

    async def list(self, tenant_id: str, limit: int, after: str | None = None) -> list[ImportInfo]:
        """At most `limit` of a tenant's jobs, newest first. after: id of the last job of the page before.

        Raises InvalidName.
        """
        page = select_imports().where(Adapter.tenant_id == tenant_id)
        async with self._database.read() as session:
            if after is not None:
                try:
                    last = await find_import(session, _of(tenant_id, after))
                except ImportNotFound as error:
                    raise InvalidName("after", "no import of yours has this id; begin without it") from error
                page = page.where(tuple_(ImportJob.created_at, ImportJob.id) < (last.created_at, last.id))
            newest_first = page.order_by(ImportJob.created_at.desc(), ImportJob.id.desc()).limit(limit)
            return [_import_info(*row) for row in await session.execute(newest_first)]

    async def cancel(self, tenant_id: str, import_id: str, *, by: Actor = SERVER) -> ImportInfo:
        """The cancelled job; again is fine. Its server stops at its next look.

        Raises ImportNotFound; ImportEnded where it has ended otherwise or has published its version.
        """
        async with self._database.transaction() as session:
            wanted = select(ImportJob).join(Adapter).where(Adapter.tenant_id == tenant_id, ImportJob.id == import_id)
            row = await session.scalar(wanted.with_for_update(of=ImportJob))
            if row is not None and row.state != "cancelled":
                if row.version is not None:
                    raise ImportEnded(f"This import has published version {row.version} already; delete that instead.")
                if row.state not in OPEN:
                    raise ImportEnded(f"This import has {row.state} already.")
                before = {"state": row.state}
                row.state, row.lease_owner, row.finished_at = "cancelled", None, now()
                where, after = f"imports/{row.id}", {"state": row.state}
                await record(session, by, "import.cancel", where, tenant_id=tenant_id, before=before, after=after)
            return await find_import(session, _of(tenant_id, import_id))


ImportRows = Select[ImportJob, str, str, str, str]


def select_imports() -> ImportRows:
    """Jobs, each with its tenant's id and name, its adapter's name, and the state of the version that it published."""
    published = and_(AdapterVersion.adapter_id == ImportJob.adapter_id, AdapterVersion.number == ImportJob.version)
    return (
        select(ImportJob, Adapter.tenant_id, tenants.c.slug, Adapter.name, AdapterVersion.state)
        .join(Adapter, Adapter.id == ImportJob.adapter_id)
        .join(tenants, tenants.c.id == Adapter.tenant_id)
        .outerjoin(AdapterVersion, published)
    )


async def find_import(session: AsyncSession, imports: ImportRows) -> ImportInfo:
    """Raises ImportNotFound."""
    for row in await session.execute(imports):
        return _import_info(*row)
    raise ImportNotFound("id: you have no such import")


def _owned(imports: ImportRows, tenant_id: str | None) -> ImportRows:
    return imports if tenant_id is None else imports.where(Adapter.tenant_id == tenant_id)


def _of(tenant_id: str, import_id: str) -> ImportRows:
    return select_imports().where(Adapter.tenant_id == tenant_id, ImportJob.id == import_id)


def _import_info(job: ImportJob, tenant_id: str, tenant: str, adapter: str, version_state: str | None) -> ImportInfo:
    return ImportInfo(
        id=job.id,
        tenant_id=tenant_id,
        tenant=tenant,
        adapter=adapter,
        source=job.source,
        state=cast("ImportState", job.state),
        attempt=job.attempt,
        progress=Progress(job.file, job.bytes_done, job.bytes_total),
        version=job.version,
        version_state=cast("VersionState | None", version_state),
        error=job.error,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        created_by=job.created_by,
    )

"""The bodies of the imports API: what is to be fetched, how far it is, and how it ended."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from msgspec import Meta, Struct, convert

from loraplex.adapters.import_jobs import ImportInfo, ImportState
from loraplex.adapters.lookup import VersionState
from loraplex.platform.manage.adapter_schemas import Name


class CreateImport(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`source`: hf://org/repo@COMMIT, hf://org/repo@BRANCH, whose commit is looked up once, or s3://bucket/prefix."""

    adapter: Name
    source: Annotated[str, Meta(min_length=1, max_length=500)]


class ImportFailure(Struct, frozen=True, kw_only=True):
    """Why the last attempt did not succeed. `details`: of code `adapter_invalid`, every failed check."""

    code: str
    message: str
    details: Any = None


class ImportView(Struct, frozen=True, kw_only=True):
    """An error that may pass queues the job again, until its 5th attempt. A branch in `source` becomes its commit.

    `file`: the one being fetched; the bytes are those of both files. `version` is set once it is published, and
    `version_state` is the state of that version now. `created_by`: the id of the API key or account.
    """

    id: str
    adapter: str
    source: str
    state: ImportState
    attempt: int
    file: str | None
    bytes_done: int
    bytes_total: int | None
    version: int | None
    version_state: VersionState | None
    error: ImportFailure | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    created_by: str | None

    @classmethod
    def of(cls, job: ImportInfo) -> ImportView:
        return cls(
            id=job.id,
            adapter=job.adapter,
            source=job.source,
            state=job.state,
            attempt=job.attempt,
            file=job.progress.file,
            bytes_done=job.progress.bytes_done,
            bytes_total=job.progress.bytes_total,
            version=job.version,
            version_state=job.version_state,
            error=None if job.error is None else convert(job.error, ImportFailure),
            created_at=job.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            created_by=job.created_by,
        )


class ImportPage(Struct, frozen=True):
    """`next`: give it as `after` to get the next page; null on the last one."""

    data: list[ImportView]
    next: str | None

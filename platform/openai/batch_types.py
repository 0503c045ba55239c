"""The bodies of files and batches, as OpenAI has them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, convert

from loraplex.platform.batches.files import Purpose
from loraplex.platform.batches.rows import BatchStatus
from loraplex.platform.schema import Batch, StoredFile

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
"""Whose requests may stand in a batch."""

MIN_LIFETIME_SECONDS = 3600
MAX_LIFETIME_SECONDS = 30 * 24 * 3600
Lifetime = Annotated[int, Meta(ge=MIN_LIFETIME_SECONDS, le=MAX_LIFETIME_SECONDS)]
"""Seconds for which a file is kept."""

MAX_LABELS = 16

# -- files ---------------------------------------------------------------------------------------------------------


class FileObject(Struct, frozen=True, kw_only=True):
    """`status`: always processed; what is in a file is looked at when a batch reads it."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Purpose
    status: Literal["processed"] = "processed"

    @classmethod
    def of(cls, file: StoredFile) -> FileObject:
        return cls(
            id=file.id,
            bytes=file.size_bytes,
            created_at=_seconds(file.created_at),
            expires_at=_seconds(file.expires_at),
            filename=file.filename,
            purpose=convert(file.purpose, Purpose),
        )


class FileList(Struct, frozen=True, kw_only=True):
    """`has_more`: ask again with `after` = the last id."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


# -- batches -------------------------------------------------------------------------------------------------------


class ExpiresAfter(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    anchor: Literal["created_at"]
    seconds: Lifetime


class CreateBatch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`input_file_id`: of a file with the purpose batch. `output_expires_after`: of the files that the batch makes."""

    input_file_id: Annotated[str, Meta(max_length=64)]
    endpoint: Annotated[str, Meta(max_length=64)]
    completion_window: Literal["24h"]
    metadata: dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]] | None = None
    output_expires_after: ExpiresAfter | None = None


class RequestCounts(Struct, frozen=True):
    total: int
    completed: int
    failed: int


class InputError(Struct, frozen=True, kw_only=True):
    """`line`: of the input, from 1 on; null where the file as a whole is wrong."""

    code: str | None
    line: int | None
    message: str
    param: str | None


class InputErrors(Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[InputError]


class BatchObject(Struct, frozen=True, kw_only=True):
    """`errors`: of a batch that failed, every wrong line of its input. `error_file_id`: the requests that were answered
    with an error, and those that were not run. Times are Unix time in seconds."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: InputErrors | None
    input_file_id: str
    completion_window: Literal["24h"] = "24h"
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None

    @classmethod
    def of(cls, batch: Batch) -> BatchObject:
        moments: dict[str, Any] = {
            name: None if (moment := getattr(batch, name)) is None else _seconds(moment)
            for name in cls.__struct_fields__
            if name.endswith("_at")
        }
        return cls(
            id=batch.id,
            endpoint=batch.endpoint,
            errors=None if batch.errors is None else InputErrors(data=convert(batch.errors, list[InputError])),
            input_file_id=batch.input_file_id,
            status=convert(batch.status, BatchStatus),
            output_file_id=batch.output_file_id,
            error_file_id=batch.error_file_id,
            request_counts=RequestCounts(batch.total, batch.completed, batch.failed),
            metadata=batch.labels,
            **moments,
        )


class BatchList(Struct, frozen=True, kw_only=True):
    """`has_more`: ask again with `after` = the last id."""

    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())

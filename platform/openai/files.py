"""/v1/files: what batches read and what they answer. A file belongs to its tenant; nobody else's is ever found."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from anyio import to_thread
from litestar import Request, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter
from litestar.response import File

from loraplex.adapters.audit import Actor
from loraplex.platform.audit_rules import audited
from loraplex.platform.batches.errors import NoSuchFile
from loraplex.platform.batches.files import Order
from loraplex.platform.errors import ApiError
from loraplex.platform.manage.uploads import PartTarget, UploadSlots, receive_parts
from loraplex.platform.openai.batch_types import (
    MAX_LIFETIME_SECONDS,
    MIN_LIFETIME_SECONDS,
    FileDeleted,
    FileList,
    FileObject,
)
from loraplex.platform.services import Services

PURPOSE, ANCHOR, SECONDS = "purpose", "expires_after[anchor]", "expires_after[seconds]"
FIELD_BYTES = 64
FORM_TEXT = "`purpose` (batch) and `file` (JSON lines)"
MAX_PAGE = 10_000

FILE_FORM = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "required": ["file", PURPOSE],
            "properties": {
                "file": {"type": "string", "format": "binary"},
                PURPOSE: {"type": "string", "enum": ["batch"]},
                ANCHOR: {"type": "string", "enum": ["created_at"]},
                SECONDS: {"type": "integer", "minimum": MIN_LIFETIME_SECONDS, "maximum": MAX_LIFETIME_SECONDS},
            },
        }
    }
}


@post(
    "/files",
    status_code=200,
    request_max_body_size=None,
    opt={"scope": "inference", "request_body": FILE_FORM, **audited("file.create")},
    tags=["openai"],
)
async def create_file(
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    tenant_id: NamedDependency[str],
    upload_slots: NamedDependency[UploadSlots],
    by: NamedDependency[Actor],
) -> FileObject:
    """Upload the input of a batch, as multipart/form-data: `file`, and `purpose`, which is batch.

    It is kept for `expires_after[seconds]` from `expires_after[anchor]`, which is created_at; without them for as long
    as the operator has set.
    """
    settings, store = services.settings, services.file_store
    with upload_slots.take(tenant_id), store.stage() as folder:
        targets = {
            "file": PartTarget(folder / "file", settings.max_file_bytes),
            PURPOSE: PartTarget(folder / "purpose", FIELD_BYTES),
            ANCHOR: PartTarget(folder / "anchor", FIELD_BYTES, required=False),
            SECONDS: PartTarget(folder / "seconds", FIELD_BYTES, required=False),
        }
        file = (await receive_parts(request, targets, FORM_TEXT))["file"]
        fields = await to_thread.run_sync(_read_fields, targets)
        if fields[PURPOSE] != "batch":
            raise ApiError(400, "invalid_value", "'purpose' must be batch; no other is served here.", param=PURPOSE)
        lifetime = _lifetime(fields, settings.file_expiry_seconds)
        kept = await to_thread.run_sync(store.keep, folder / "file", file.size_bytes, file.sha256)
        try:
            row = await services.files.add(tenant_id, kept, file.filename or "file.jsonl", lifetime, by=by)
        except BaseException:
            store.discard(kept.id)
            raise
    return FileObject.of(row)


def _read_fields(targets: dict[str, PartTarget]) -> dict[str, str]:
    """The form's short fields that were sent."""
    fields: dict[str, Path] = {name: target.path for name, target in targets.items() if name != "file"}
    return {name: path.read_bytes().decode(errors="replace") for name, path in fields.items() if path.exists()}


def _lifetime(fields: dict[str, str], default_seconds: float) -> timedelta:
    """How long the file is kept. Raises ApiError."""
    if ANCHOR not in fields and SECONDS not in fields:
        return timedelta(seconds=default_seconds)
    if fields.get(ANCHOR) != "created_at":
        raise ApiError(400, "invalid_value", f"'{ANCHOR}' must be created_at.", param=ANCHOR)
    text = fields.get(SECONDS, "")
    is_number = text.isascii() and text.isdigit() and len(text) <= 10
    if not is_number or not MIN_LIFETIME_SECONDS <= int(text) <= MAX_LIFETIME_SECONDS:
        bounds = f"{MIN_LIFETIME_SECONDS} to {MAX_LIFETIME_SECONDS}"
        raise ApiError(400, "invalid_value", f"'{SECONDS}' must be a whole number from {bounds}.", param=SECONDS)
    return timedelta(seconds=int(text))


@get("/files", opt={"scope": "inference"}, tags=["openai"])
async def list_files(
    services: NamedDependency[Services],
    tenant_id: NamedDependency[str],
    limit: Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)] = MAX_PAGE,
    after: Annotated[str | None, QueryParameter(max_length=64)] = None,
    order: Annotated[Order, QueryParameter()] = "desc",
    purpose: Annotated[str | None, QueryParameter(max_length=64)] = None,
) -> FileList:
    """Your files, the newest first unless `order` is asc. A file that has expired is none."""
    found = await services.files.list(tenant_id, limit + 1, after=after, order=order, purpose=purpose)
    page = [FileObject.of(file) for file in found[:limit]]
    ends = (page[0].id, page[-1].id) if page else (None, None)
    return FileList(data=page, first_id=ends[0], last_id=ends[1], has_more=len(found) > limit)


@get("/files/{file_id:str}", opt={"scope": "inference"}, tags=["openai"])
async def get_file(
    file_id: FromPath[str], services: NamedDependency[Services], tenant_id: NamedDependency[str]
) -> FileObject:
    """One file, without its bytes."""
    return FileObject.of(await services.files.get(tenant_id, file_id))


@get(
    "/files/{file_id:str}/content", opt={"scope": "inference"}, tags=["openai"], media_type="application/octet-stream",
)  # fmt: skip
async def get_file_content(
    file_id: FromPath[str], services: NamedDependency[Services], tenant_id: NamedDependency[str]
) -> File:
    """The bytes of a file."""
    file = await services.files.get(tenant_id, file_id)
    path = services.file_store.path(file.id)
    if not await to_thread.run_sync(path.is_file):  # it expired just now, or this server does not share the folder
        raise NoSuchFile(file_id)
    return File(path=path, filename=f"{file.id}.jsonl", media_type="application/octet-stream")


@delete("/files/{file_id:str}", status_code=200, opt={"scope": "inference"} | audited("file.delete"), tags=["openai"])
async def delete_file(
    file_id: FromPath[str],
    services: NamedDependency[Services],
    tenant_id: NamedDependency[str],
    by: NamedDependency[Actor],
) -> FileDeleted:
    """Delete a file, unless a batch that has not ended reads it."""
    await services.files.delete(tenant_id, file_id, by=by)
    await to_thread.run_sync(services.file_store.discard, file_id)
    return FileDeleted(id=file_id)


FILE_ROUTES = [create_file, list_files, get_file, get_file_content, delete_file]

"""Uploads that come in pieces and go on where they broke off: announced, sent from an offset on, completed.

The headers are those of the IETF's draft on resumable uploads. What the server acknowledges stays, whichever side dies;
once the files are whole they go the way of every upload (`publishing`).
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

import msgspec
from anyio import to_thread
from litestar import Request, Response, Router, delete, get, head, patch, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, HeaderParameter, JSONBody

from loraplex.adapters.audit import Actor
from loraplex.adapters.blobs import (
    ADAPTER_FILES,
    PROMPT_FILES,
    TEMPLATE_FILE,
    TOKENIZER_CONFIG_FILE,
    WEIGHTS_FILE,
)
from loraplex.adapters.errors import AdapterUnavailable, UploadIncomplete, VersionNotFound
from loraplex.adapters.registry import VersionInfo
from loraplex.adapters.types import received_digest
from loraplex.adapters.upload_files import AnnouncedFile, GrowingFile
from loraplex.adapters.upload_sessions import UploadInfo
from loraplex.platform.audit_rules import audited, unaudited
from loraplex.platform.errors import ApiError
from loraplex.platform.manage.idempotency import REUSED, Once
from loraplex.platform.manage.upload_schemas import OpenUpload, UploadList, UploadView
from loraplex.platform.manage.uploads import CLOSE, UploadSlots, blocks, content_length
from loraplex.platform.manage.version_schemas import VersionDetail
from loraplex.platform.manage.versions import published_answer
from loraplex.platform.publishing import max_file_bytes, publish_staged, require_served
from loraplex.platform.services import Services

BYTES_FROM_OFFSET = "application/offset+octet-stream"
FILE_PATH = "/{upload_id:str}/files/{name:str}"


@post(
    "/",
    responses={
        200: ResponseSpec(UploadView, description="These files are yours already", generate_examples=False),
        **REUSED,
    },
    opt=audited("upload.open", "version.publish"),
)
async def open_upload(
    data: JSONBody[OpenUpload],
    services: NamedDependency[Services],
    tenant_id: NamedDependency[str],
    once: NamedDependency[Once],
    by: NamedDependency[Actor],
) -> Response[UploadView]:
    """Announce the files of an adapter's next version. 201: an upload, whose files PATCH sends from their offset on.

    200 with state `published` and no id: these very files are a version of this adapter already, or have become one
    because another of your adapters is served from them; nothing is to be sent.
    """
    async with once.attempt(msgspec.json.encode(data)) as attempt:
        if attempt.answer is not None:
            return attempt.answer
        await require_served(services, tenant_id, data.adapter)
        files = data.announced()
        _require_acceptable(files, max_file_bytes(services))
        known = await _known_version(services, tenant_id, data.adapter, files, by)
        if known is not None:
            return attempt.keep(Response(UploadView.over(files, known), status_code=200))
        await services.registry.check_room(tenant_id, {file.name: file.size_bytes for file in files}[WEIGHTS_FILE])
        opened = await services.uploads.open(tenant_id, data.adapter, files, by=by)
        nothing_yet = {file.name: 0 for file in files}
        return attempt.keep(Response(UploadView.under_way(opened, nothing_yet), status_code=201))


@get("/")
async def list_uploads(services: NamedDependency[Services], tenant_id: NamedDependency[str]) -> UploadList:
    """Your uploads that are open, the newest first."""
    uploads = await services.uploads.list_open(tenant_id)
    return UploadList([UploadView.under_way(upload, await _offsets(services, upload)) for upload in uploads])


@get("/{upload_id:str}")
async def get_upload(
    upload_id: FromPath[str], services: NamedDependency[Services], tenant_id: NamedDependency[str]
) -> UploadView:
    """An upload with the offset of each file, or with the version that it became."""
    upload = await services.uploads.get(tenant_id, upload_id)
    if upload.version is None:
        return UploadView.under_way(upload, await _offsets(services, upload))
    version = await services.registry.get_version(tenant_id, upload.adapter, upload.version)
    return UploadView.over(upload.files, version, upload)


@head(FILE_PATH)
async def get_offset(
    upload_id: FromPath[str],
    name: FromPath[str],
    services: NamedDependency[Services],
    tenant_id: NamedDependency[str],
) -> Response[None]:
    """How much of a file is there, in `Upload-Offset`, and how much there will be, in `Upload-Length`."""
    upload = await services.uploads.get(tenant_id, upload_id)
    file = upload.file(name)
    offset = (await _offsets(services, upload))[name]
    headers = {"upload-offset": str(offset), "upload-length": str(file.size_bytes), "cache-control": "no-store"}
    return Response(None, headers=headers)


@patch(
    FILE_PATH,
    status_code=204,
    request_max_body_size=None,
    opt={"request_body": {BYTES_FROM_OFFSET: {"schema": {"type": "string", "format": "binary"}}}}
    | unaudited("bytes of an upload that was announced: what they become has an entry"),
)
async def append_to_file(
    upload_id: FromPath[str],
    name: FromPath[str],
    upload_offset: Annotated[
        int, HeaderParameter(name="Upload-Offset", ge=0, description="Of the first byte that is sent now.")
    ],
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    tenant_id: NamedDependency[str],
    upload_slots: NamedDependency[UploadSlots],
) -> Response[None]:
    """Send the bytes of a file from `Upload-Offset` on, all that are missing or some of them.

    204 with the new `Upload-Offset`: everything before it stays, even if the server dies. 409 `upload_offset_mismatch`
    with the right one where it is another. When the connection breaks, what had come in stays: ask for the offset.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != BYTES_FROM_OFFSET:
        raise ApiError(415, "unsupported_media_type", f"Send the bytes as {BYTES_FROM_OFFSET}.", headers=CLOSE)
    upload = await services.uploads.get(tenant_id, upload_id)
    file = upload.file(name)
    if upload.version is not None:
        raise _offset_mismatch(file.size_bytes)
    with upload_slots.take(tenant_id), services.upload_files.growing(upload.id, file) as growing:
        if growing.offset != upload_offset:
            raise _offset_mismatch(growing.offset)
        await _receive(request, growing)
    offset = await to_thread.run_sync(services.upload_files.offset, upload.id, name)
    return Response(None, headers={"upload-offset": str(offset)})


@post("/{upload_id:str}/complete", opt=audited("version.publish"))
async def complete_upload(
    upload_id: FromPath[str],
    services: NamedDependency[Services],
    tenant_id: NamedDependency[str],
    upload_slots: NamedDependency[UploadSlots],
    by: NamedDependency[Actor],
) -> Response[VersionDetail]:
    """Check the files and publish them: answers as the upload of a version does. Again gives the same version.

    409 `upload_incomplete` while bytes are missing; 400 `checksum_mismatch` for a file that is not the announced one,
    of which nothing is kept. After 400 `adapter_invalid` the upload is as it was, until it is deleted or expires.
    """
    upload = await services.uploads.get(tenant_id, upload_id)
    if upload.version is None:
        await require_served(services, tenant_id, upload.adapter)
        with upload_slots.take(tenant_id):
            version = await _publish(services, tenant_id, upload, by)
    else:
        version = await services.registry.get_version(tenant_id, upload.adapter, upload.version)
    return await published_answer(services, version)


@delete("/{upload_id:str}", opt=audited("upload.drop"))
async def drop_upload(
    upload_id: FromPath[str],
    services: NamedDependency[Services],
    tenant_id: NamedDependency[str],
    by: NamedDependency[Actor],
) -> None:
    """Drop an upload and what was received of it. A version that it became stays."""
    upload = await services.uploads.get(tenant_id, upload_id)
    await services.uploads.drop(tenant_id, upload, by=by)
    await to_thread.run_sync(services.upload_files.discard, upload.id)


async def _publish(services: Services, tenant_id: str, upload: UploadInfo, by: Actor) -> VersionInfo:
    """The files stay until the row knows its version: whatever step this dies at, it can be done again."""
    with services.blobs.stage() as staging:
        try:
            await to_thread.run_sync(services.upload_files.stage, upload.id, upload.files, staging)
        except UploadIncomplete:
            upload = await services.uploads.get(tenant_id, upload.id)
            if upload.version is None:
                raise
            # Another request has completed it since we looked, and the files are gone for that.
            return await services.registry.get_version(tenant_id, upload.adapter, upload.version)
        weights_sha256 = upload.file(WEIGHTS_FILE).sha256
        version = await publish_staged(services, staging, tenant_id, upload.adapter, weights_sha256, by)
    await services.uploads.close(upload.id, version.number)
    await to_thread.run_sync(services.upload_files.discard, upload.id)
    return version


async def _known_version(
    services: Services, tenant_id: str, adapter: str, files: tuple[AnnouncedFile, ...], by: Actor
) -> VersionInfo | None:
    """The version of this adapter that these files are, or become because the tenant serves another adapter from them;
    none where the bytes are gone. Other tenants' versions play no part."""
    received = received_digest({file.name: file.sha256 for file in files})
    known = await services.registry.find_received(tenant_id, adapter, received)
    if known is None:
        return None
    try:
        await to_thread.run_sync(services.blobs.keep, known.digest)
        if known.name == adapter:
            return known
        template = (await services.profile_cache.of(known)).chat_template
        if not _brings(files, template):
            return None
        return await services.registry.publish_again(
            known, adapter, received_sha256=received, chat_template=template, by=by
        )
    except (AdapterUnavailable, VersionNotFound):
        return None


def _brings(files: tuple[AnnouncedFile, ...], template: str | None) -> bool:
    """Whether this chat template, or none, is surely what these files would put into a profile."""
    sha256_of = {file.name: file.sha256 for file in files}
    if TEMPLATE_FILE in sha256_of:
        return template is not None and hashlib.sha256(template.encode()).hexdigest() == sha256_of[TEMPLATE_FILE]
    return template is None and TOKENIZER_CONFIG_FILE not in sha256_of


async def _offsets(services: Services, upload: UploadInfo) -> dict[str, int]:
    if upload.version is not None:
        return {file.name: file.size_bytes for file in upload.files}
    offset = services.upload_files.offset
    return {file.name: await to_thread.run_sync(offset, upload.id, file.name) for file in upload.files}


async def _receive(request: Request[Any, Any, Any], growing: GrowingFile) -> None:
    if (content_length(request) or 0) > growing.missing_bytes:
        raise _too_much(growing.missing_bytes)
    async for block in blocks(request):
        if len(block) > growing.missing_bytes:
            raise _too_much(growing.missing_bytes)
        await to_thread.run_sync(growing.append, block)


def _require_acceptable(files: tuple[AnnouncedFile, ...], max_bytes: dict[str, int]) -> None:
    names = [file.name for file in files]
    if len(set(names)) < len(names) or not set(ADAPTER_FILES) <= set(names) <= {*ADAPTER_FILES, *PROMPT_FILES}:
        message = (
            f"Announce {' and '.join(ADAPTER_FILES)}, each once, and beside them at most {' and '.join(PROMPT_FILES)}."
        )
        raise ApiError(400, "invalid_value", message, param="files")
    for index, file in enumerate(files):
        if file.size_bytes > max_bytes[file.name]:
            message = f"{file.name} may have at most {max_bytes[file.name]} bytes on this server."
            raise ApiError(413, "request_too_large", message, param=f"files[{index}].size_bytes")


def _offset_mismatch(offset: int) -> ApiError:
    headers = {"upload-offset": str(offset), "x-should-retry": "false", **CLOSE}
    message = f"The file has {offset} bytes; go on from there."
    return ApiError(409, "upload_offset_mismatch", message, param="Upload-Offset", headers=headers)


def _too_much(missing_bytes: int) -> ApiError:
    message = f"The file needs only {missing_bytes} more bytes to have its announced size. Send no more than that."
    return ApiError(400, "upload_too_long", message, headers=CLOSE)


UPLOAD_ROUTES = [
    Router(
        "/api/v1/uploads",
        route_handlers=[
            open_upload,
            list_uploads,
            get_upload,
            get_offset,
            append_to_file,
            complete_upload,
            drop_upload,
        ],
        opt={"scope": "adapters"},
        tags=["uploads"],
    )
]

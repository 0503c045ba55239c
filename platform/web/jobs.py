"""What goes on beside requests: imports, batches, uploads in pieces, versions that do not serve; ended or begun again
by hand. Operators see everybody's, and when the server was cleaned up last."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from anyio import to_thread
from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter

from loraplex.adapters.audit import Actor
from loraplex.adapters.leases import JANITOR
from loraplex.adapters.schema import now
from loraplex.adapters.upload_files import UploadFiles
from loraplex.adapters.upload_sessions import UploadInfo
from loraplex.platform.audit_rules import audited
from loraplex.platform.errors import ApiError
from loraplex.platform.manage.imports import begin_import
from loraplex.platform.services import Services
from loraplex.platform.web.errors import REFUSALS, refusal_of
from loraplex.platform.web.rendering import go, page, wants_part
from loraplex.platform.web.tenants import visible_tenant
from loraplex.platform.web_sessions import Person

SHOWN = 25
"""Of each kind, the newest."""

PATH = "/jobs/{tenant:str}"
Web = Request[Any, Any, Any]
Text = Annotated[str, QueryParameter(max_length=127)]


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """An upload in pieces, and how many of its bytes are there."""

    tenant: str
    upload: UploadInfo
    bytes_done: int
    bytes_total: int


@get("/jobs", opt={"page": "person"})
async def list_jobs(
    request: Web, services: NamedDependency[Services], person: NamedDependency[Person], tenant: Text = ""
) -> Response[Any]:
    """All kinds, of one tenant, or of all for operators; asked again every few seconds while it is open."""
    chosen = tenant.strip() if person.is_operator else str(person.tenant)
    return await _jobs_page(request, services, person, chosen)


@post(PATH + "/imports/{import_id:str}/cancel", opt={"page": "person"} | audited("import.cancel"))
async def cancel_import(
    tenant: FromPath[str],
    import_id: FromPath[str],
    request: Web,
    services: NamedDependency[Services],
    person: NamedDependency[Person],
    by: NamedDependency[Actor],
) -> Response[Any]:
    """Cancel an import that has not published its version."""
    owner = await visible_tenant(services, person, tenant)
    try:
        await services.imports.cancel(owner.id, import_id, by=by)
    except REFUSALS as error:
        return await _jobs_page(request, services, person, owner.slug, refusal_of(request, error))
    return go("/admin/jobs", "import-cancelled")


@post(PATH + "/imports/{import_id:str}/again", opt={"page": "person"} | audited("import.create"))
async def repeat_import(
    tenant: FromPath[str],
    import_id: FromPath[str],
    request: Web,
    services: NamedDependency[Services],
    person: NamedDependency[Person],
    by: NamedDependency[Actor],
) -> Response[Any]:
    """A new import of what another one was of."""
    owner = await visible_tenant(services, person, tenant)
    job = await services.imports.get(owner.id, import_id)
    try:
        await begin_import(services, (owner.id, owner.slug), job.adapter, job.source, by=by)
    except REFUSALS as error:
        return await _jobs_page(request, services, person, owner.slug, refusal_of(request, error))
    return go("/admin/jobs", "import-again")


@post(PATH + "/batches/{batch_id:str}/cancel", opt={"page": "person"} | audited("batch.cancel"))
async def cancel_batch(
    tenant: FromPath[str],
    batch_id: FromPath[str],
    request: Web,
    services: NamedDependency[Services],
    person: NamedDependency[Person],
    by: NamedDependency[Actor],
) -> Response[Any]:
    """Cancel a batch: what was answered is kept."""
    owner = await visible_tenant(services, person, tenant)
    try:
        await services.batches.cancel(owner.id, batch_id, by=by)
    except REFUSALS as error:
        return await _jobs_page(request, services, person, owner.slug, refusal_of(request, error))
    return go("/admin/jobs", "batch-cancelled")


@post(PATH + "/uploads/{upload_id:str}/drop", opt={"page": "person"} | audited("upload.drop"))
async def drop_upload(
    tenant: FromPath[str],
    upload_id: FromPath[str],
    services: NamedDependency[Services],
    person: NamedDependency[Person],
    by: NamedDependency[Actor],
) -> Response[Any]:
    """Forget an upload and what has come of it."""
    owner = await visible_tenant(services, person, tenant)
    upload = await services.uploads.get(owner.id, upload_id)
    await services.uploads.drop(owner.id, upload, by=by)
    await to_thread.run_sync(services.upload_files.discard, upload.id)
    return go("/admin/jobs", "upload-dropped")


async def _jobs_page(
    request: Web, services: Services, person: Person, chosen: str, refusal: ApiError | None = None
) -> Response[Any]:
    """chosen: a tenant's name, "" for all. Raises TenantNotFound."""
    tenant_id = (await visible_tenant(services, person, chosen)).id if chosen else None
    uploads = await services.uploads.newest_open(tenant_id, SHOWN)
    return page(
        request,
        "_jobs.html" if wants_part(request) else "jobs.html",
        refusal=refusal,
        chosen=chosen,
        tenants=await services.tenants.list_tenants() if person.is_operator else [],
        imports=await services.imports.newest(tenant_id, SHOWN),
        batches=await services.batches.newest(tenant_id, SHOWN),
        uploads=await to_thread.run_sync(_with_sizes, services.upload_files, uploads),
        versions=await services.registry.not_serving(tenant_id, SHOWN),
        cleaned_up_at=await _cleaned_up_at(services) if person.is_operator else None,
        shown=SHOWN,
    )


def _with_sizes(files: UploadFiles, uploads: list[tuple[str, UploadInfo]]) -> list[OpenUpload]:
    return [
        OpenUpload(
            tenant,
            upload,
            bytes_done=sum(files.offset(upload.id, file.name) for file in upload.files),
            bytes_total=sum(file.size_bytes for file in upload.files),
        )
        for tenant, upload in uploads
    ]


async def _cleaned_up_at(services: Services) -> datetime | None:
    """When the janitor began last, on whichever server; None while it is at it, and before it ever was."""
    moment = await services.leases.ends_at(JANITOR)
    return moment if moment is not None and moment.year > 2000 and moment <= now() else None


JOB_PAGES = [list_jobs, cancel_import, repeat_import, cancel_batch, drop_upload]

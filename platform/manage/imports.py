"""Imports of adapters from hubs and buckets, as jobs: ask for one, look at it, cancel it. `imports/` runs them."""

from __future__ import annotations

from litestar import Router, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from loraplex.adapters.audit import Actor
from loraplex.adapters.import_jobs import ImportInfo
from loraplex.platform.audit_rules import audited
from loraplex.platform.imports.source_names import parse_source, require_allowed
from loraplex.platform.manage.adapters import PageAfter, PageLimit
from loraplex.platform.manage.import_schemas import CreateImport, ImportPage, ImportView
from loraplex.platform.publishing import require_served
from loraplex.platform.services import Services
from loraplex.platform.tenants import Principal


@post("/", status_code=202, opt=audited("import.create"))
async def create_import(
    data: JSONBody[CreateImport],
    services: NamedDependency[Services],
    principal: NamedDependency[Principal],
    tenant_id: NamedDependency[str],
    by: NamedDependency[Actor],
) -> ImportView:
    """Have the server fetch adapter_config.json, adapter_model.safetensors and a chat template, where there is one, and
    publish them as the next version.

    The adapter must exist. Off unless the operator has set `import_sources`; 403 for a source that lies in none of
    them. What is fetched goes the way of an upload: `adapter_invalid` in the job's `error` has every failed check.
    """
    assert principal.tenant is not None, "the guard has sent operators away"
    owner = tenant_id, principal.tenant
    return ImportView.of(await begin_import(services, owner, data.adapter, data.source, by=by))


async def begin_import(
    services: Services, owner: tuple[str, str], adapter: str, source: str, *, by: Actor
) -> ImportInfo:
    """A new job. owner: the tenant's id and name. Raises ApiError, AdapterNotFound, TooManyImports."""
    tenant_id, tenant = owner
    wanted = parse_source(source)
    require_allowed(wanted, services.settings.import_sources, tenant)
    await require_served(services, tenant_id, adapter)
    most = services.settings.max_imports_per_tenant
    return await services.imports.create(tenant_id, adapter, str(wanted), max_open=most, by=by)


@get("/")
async def list_imports(
    services: NamedDependency[Services],
    tenant_id: NamedDependency[str],
    limit: PageLimit = 100,
    after: PageAfter = None,
) -> ImportPage:
    """Your imports, newest first, a page at a time. Of those that have ended the last 1000 are kept."""
    found = await services.imports.list(tenant_id, limit + 1, after)
    page = found[:limit]
    return ImportPage([ImportView.of(job) for job in page], page[-1].id if len(found) > limit else None)


@get("/{import_id:str}")
async def get_import(
    import_id: FromPath[str], services: NamedDependency[Services], tenant_id: NamedDependency[str]
) -> ImportView:
    """How far an import is, or how it ended."""
    return ImportView.of(await services.imports.get(tenant_id, import_id))


@delete("/{import_id:str}", status_code=200, opt=audited("import.cancel"))
async def cancel_import(
    import_id: FromPath[str],
    services: NamedDependency[Services],
    tenant_id: NamedDependency[str],
    by: NamedDependency[Actor],
) -> ImportView:
    """Cancel an import; one that runs stops within seconds. 409 where it has ended or has published its version."""
    return ImportView.of(await services.imports.cancel(tenant_id, import_id, by=by))


IMPORT_ROUTES = [
    Router(
        "/api/v1/imports",
        route_handlers=[create_import, list_imports, get_import, cancel_import],
        opt={"scope": "adapters"},
        tags=["imports"],
    )
]

"""Adapters: a list to search in, each one's page, and each version's, with what validation found out about it."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter

from loraplex.adapters.audit import Actor
from loraplex.adapters.audit_log import Wanted
from loraplex.adapters.lookup import AdapterInfo, VersionInfo
from loraplex.platform import residency
from loraplex.platform.audit_rules import audited
from loraplex.platform.errors import ApiError
from loraplex.platform.manage.adapter_schemas import CreateAdapter
from loraplex.platform.manage.residency_schemas import Residency, ResidentView
from loraplex.platform.publishing import max_file_bytes
from loraplex.platform.services import Services
from loraplex.platform.tenants import TenantInfo
from loraplex.platform.web.audit_rows import read_rows
from loraplex.platform.web.errors import REFUSALS, refusal_of
from loraplex.platform.web.forms import Fields, form_fields, only, read_form
from loraplex.platform.web.rendering import go, page, wants_part
from loraplex.platform.web.tenants import visible_tenant
from loraplex.platform.web.usage_totals import last_month
from loraplex.platform.web_sessions import Person

PAGE_SIZE = 50
SHOWN_VERSIONS = 100
SHOWN_MOVES = 10

PATH = "/adapters/{tenant:str}/{name:str}"
Text = Annotated[str, QueryParameter(max_length=127)]


@get("/adapters", opt={"page": "person"})
async def list_adapters(
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    person: NamedDependency[Person],
    q: Text = "",
    tenant: Text = "",
    after: Text = "",
) -> Response[Any]:
    """Adapters by name, a page at a time; only those whose name has `q` in it, only one tenant's."""
    chosen = tenant.strip() if person.is_operator else str(person.tenant)
    tenant_id = (await visible_tenant(services, person, chosen)).id if chosen else None
    wanted = q.strip().lower()
    found = await services.registry.list_adapters(tenant_id, PAGE_SIZE + 1, after or None, wanted)
    shown = found[:PAGE_SIZE]
    return page(
        request,
        "_adapters.html" if wants_part(request) else "adapters.html",
        adapters=shown,
        after=f"{shown[-1].tenant}/{shown[-1].name}" if len(found) > PAGE_SIZE else None,
        is_first=not after,
        is_part=wants_part(request),
        query=q,
        chosen=chosen,
        tenants=await services.tenants.list_tenants() if person.is_operator else [],
    )


@get("/adapters/new", opt={"page": "person"})
async def show_new_adapter(
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    person: NamedDependency[Person],
    tenant: Text = "",
) -> Response[Any]:
    """The form that reserves a name."""
    return await _new_adapter_page(request, services, person, {"tenant": [tenant]})


@post("/adapters/new", opt={"page": "person"} | audited("adapter.create"))
async def create_adapter(
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    person: NamedDependency[Person],
    by: NamedDependency[Actor],
) -> Response[Any]:
    """Reserve a name. It answers requests once it has a version."""
    fields = await form_fields(request)
    try:
        slug = only(fields, "tenant") if person.is_operator else str(person.tenant)
        owner = await visible_tenant(services, person, slug)
        form = read_form({name: value for name, value in fields.items() if name != "tenant"}, CreateAdapter)
        base_model = form.base_model or services.base_model_name
        created = await services.registry.create_adapter(owner.id, form.name, base_model, form.description, by=by)
    except REFUSALS as error:
        return await _new_adapter_page(request, services, person, fields, refusal=refusal_of(request, error))
    return go(f"/admin/adapters/{created.tenant}/{created.name}")


@get(PATH, opt={"page": "person"})
async def show_adapter(
    tenant: FromPath[str],
    name: FromPath[str],
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    person: NamedDependency[Person],
) -> Response[Any]:
    """An adapter: its versions and where they are, and what its aliases stand for."""
    owner = await visible_tenant(services, person, tenant)
    return await adapter_page(request, services, person, owner, name)


@get(PATH + "/upload", opt={"page": "person"})
async def show_upload(
    tenant: FromPath[str],
    name: FromPath[str],
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    person: NamedDependency[Person],
) -> Response[Any]:
    """Where the files of a next version are dropped; the page's script sends them."""
    owner = await visible_tenant(services, person, tenant)
    adapter = await services.registry.get_adapter(owner.id, name)
    return page(request, "upload.html", adapter=adapter, most=max_file_bytes(services))


@post(PATH + "/delete", opt={"page": "person"} | audited("adapter.delete"))
async def delete_adapter(
    tenant: FromPath[str],
    name: FromPath[str],
    services: NamedDependency[Services],
    person: NamedDependency[Person],
    by: NamedDependency[Actor],
) -> Response[Any]:
    """Delete an adapter with all its versions."""
    owner = await visible_tenant(services, person, tenant)
    await services.registry.delete_adapter(owner.id, name, by=by)
    return go("/admin/adapters", "adapter-deleted")


async def adapter_page(
    request: Request[Any, Any, Any],
    services: Services,
    person: Person,
    owner: TenantInfo,
    name: str,
    refusal: ApiError | None = None,
) -> Response[Any]:
    """Raises AdapterNotFound."""
    adapter = await services.registry.get_adapter(owner.id, name)
    shown = adapter.versions[::-1][:SHOWN_VERSIONS]
    more: dict[str, Any] = (
        {} if wants_part(request) else {"usage": await last_month(services.usage, owner.id, adapter.name)}
    )
    return page(
        request,
        "_residency.html" if wants_part(request) else "adapter.html",
        refusal=refusal,
        adapter=adapter,
        shown=shown,
        residency=await whereabouts(services, person, shown),
        histories=await _histories(services, adapter) if not wants_part(request) else {},
        is_served=adapter.base_model == services.base_model_name,
        recent=[] if wants_part(request) else await read_rows(services, person, changes_of(owner, name)),
        **more,
    )


async def whereabouts(services: Services, person: Person, versions: tuple[VersionInfo, ...]) -> dict[int, Residency]:
    """By version number: for operators as the engine has it, for a tenant what it may know."""
    if not person.is_operator:
        looked = await residency.look(services, versions)
        return {version.number: view for version, view in zip(versions, looked, strict=True)}
    found = await residency.locate(services, [version.digest for version in versions])
    return {
        version.number: ResidentView.of(entry, [version.canonical_name], version.size_bytes)
        for version, entry in zip(versions, found, strict=True)
    }


async def _histories(services: Services, adapter: AdapterInfo) -> dict[str, list[Any]]:
    """The last moves of each alias that there is."""
    return {
        alias: (await services.aliases.history(adapter.tenant_id, adapter.name, alias))[:SHOWN_MOVES]
        for alias in adapter.aliases
    }


def changes_of(owner: TenantInfo, name: str) -> Wanted:
    """An adapter's entries in the audit log."""
    return Wanted(owner.id, object=f"adapters/{name}")


async def _new_adapter_page(
    request: Request[Any, Any, Any], services: Services, person: Person, fields: Fields, **more: Any
) -> Response[Any]:
    return page(
        request,
        "adapter_new.html",
        tenants=await services.tenants.list_tenants() if person.is_operator else [],
        fields={name: only(fields, name) for name in ("tenant", "name", "description")},
        base_model=services.base_model_name,
        **more,
    )


ADAPTER_PAGES = [list_adapters, show_new_adapter, create_adapter, show_adapter, show_upload, delete_adapter]

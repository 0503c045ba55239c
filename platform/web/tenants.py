"""Tenants: a list and new ones for operators; each one's page for operators and for its own people."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.params import FromPath

from loraplex.adapters.audit import Actor
from loraplex.adapters.audit_log import Wanted
from loraplex.platform.audit_rules import audited
from loraplex.platform.manage.tenant_schemas import CreateTenant
from loraplex.platform.manage.usage_schemas import MAX_CONTENT_DAYS, ContentRetention
from loraplex.platform.services import Services
from loraplex.platform.tenants import TenantInfo, TenantNotFound
from loraplex.platform.web.audit_rows import read_rows
from loraplex.platform.web.errors import REFUSALS, refusal_of
from loraplex.platform.web.forms import form_fields, only, read_form
from loraplex.platform.web.rendering import go, page
from loraplex.platform.web.usage_totals import last_month
from loraplex.platform.web_sessions import Person

SHOWN_ADAPTERS = 10


async def visible_tenant(services: Services, person: Person, slug: str) -> TenantInfo:
    """The tenant, if the person may see it. Raises TenantNotFound, alike for what is absent and what is foreign."""
    if not person.is_operator and slug != person.tenant:
        raise TenantNotFound
    return await services.tenants.get_tenant(slug)


@get("/tenants", opt={"page": "operator"})
async def list_tenants(request: Request[Any, Any, Any], services: NamedDependency[Services]) -> Response[Any]:
    """All tenants."""
    return page(request, "tenants.html", tenants=await services.tenants.list_tenants())


@get("/tenants/new", opt={"page": "operator"})
async def show_new_tenant(request: Request[Any, Any, Any]) -> Response[Any]:
    """The form for a new tenant."""
    return page(request, "tenant_new.html", slug="", name="")


@post("/tenants/new", opt={"page": "operator"} | audited("tenant.create"))
async def create_tenant(
    request: Request[Any, Any, Any], services: NamedDependency[Services], by: NamedDependency[Actor]
) -> Response[Any]:
    """Create a tenant."""
    fields = await form_fields(request)
    try:
        form = read_form(fields, CreateTenant)
        created = await services.tenants.create_tenant(form.slug, form.name, by=by)
    except REFUSALS as error:
        shown: dict[str, Any] = {"slug": only(fields, "slug"), "name": only(fields, "name")}
        return page(request, "tenant_new.html", refusal=refusal_of(request, error), **shown)
    return go(f"/admin/tenants/{created.slug}", "tenant-created")


@get("/tenants/{slug:str}", opt={"page": "person"})
async def show_tenant(
    slug: FromPath[str],
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    person: NamedDependency[Person],
) -> Response[Any]:
    """A tenant with its keys and adapters."""
    tenant = await visible_tenant(services, person, slug)
    adapters, versions = await services.registry.count_versions(tenant.id)
    return page(
        request,
        "tenant.html",
        tenant=tenant,
        keys=await services.tenants.list_keys(tenant.slug),
        adapters=await services.registry.list_adapters(tenant.id, SHOWN_ADAPTERS),
        adapter_count=adapters,
        versions=versions,
        recent=await read_rows(services, person, Wanted(tenant.id)),
        max_content_days=MAX_CONTENT_DAYS,
        content_days=await services.tenants.content_days(tenant.slug),
        usage=await last_month(services.usage, tenant.id),
    )


@post("/tenants/{slug:str}/contents", opt={"page": "operator"} | audited("tenant.contents"))
async def set_content_days(
    slug: FromPath[str],
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    by: NamedDependency[Actor],
) -> Response[Any]:
    """Keep what a tenant's requests ask and are answered for so many days; an empty field: not at all."""
    fields = await form_fields(request)
    retention = read_form(fields, ContentRetention) if only(fields, "days") else ContentRetention(days=None)
    await services.tenants.set_content_days(slug, retention.days, by=by)
    return go(f"/admin/tenants/{slug}", "contents-set")


@post("/tenants/{slug:str}/contents/delete", opt={"page": "operator"} | audited("contents.delete"))
async def delete_contents(
    slug: FromPath[str], services: NamedDependency[Services], by: NamedDependency[Actor]
) -> Response[Any]:
    """Delete all that is kept of what a tenant's requests asked and were answered."""
    tenant = await services.tenants.get_tenant(slug)
    await services.usage.delete_all_contents(tenant.id, by=by)
    return go(f"/admin/tenants/{slug}", "all-contents-deleted")


@post("/tenants/{slug:str}/{action:str}", opt={"page": "operator"} | audited("tenant.suspend", "tenant.resume"))
async def change_tenant(
    slug: FromPath[str], action: FromPath[str], services: NamedDependency[Services], by: NamedDependency[Actor]
) -> Response[Any]:
    """Suspend a tenant, whose keys and people are refused from then on, or resume it."""
    if action not in ("suspend", "resume"):
        raise NotFoundException
    await services.tenants.set_suspended(slug, action == "suspend", by=by)
    return go(f"/admin/tenants/{slug}", "suspended" if action == "suspend" else "resumed")


TENANT_PAGES = [
    list_tenants,
    show_new_tenant,
    create_tenant,
    show_tenant,
    set_content_days,
    delete_contents,
    change_tenant,
]

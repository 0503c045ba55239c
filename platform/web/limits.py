"""Limits and fairness: who has how much of the engine, what was refused, and what may be limited, for operators; each
tenant's own people see theirs."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from loraplex.adapters.audit import Actor
from loraplex.engine.client import EngineUnavailable
from loraplex.engine.messages import OwnerShare
from loraplex.platform.audit_rules import audited
from loraplex.platform.fairness import TenantShare, tenant_shares
from loraplex.platform.limits.rules import TenantLimits
from loraplex.platform.manage.engine_answers import answered
from loraplex.platform.manage.tenant_schemas import Weight
from loraplex.platform.services import Services
from loraplex.platform.tenants import MAX_WEIGHT, MIN_WEIGHT, TenantInfo
from loraplex.platform.web.errors import REFUSALS, refusal_of
from loraplex.platform.web.forms import Fields, form_fields, only, read_form
from loraplex.platform.web.rendering import go, page, wants_part
from loraplex.platform.web.tenants import visible_tenant
from loraplex.platform.web_sessions import Person

LABELS = {
    "requests_per_minute": ("Requests per minute", ""),
    "tokens_per_minute": ("Tokens per minute", "in and out"),
    "concurrent_requests": ("Requests at once", "per server"),
    "queued_tokens": ("Prompt tokens waiting", "per server"),
    "adapter_requests_per_minute": ("Requests per minute", "per adapter"),
    "adapter_tokens_per_minute": ("Tokens per minute", "per adapter"),
    "adapters": ("Adapters kept", ""),
    "versions": ("Versions kept", ""),
    "stored_bytes": ("Bytes kept", "the same ones count once"),
}
"""What may be limited, in words, and a hint."""


class LimitsForm(TenantLimits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tenant's limits and its weight."""

    weight: Weight


@get("/limits", opt={"page": "person"})
async def show_limits(
    request: Request[Any, Any, Any], services: NamedDependency[Services], person: NamedDependency[Person]
) -> Response[Any]:
    """How the engine is shared, asked again every other second while it is open; for tenants' people, their tenant."""
    if person.tenant is not None:
        return go(f"/admin/limits/{person.tenant}")
    shares = await _shares(services, await services.tenants.list_tenants())
    return page(request, "_limits.html" if wants_part(request) else "limits.html", shares=shares)


@get("/limits/{slug:str}", opt={"page": "person"})
async def show_tenant_limits(
    slug: FromPath[str],
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    person: NamedDependency[Person],
) -> Response[Any]:
    """One tenant's part of the engine and its limits, which operators change here."""
    tenant = await visible_tenant(services, person, slug)
    values = {field: _text(value) for field, value in msgspec.structs.asdict(tenant.limits).items()}
    return await _tenant_page(request, services, tenant, {**values, "weight": f"{tenant.weight:g}"})


@post("/limits/{slug:str}", opt={"page": "operator"} | audited("tenant.weight", "tenant.limits"))
async def change_tenant_limits(
    slug: FromPath[str],
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    by: NamedDependency[Actor],
) -> Response[Any]:
    """Set all of a tenant's limits, an empty field being none of its own, and its weight."""
    tenant = await services.tenants.get_tenant(slug)
    fields: Fields = await form_fields(request)
    try:
        form = read_form(fields, LimitsForm)
    except REFUSALS as error:
        values = {field: only(fields, field) for field in LimitsForm.__struct_fields__}
        return await _tenant_page(request, services, tenant, values, refusal=refusal_of(request, error))
    given = msgspec.structs.asdict(form)
    await services.tenants.set_weight(slug, given.pop("weight"), by=by)
    await services.limit_owners.set_tenant(slug, lambda _: TenantLimits(**given), by=by)
    return go(f"/admin/limits/{slug}", "limits-changed")


async def _tenant_page(
    request: Request[Any, Any, Any], services: Services, tenant: TenantInfo, values: dict[str, str], **more: Any
) -> Response[Any]:
    """Of all shares the one tenant's, since a tenant's people are told of no other."""
    shares = await _shares(services, [tenant])
    return page(
        request,
        "_tenant_share.html" if wants_part(request) else "tenant_limits.html",
        tenant=tenant,
        share=None if shares is None else shares[0],
        values=values,
        labels=LABELS,
        defaults=msgspec.structs.asdict(services.settings.tenant_limits),
        weights=(MIN_WEIGHT, MAX_WEIGHT),
        **more,
    )


async def _shares(services: Services, tenants: list[TenantInfo]) -> list[TenantShare] | None:
    """None while the engine is down."""
    try:
        owners: list[OwnerShare] = (await answered(services.engine.inspect())).shares
    except EngineUnavailable:
        return None
    return tenant_shares(tenants, owners, services.limiter.refusals)


def _text(value: int | None) -> str:
    return "" if value is None else str(value)


LIMIT_PAGES = [show_limits, show_tenant_limits, change_tenant_limits]

"""What operators do: tenants, keys, a view of all adapters and of the engine. Needs a key with the scope admin."""

from __future__ import annotations

from litestar import Router, delete, get, patch, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody

from loraplex.adapters.audit import Actor
from loraplex.engine.client import EngineUnavailable
from loraplex.platform.audit_rules import audited
from loraplex.platform.fairness import tenant_shares
from loraplex.platform.limits.rules import RateLimits, TenantLimits
from loraplex.platform.manage.adapters import PageAfter, PageLimit
from loraplex.platform.manage.admin_schemas import EngineView, Quarantine, ResidentAdapterPage, ResidentAdapterView
from loraplex.platform.manage.engine_answers import answered
from loraplex.platform.manage.fairness_schemas import FairnessView
from loraplex.platform.manage.keys import KEY_HANDLERS
from loraplex.platform.manage.tenant_schemas import (
    ChangeTenant,
    CreateKey,
    CreateTenant,
    KeyList,
    KeyView,
    TenantList,
    TenantView,
)
from loraplex.platform.manage.version_schemas import VersionList, VersionView
from loraplex.platform.services import Services


@post("/tenants", opt=audited("tenant.create"))
async def create_tenant(
    data: JSONBody[CreateTenant], services: NamedDependency[Services], by: NamedDependency[Actor]
) -> TenantView:
    """Create a tenant. It needs a key to do anything."""
    return TenantView.of(await services.tenants.create_tenant(data.slug, data.name, data.weight, by=by))


@get("/tenants")
async def list_tenants(services: NamedDependency[Services]) -> TenantList:
    """All tenants."""
    return TenantList([TenantView.of(tenant) for tenant in await services.tenants.list_tenants()])


@patch("/tenants/{slug:str}", opt=audited("tenant.suspend", "tenant.resume", "tenant.weight"))
async def change_tenant(
    slug: FromPath[str], data: JSONBody[ChangeTenant], services: NamedDependency[Services], by: NamedDependency[Actor]
) -> TenantView:
    """Suspend a tenant (its keys stop working, its data stays) or resume it; change its weight. Both hold at once on
    this server, within 2 seconds on others."""
    if data.weight is not None:
        await services.tenants.set_weight(slug, data.weight, by=by)
    if data.suspended is not None:
        await services.tenants.set_suspended(slug, data.suspended, by=by)
    return TenantView.of(await services.tenants.get_tenant(slug))


@get("/tenants/{slug:str}/limits")
async def get_tenant_limits(slug: FromPath[str], services: NamedDependency[Services]) -> TenantLimits:
    """What is limited of a tenant; null: nothing of its own, so the server's setting `tenant_limits` holds."""
    return await services.limit_owners.of_tenant(slug)


@put("/tenants/{slug:str}/limits", opt=audited("tenant.limits"))
async def set_tenant_limits(
    slug: FromPath[str], data: JSONBody[TenantLimits], services: NamedDependency[Services], by: NamedDependency[Actor]
) -> TenantLimits:
    """Set all of a tenant's limits: at once on this server, within 2 seconds on others. What is left out is null."""
    return await services.limit_owners.set_tenant(slug, lambda _: data, by=by)


@post("/keys", opt=audited("key.create"))
async def create_key(
    data: JSONBody[CreateKey], services: NamedDependency[Services], by: NamedDependency[Actor]
) -> KeyView:
    """Create a key. `secret` is shown here and never again."""
    key, secret = await services.tenants.create_key(
        data.tenant, data.name, data.scopes, data.expires_at, data.adapters, by=by
    )
    return KeyView.of(key, secret)


@get("/keys")
async def list_keys(services: NamedDependency[Services], tenant: FromQuery[str | None] = None) -> KeyList:
    """All keys, or one tenant's; never their secrets."""
    return KeyList([KeyView.of(key) for key in await services.tenants.list_keys(tenant)])


@delete("/keys/{key_id:str}", status_code=200, opt=audited("key.revoke"))
async def revoke_key(key_id: FromPath[str], services: NamedDependency[Services], by: NamedDependency[Actor]) -> KeyView:
    """Revoke a key for good: at once on this server, within 2 seconds on others."""
    return KeyView.of(await services.tenants.revoke_key(key_id, by=by))


@get("/keys/{key_id:str}/limits")
async def get_key_limits(key_id: FromPath[str], services: NamedDependency[Services]) -> RateLimits:
    """What is limited of a key, beside its tenant's limits; null: nothing."""
    return await services.limit_owners.of_key(key_id)


@put("/keys/{key_id:str}/limits", opt=audited("key.limits"))
async def set_key_limits(
    key_id: FromPath[str], data: JSONBody[RateLimits], services: NamedDependency[Services], by: NamedDependency[Actor]
) -> RateLimits:
    """Set all of a key's limits: at once on this server, within 2 seconds on others. What is left out is null."""
    return await services.limit_owners.set_key(key_id, lambda _: data, by=by)


@get("/adapters")
async def list_all_adapters(
    services: NamedDependency[Services], limit: PageLimit = 100, after: PageAfter = None
) -> ResidentAdapterPage:
    """All tenants' adapters, each version with the memory tiers that hold it. While the engine is down: disk alone."""
    found = await services.registry.list_adapters(None, limit + 1, after)
    try:
        inspection = await answered(services.engine.inspect())
    except EngineUnavailable:
        inspection = None
    page = found[:limit]
    return ResidentAdapterPage(
        [ResidentAdapterView.of(adapter, inspection) for adapter in page],
        f"{page[-1].tenant}/{page[-1].name}" if len(found) > limit else None,
    )


@get("/engine")
async def get_engine(services: NamedDependency[Services]) -> EngineView:
    """What the engine does now: batch, queue, pages, adapters, and its last steps."""
    inspection = await answered(services.engine.inspect())
    return EngineView.of(services.base_model_name, services.engine, inspection)


@get("/fairness")
async def get_fairness(services: NamedDependency[Services]) -> FairnessView:
    """Who has how much of the engine: of every tenant its weight, what it was served lately, and what waits."""
    inspection = await answered(services.engine.inspect())
    refused = services.limiter.refusals
    return FairnessView.of(tenant_shares(await services.tenants.list_tenants(), inspection.shares, refused))


@post("/versions/{digest:str}/quarantine", status_code=200, opt=audited("version.quarantine"))
async def quarantine_versions(
    digest: FromPath[str], data: JSONBody[Quarantine], services: NamedDependency[Services], by: NamedDependency[Actor]
) -> VersionList:
    """Take every version with these bytes out of service: no name stands for it. Requests that run finish."""
    return VersionList(
        [VersionView.of(version) for version in await services.quarantine.begin(digest, data.reason, by=by)]
    )


@post("/versions/{digest:str}/release", status_code=202, opt=audited("version.release"))
async def release_versions(
    digest: FromPath[str], data: JSONBody[Quarantine], services: NamedDependency[Services], by: NamedDependency[Actor]
) -> VersionList:
    """End a quarantine. Within a minute or so its versions are validated anew, and serve if they pass."""
    return VersionList(
        [VersionView.of(version) for version in await services.quarantine.end(digest, data.reason, by=by)]
    )


ADMIN_ROUTES = [
    Router(
        "/api/v1/admin",
        route_handlers=[
            create_tenant,
            list_tenants,
            change_tenant,
            get_tenant_limits,
            set_tenant_limits,
            create_key,
            list_keys,
            revoke_key,
            *KEY_HANDLERS,
            get_key_limits,
            set_key_limits,
            list_all_adapters,
            get_engine,
            get_fairness,
            quarantine_versions,
            release_versions,
        ],
        opt={"scope": "admin"},
        tags=["admin"],
    )
]

"""Set the limits of tenants and of keys, as rows; and what a tenant may keep, for the registry.

A change holds on this server at once and on others within `changes.MAX_STALE_SECONDS`, as all that decides about keys.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from loraplex.adapters.audit import SERVER, Actor, record
from loraplex.adapters.changes import KEYS, record_change
from loraplex.adapters.database import Database
from loraplex.adapters.quotas import Quota, QuotaOf
from loraplex.platform.limits.rules import RateLimits, TenantLimits, stored_limits, to_row
from loraplex.platform.schema import ApiKey, Tenant
from loraplex.platform.tenants import KeyNotFound, TenantNotFound


class LimitOwners:
    """Each method is one transaction. change: gives the new limits for those of before."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of_tenant(self, slug: str) -> TenantLimits:
        """Its own, without the server's defaults. Raises TenantNotFound."""
        async with self._database.read() as session:
            return stored_limits(TenantLimits, (await tenant_row(session, slug)).limits)

    async def of_key(self, key_id: str) -> RateLimits:
        """Raises KeyNotFound."""
        async with self._database.read() as session:
            return stored_limits(RateLimits, (await key_row(session, key_id)).limits)

    async def set_tenant(
        self, slug: str, change: Callable[[TenantLimits], TenantLimits], *, by: Actor = SERVER
    ) -> TenantLimits:
        """Raises TenantNotFound, and what `change` raises."""
        async with self._database.transaction() as session:
            tenant = await tenant_row(session, slug, for_update=True)
            limits = change(stored_limits(TenantLimits, tenant.limits))
            before, tenant.limits = tenant.limits, to_row(limits)
            await record_change(session, KEYS)
            told = {"before": before or {}, "after": tenant.limits or {}}
            await record(session, by, "tenant.limits", f"tenants/{slug}", tenant_id=tenant.id, **told)
            return limits

    async def set_key(
        self, key_id: str, change: Callable[[RateLimits], RateLimits], *, by: Actor = SERVER
    ) -> RateLimits:
        """Raises KeyNotFound, and what `change` raises."""
        async with self._database.transaction() as session:
            key = await key_row(session, key_id, for_update=True)
            limits = change(stored_limits(RateLimits, key.limits))
            before, key.limits = key.limits, to_row(limits)
            await record_change(session, KEYS)
            told = {"before": before or {}, "after": key.limits or {}}
            await record(session, by, "key.limits", f"keys/{key.id}", tenant_id=key.tenant_id, **told)
            return limits


def quotas(defaults: TenantLimits) -> QuotaOf:
    """What each tenant may keep: by its own limits, else by these."""

    async def quota_of(session: AsyncSession, tenant_id: str) -> Quota:
        row = await session.scalar(select(Tenant.limits).where(Tenant.id == tenant_id))
        limits = stored_limits(TenantLimits, row, defaults)
        return Quota(limits.adapters, limits.versions, limits.stored_bytes)

    return quota_of


async def tenant_row(session: AsyncSession, slug: str, *, for_update: bool = False) -> Tenant:
    """Raises TenantNotFound."""
    wanted = select(Tenant).where(Tenant.slug == slug)
    tenant = await session.scalar(wanted.with_for_update(key_share=True) if for_update else wanted)
    if tenant is None:
        raise TenantNotFound(f"tenant: there is no tenant {ascii(slug)[:70]}; create it first")
    return tenant


async def key_row(session: AsyncSession, key_id: str, *, for_update: bool = False) -> ApiKey:
    """Raises KeyNotFound."""
    wanted = select(ApiKey).where(ApiKey.id == key_id)
    key = await session.scalar(wanted.with_for_update(key_share=True) if for_update else wanted)
    if key is None:
        raise KeyNotFound(f"id: there is no API key {ascii(key_id)[:20]}")
    return key

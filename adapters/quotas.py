"""How much a tenant may keep: adapters, versions and bytes. Knows rows; who may keep how much it is told.

Versions count whatever their state, since their files are there; bytes count once, however many of them have the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from loraplex.adapters.errors import StorageLimitReached
from loraplex.adapters.lookup import lock_tenant
from loraplex.adapters.schema import Adapter, AdapterVersion


@dataclass(frozen=True, slots=True)
class Quota:
    """None: as much as there is room for. Bytes: of weights and configuration."""

    adapters: int | None = None
    versions: int | None = None
    stored_bytes: int | None = None


QuotaOf = Callable[[AsyncSession, str], Awaitable[Quota]]
"""The quota of a tenant by its id."""


async def unlimited(_session: AsyncSession, _tenant_id: str) -> Quota:
    return Quota()


async def check_new_adapter(session: AsyncSession, quota_of: QuotaOf, tenant_id: str) -> None:
    """In the transaction that makes one. Raises StorageLimitReached."""
    quota = await quota_of(session, tenant_id)
    if quota.adapters is None:
        return
    await lock_tenant(session, tenant_id)
    count = await session.scalar(select(func.count()).where(Adapter.tenant_id == tenant_id)) or 0
    if count >= quota.adapters:
        raise StorageLimitReached(f"You have {count} adapters, and may have {quota.adapters}. Delete one first.")


async def lock_quota(session: AsyncSession, quota_of: QuotaOf, tenant_id: str) -> Quota:
    """The tenant's quota and, where versions count for it, the only transaction that may add to them."""
    quota = await quota_of(session, tenant_id)
    if quota.versions is not None or quota.stored_bytes is not None:
        await lock_tenant(session, tenant_id)
    return quota


async def check_new_version(
    session: AsyncSession, quota: Quota, tenant_id: str, *, digest: str, size_bytes: int
) -> None:
    """In the transaction that makes one, after `lock_quota`. Raises StorageLimitReached."""
    own = select(AdapterVersion.digest, AdapterVersion.size_bytes)
    own = own.join(Adapter, Adapter.id == AdapterVersion.adapter_id).where(Adapter.tenant_id == tenant_id)
    if quota.versions is not None:
        count = await session.scalar(select(func.count()).select_from(own.subquery())) or 0
        if count >= quota.versions:
            message = f"You have {count} versions of adapters, and may have {quota.versions}. Delete some first."
            raise StorageLimitReached(message)
    if quota.stored_bytes is not None:
        others = own.where(AdapterVersion.digest != digest).distinct().subquery()
        total = (await session.scalar(select(func.coalesce(func.sum(others.c.size_bytes), 0))) or 0) + size_bytes
        if total > quota.stored_bytes:
            message = (
                f"With this version of {size_bytes} bytes you would keep {total}, and may keep {quota.stored_bytes}. "
                "Delete versions first."
            )
            raise StorageLimitReached(message)

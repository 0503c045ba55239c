"""How much a tenant may keep: adapters, versions and bytes. Knows rows; who may keep how much it is told.

Versions count whatever their state, since their files are there; bytes count once, however many of them have the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sqlalchemy import Select, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from loraplex.adapters.errors import StorageLimitReached
from loraplex.adapters.lookup import lock_tenant
from loraplex.adapters.schema import Adapter, AdapterVersion


@dataclass(frozen=True, slots=True)
class Quota:
    """None: as much as there is room for. Bytes: of weights."""

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


def check_size(quota: Quota, size_bytes: int) -> None:
    """Raises StorageLimitReached for a version that the tenant could not keep if it had no other."""
    if quota.stored_bytes is not None and size_bytes > quota.stored_bytes:
        message = f"These weights have {size_bytes} bytes; all that you keep may have {quota.stored_bytes} together."
        raise StorageLimitReached(f"{message} Send smaller ones, or ask the operator for a higher limit.")


async def check_new_bytes(session: AsyncSession, quota: Quota, tenant_id: str, *, digest: str, size_bytes: int) -> None:
    """Before bytes are stored, so that what will be refused takes no room: as `check_new_version`, of those that the
    tenant has in no version. Raises StorageLimitReached."""
    same = _versions_of(tenant_id).where(AdapterVersion.digest == digest)
    if await session.scalar(same.limit(1)) is None:
        await check_new_version(session, quota, tenant_id, digest=digest, size_bytes=size_bytes)


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
    own = _versions_of(tenant_id)
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


def _versions_of(tenant_id: str) -> Select[str, int]:
    """Digest and size."""
    own = select(AdapterVersion.digest, AdapterVersion.size_bytes)
    return own.join(Adapter, Adapter.id == AdapterVersion.adapter_id).where(Adapter.tenant_id == tenant_id)

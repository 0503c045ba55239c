"""The row of a version that is published: a new one, or the one that has the bytes, in the state that they are in.

Knows rows, in a transaction that `registry` began. What other tenants have plays no part, so that it cannot show.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import and_, case, or_, select, union
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import undefer

from loraplex.adapters.errors import AdapterNotFound
from loraplex.adapters.lookup import VersionRows, is_adapter, no_adapter, select_all_versions
from loraplex.adapters.profile_store import set_template, template_of
from loraplex.adapters.quotas import Quota, check_new_version
from loraplex.adapters.schema import Adapter, AdapterVersion

_MAX_OTHERS = 16
"""Versions of the same bytes that are looked at for a proof that holds."""


async def write_version(
    session: AsyncSession, tenant_id: str, name: str, new: AdapterVersion, chat_template: str | None, quota: Quota
) -> tuple[AdapterVersion, bool, str | None]:
    """`new`, which has all but a number and a state, or the adapter's version of its bytes, with this chat template in
    its profile; whether that changes what its names stand for; and the state that it was in, if it was there.

    It is validating, if it is not an old one that still is what it was. But bytes that the tenant serves from another
    adapter on the same base, by the same chat template, are ready at once, with the report of those; and bytes that
    were taken out there are out here. Raises AdapterNotFound; StorageLimitReached for one too many.
    """
    adapter = await _lock(session, tenant_id, name, new.digest)
    same_bytes = AdapterVersion.adapter_id == adapter.id, AdapterVersion.digest == new.digest
    known = await session.scalar(select(AdapterVersion).where(*same_bytes).options(undefer(AdapterVersion.profile)))
    if known is None:
        await check_new_version(session, quota, tenant_id, digest=new.digest, size_bytes=new.size_bytes)
        adapter.last_number += 1
        new.adapter_id, new.number = adapter.id, adapter.last_number
    else:
        known.received_sha256 = new.received_sha256 or known.received_sha256
    version, state_before = known or new, None if known is None else known.state
    changed = chat_template is not None and set_template(version, chat_template)
    if known is None or known.state == "rejected":
        _begin(version, new.report, await _others(session, adapter, new.digest))
        changed |= version.state == "ready"
    session.add(version)
    await session.flush()
    return version, changed, state_before


def select_received(tenant_id: str, name: str, received_sha256: str) -> VersionRows:
    """Versions that files with this `types.received_digest` last became: those of the adapter that are not rejected,
    then those of the tenant's other adapters on the same base that are ready; newer ones first."""
    base = select(Adapter.base_model_id).where(*is_adapter(tenant_id, name)).scalar_subquery()
    is_own = Adapter.name == name
    serves_elsewhere = and_(AdapterVersion.state == "ready", Adapter.base_model_id == base)
    of_tenant = Adapter.tenant_id == tenant_id, AdapterVersion.received_sha256 == received_sha256
    is_here = and_(is_own, AdapterVersion.state != "rejected")
    found = select_all_versions().where(*of_tenant, or_(is_here, serves_elsewhere))
    return found.order_by(is_own.desc(), AdapterVersion.created_at.desc())


def of_checks(report: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What of a version's report comes from the checks of its files, and not from running it."""
    return [entry for entry in report if entry.get("code") in ("statistics", "tokenizer")]


async def _lock(session: AsyncSession, tenant_id: str, name: str, digest: str) -> Adapter:
    """The adapter, locked with the tenant's others that have these bytes: in one order for everybody, as a quarantine
    does, so that it comes before what is read here or finds what is written."""
    named = select(Adapter.id).where(*is_adapter(tenant_id, name))
    owning = select(Adapter.id).join(AdapterVersion, AdapterVersion.adapter_id == Adapter.id)
    owning = owning.where(AdapterVersion.digest == digest, Adapter.tenant_id == tenant_id)
    both = select(Adapter).where(Adapter.id.in_(union(named, owning))).order_by(Adapter.id).with_for_update()
    for adapter in await session.scalars(both):
        if adapter.name == name:
            return adapter
    raise AdapterNotFound(no_adapter(name))


async def _others(session: AsyncSession, adapter: Adapter, digest: str) -> Sequence[AdapterVersion]:
    """The tenant's versions of these bytes that count for this adapter, those that were taken out first."""
    taken_out = AdapterVersion.state == "quarantined"
    proved = and_(AdapterVersion.state == "ready", Adapter.base_model_id == adapter.base_model_id)
    others = select(AdapterVersion).join(Adapter, Adapter.id == AdapterVersion.adapter_id)
    others = others.where(AdapterVersion.digest == digest, Adapter.tenant_id == adapter.tenant_id)
    others = others.where(Adapter.id != adapter.id, or_(taken_out, proved)).order_by(case((taken_out, 0), else_=1))
    whole = undefer(AdapterVersion.report), undefer(AdapterVersion.profile)
    return (await session.scalars(others.limit(_MAX_OTHERS).options(*whole))).all()


def _begin(version: AdapterVersion, report: list[dict[str, Any]], others: Sequence[AdapterVersion]) -> None:
    version.state, version.state_reason, version.report = "validating", "", report
    for other in others:
        if other.state == "quarantined":
            version.state, version.state_reason = "quarantined", other.state_reason
            return
        if template_of(other) == template_of(version):
            version.state, version.report = "ready", other.report
            return

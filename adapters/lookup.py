"""The registry's questions: the queries, and the facts that their rows become.

Knows rows and selectors. Changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, String, and_, column, select, table
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import joinedload, selectinload

from loraplex.adapters.errors import AdapterNotFound
from loraplex.adapters.names import version_number
from loraplex.adapters.schema import Adapter, AdapterVersion, Alias, BaseModel

DEFAULT_ALIAS = "prod"

# Platform owns this table; the registry reads the name of a tenant and nothing else of it.
tenants = table("tenants", column("id", String), column("slug", Adapter.name.type))


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One immutable version. `digest` names its bytes; `report` is what the upload's checks found out."""

    adapter_id: str
    tenant_id: str
    tenant: str
    name: str
    base_model: str
    number: int
    digest: str
    size_bytes: int
    max_rank: int
    targets: tuple[str, ...]
    report: list[dict[str, Any]]
    created_at: datetime

    @property
    def canonical_name(self) -> str:
        return f"{self.tenant}/{self.name}@{self.number}"


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """An adapter as it stood at one moment. `versions` by rising number; `aliases`: name -> version number."""

    id: str
    tenant_id: str
    tenant: str
    name: str
    base_model: str
    description: str
    created_at: datetime
    versions: tuple[VersionInfo, ...]
    aliases: dict[str, int]


def select_adapters() -> Select[Adapter, str]:
    """Adapters with all that an AdapterInfo needs, and the name of their tenant."""
    return (
        select(Adapter, tenants.c.slug)
        .join(tenants, tenants.c.id == Adapter.tenant_id)
        .options(joinedload(Adapter.base_model), selectinload(Adapter.versions), selectinload(Adapter.aliases))
    )


async def find_adapter(session: AsyncSession, tenant_id: str, name: str) -> AdapterInfo:
    found = await session.execute(select_adapters().where(*is_adapter(tenant_id, name)))
    for adapter, slug in found:
        return adapter_info(adapter, slug)
    raise AdapterNotFound(no_adapter(name))


def is_adapter(tenant_id: str, name: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return Adapter.tenant_id == tenant_id, Adapter.name == name


def select_versions(tenant_id: str, name: str) -> Select[AdapterVersion, Adapter, str, str]:
    """Versions of one adapter, each with the adapter, the name of its base model and that of its tenant."""
    return (
        select(AdapterVersion, Adapter, BaseModel.name, tenants.c.slug)
        .join(Adapter, Adapter.id == AdapterVersion.adapter_id)
        .join(BaseModel, BaseModel.id == Adapter.base_model_id)
        .join(tenants, tenants.c.id == Adapter.tenant_id)
        .where(*is_adapter(tenant_id, name))
    )


VersionRows = Select[AdapterVersion, Adapter, str, str]


def select_for(versions: VersionRows, selector: str | None) -> VersionRows:
    if selector is not None and selector.isdigit():
        return versions.where(AdapterVersion.number == version_number(selector))
    points_here = Alias.version_id == AdapterVersion.id
    if selector is not None:
        return versions.join(Alias, points_here).where(Alias.name == selector)
    return versions.outerjoin(Alias, and_(points_here, Alias.name == DEFAULT_ALIAS)).order_by(
        Alias.name.is_(None), AdapterVersion.number.desc()
    )


async def first_version(session: AsyncSession, versions: VersionRows) -> VersionInfo | None:
    for version, adapter, base_model, slug in await session.execute(versions.limit(1)):
        return _version_info(version, adapter, base_model, slug)
    return None


def adapter_info(adapter: Adapter, slug: str) -> AdapterInfo:
    base_model = adapter.base_model.name
    numbers = {version.id: version.number for version in adapter.versions}
    return AdapterInfo(
        id=adapter.id,
        tenant_id=adapter.tenant_id,
        tenant=slug,
        name=adapter.name,
        base_model=base_model,
        description=adapter.description,
        created_at=adapter.created_at,
        versions=tuple(_version_info(version, adapter, base_model, slug) for version in adapter.versions),
        aliases={alias.name: numbers[alias.version_id] for alias in adapter.aliases},
    )


def _version_info(version: AdapterVersion, adapter: Adapter, base_model: str, slug: str) -> VersionInfo:
    return VersionInfo(
        adapter_id=adapter.id,
        tenant_id=adapter.tenant_id,
        tenant=slug,
        name=adapter.name,
        base_model=base_model,
        number=version.number,
        digest=version.digest,
        size_bytes=version.size_bytes,
        max_rank=version.max_rank,
        targets=tuple(version.targets),
        report=version.report,
        created_at=version.created_at,
    )


def no_adapter(name: str) -> str:
    return f"name: you have no adapter {ascii(name)[:70]}"

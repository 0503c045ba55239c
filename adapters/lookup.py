"""The registry's questions: the queries, and the facts that their rows become.

Knows rows and selectors. Changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, cast

from sqlalchemy import ColumnElement, Select, String, and_, column, exists, or_, select, table
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import joinedload, selectinload

from loraplex.adapters.errors import AdapterNotFound
from loraplex.adapters.names import version_number
from loraplex.adapters.schema import Adapter, AdapterVersion, Alias, AliasTarget, BaseModel, UtcDateTime

DEFAULT_ALIAS = "prod"

MAX_TARGETS = 8
"""Versions that may share the traffic of one alias."""

# Platform owns this table; the registry reads a tenant's name and whether it is suspended.
tenants = table("tenants", column("id", String), column("slug", Adapter.name.type), column("suspended_at", UtcDateTime))


VersionState = Literal["validating", "ready", "rejected", "quarantined"]
"""validating: its bytes passed their checks, and the engine has not run it yet; ready: it may serve; rejected: it
failed when it was run; quarantined: an operator took it out, or the engine crashed with it. Why it is rejected or
quarantined stands beside the state."""


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One version: immutable weights, whose bytes `digest` names, and the state that they are in.

    `profile_digest` names its serving profile; None: it has none.
    invocation_tokens, is_additive: see `types.AdapterSpec`
    vocab_size: how many tokens it knows; None: its text becomes the base's
    """

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
    state: VersionState
    state_reason: str
    created_at: datetime
    profile_digest: str | None = None
    invocation_tokens: tuple[int, ...] = ()
    is_additive: bool = True
    vocab_size: int | None = None

    @property
    def canonical_name(self) -> str:
        return f"{self.tenant}/{self.name}@{self.number}"


@dataclass(frozen=True, slots=True)
class Target:
    """A version that a name stands for, and its share of the traffic relative to the other targets' weights."""

    version: VersionInfo
    weight: int


@dataclass(frozen=True, slots=True)
class AliasInfo:
    """What an alias stands for: version number -> weight, newest first. Every move of it raises `revision`."""

    name: str
    revision: int
    split: dict[int, int]
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """An adapter as it stood at one moment. `versions` by rising number, `aliases` by name."""

    id: str
    tenant_id: str
    tenant: str
    name: str
    base_model: str
    description: str
    created_at: datetime
    versions: tuple[VersionInfo, ...]
    aliases: dict[str, AliasInfo]


def select_adapters() -> Select[Adapter, str]:
    """Adapters with all that an AdapterInfo needs, and the name of their tenant."""
    return (
        select(Adapter, tenants.c.slug)
        .join(tenants, tenants.c.id == Adapter.tenant_id)
        .options(
            joinedload(Adapter.base_model),
            selectinload(Adapter.versions),
            # joined: SQLite finds no index for the pairs of adapter and alias that a select of their own would list
            selectinload(Adapter.aliases).joinedload(Alias.targets),
        )
    )


async def find_adapter(session: AsyncSession, tenant_id: str, name: str) -> AdapterInfo:
    found = await session.execute(select_adapters().where(*is_adapter(tenant_id, name)))
    for adapter, slug in found:
        return adapter_info(adapter, slug)
    raise AdapterNotFound(no_adapter(name))


async def lock_tenant(session: AsyncSession, tenant_id: str) -> None:
    """From here on one transaction at a time for a tenant, so that no two see the same room in what it may have."""
    await session.execute(select(tenants.c.id).where(tenants.c.id == tenant_id).with_for_update(key_share=True))


async def lock_adapter(session: AsyncSession, tenant_id: str, name: str) -> Adapter:
    """The adapter's row, which no other transaction can change or lock until this one ends. Raises AdapterNotFound."""
    adapter = await session.scalar(select(Adapter).where(*is_adapter(tenant_id, name)).with_for_update())
    if adapter is None:
        raise AdapterNotFound(no_adapter(name))
    return adapter


def is_adapter(tenant_id: str, name: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return Adapter.tenant_id == tenant_id, Adapter.name == name


def select_all_versions() -> Select[AdapterVersion, Adapter, str, str]:
    """Versions, each with its adapter, the name of the adapter's base model and that of its tenant."""
    return (
        select(AdapterVersion, Adapter, BaseModel.name, tenants.c.slug)
        .join(Adapter, Adapter.id == AdapterVersion.adapter_id)
        .join(BaseModel, BaseModel.id == Adapter.base_model_id)
        .join(tenants, tenants.c.id == Adapter.tenant_id)
    )


def select_versions(tenant_id: str, name: str) -> VersionRows:
    """The same of one adapter."""
    return select_all_versions().where(*is_adapter(tenant_id, name))


VersionRows = Select[AdapterVersion, Adapter, str, str]


async def find_targets(session: AsyncSession, tenant_id: str, name: str, selector: str | None) -> tuple[Target, ...]:
    """What `name@selector` stands for, the newest version first; nothing where there is no such thing that is ready.

    Digits are a version number, other selectors an alias. None is the alias `prod` if there is one, else the newest
    version: one that was taken out is not replaced by one that nobody chose.
    """
    alias = DEFAULT_ALIAS if selector is None else selector
    points_here = and_(AliasTarget.version_id == AdapterVersion.id, AliasTarget.alias == alias)
    ready = select_versions(tenant_id, name).where(AdapterVersion.state == "ready")
    wanted = ready.add_columns(AliasTarget.weight).outerjoin(AliasTarget, points_here)
    if selector is not None and selector.isdigit():
        wanted = wanted.where(AdapterVersion.number == version_number(selector))
    elif selector is not None:
        wanted = wanted.where(AliasTarget.weight.is_not(None))
    else:
        has_default = exists().where(Alias.adapter_id == Adapter.id, Alias.name == DEFAULT_ALIAS)
        wanted = wanted.where(or_(AliasTarget.weight.is_not(None), ~has_default))
    newest_first = wanted.order_by(AliasTarget.weight.is_(None), AdapterVersion.number.desc()).limit(MAX_TARGETS)
    targets = [
        (_version_info(version, adapter, base_model, slug), weight)
        for version, adapter, base_model, slug, weight in await session.execute(newest_first)
    ]
    weighted = tuple(Target(version, weight) for version, weight in targets if weight is not None)
    return weighted or tuple(Target(version, 1) for version, _ in targets[:1])


async def version_infos(session: AsyncSession, versions: VersionRows) -> list[VersionInfo]:
    rows = await session.execute(versions)
    return [_version_info(version, adapter, base_model, slug) for version, adapter, base_model, slug in rows]


async def first_version(session: AsyncSession, versions: VersionRows) -> VersionInfo | None:
    return next(iter(await version_infos(session, versions.limit(1))), None)


def adapter_info(adapter: Adapter, slug: str) -> AdapterInfo:
    base_model = adapter.base_model.name
    return AdapterInfo(
        id=adapter.id,
        tenant_id=adapter.tenant_id,
        tenant=slug,
        name=adapter.name,
        base_model=base_model,
        description=adapter.description,
        created_at=adapter.created_at,
        versions=tuple(_version_info(version, adapter, base_model, slug) for version in adapter.versions),
        aliases={alias.name: _alias_info(alias, adapter) for alias in adapter.aliases},
    )


def _alias_info(alias: Alias, adapter: Adapter) -> AliasInfo:
    weights = {target.version_id: target.weight for target in alias.targets}
    newest_first = reversed(adapter.versions)
    split = {version.number: weights[version.id] for version in newest_first if version.id in weights}
    return AliasInfo(alias.name, alias.revision, split, alias.updated_at)


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
        state=cast("VersionState", version.state),
        state_reason=version.state_reason,
        created_at=version.created_at,
        profile_digest=version.profile_digest,
        invocation_tokens=tuple(version.invocation_tokens or ()),
        is_additive=version.is_additive,
        vocab_size=version.vocab_size,
    )


def no_adapter(name: str) -> str:
    return f"name: you have no adapter {ascii(name)[:70]}"


def no_version(name: str, number: int) -> str:
    return f'version: "{name}" has no version {str(number)[:12]}'


def not_ready(name: str, number: int, state: str, reason: str) -> str:
    return f'version: {number} of "{name}" is {state}' + (f": {reason}" if reason else "")

"""The bodies of tenants and their API keys, for operators."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta, Struct

from loraplex.platform.limits.rules import RateLimits, TenantLimits
from loraplex.platform.manage.adapter_schemas import Name
from loraplex.platform.tenants import DEFAULT_WEIGHT, MAX_WEIGHT, MIN_WEIGHT, KeyInfo, TenantInfo

Weight = Annotated[float, Meta(ge=MIN_WEIGHT, le=MAX_WEIGHT)]

Scope = Literal["inference", "adapters", "admin"]


class CreateTenant(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`weight`: how much of a full engine it gets, relative to the other tenants that want it."""

    slug: Name
    name: Annotated[str, Meta(max_length=200)] = ""
    weight: Weight = DEFAULT_WEIGHT


class ChangeTenant(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is null or left out stays as it is."""

    suspended: bool | None = None
    weight: Weight | None = None


class TenantView(Struct, frozen=True, kw_only=True):
    slug: str
    name: str
    weight: float
    suspended: bool
    created_at: datetime
    limits: TenantLimits

    @classmethod
    def of(cls, tenant: TenantInfo) -> TenantView:
        return cls(
            slug=tenant.slug,
            name=tenant.name,
            weight=tenant.weight,
            suspended=tenant.suspended_at is not None,
            created_at=tenant.created_at,
            limits=tenant.limits,
        )


class TenantList(Struct, frozen=True):
    data: list[TenantView]


class CreateKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tenant's key has the scopes inference, adapters or both; an operator's (tenant null) has admin."""

    tenant: Name | None
    name: Annotated[str, Meta(min_length=1, max_length=100)]
    scopes: Annotated[list[Scope], Meta(min_length=1, max_length=3)]
    expires_at: Annotated[datetime, Meta(tz=True)] | None = None


class KeyView(Struct, frozen=True, kw_only=True):
    id: str
    tenant: str | None
    name: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    limits: RateLimits
    secret: str | None = None
    """Only in the answer to the key's creation; it cannot be had again."""

    @classmethod
    def of(cls, key: KeyInfo, secret: str | None = None) -> KeyView:
        return cls(
            id=key.id,
            tenant=key.tenant,
            name=key.name,
            scopes=sorted(key.scopes),
            created_at=key.created_at,
            expires_at=key.expires_at,
            revoked_at=key.revoked_at,
            last_used_at=key.last_used_at,
            limits=key.limits,
            secret=secret,
        )


class KeyList(Struct, frozen=True):
    data: list[KeyView]

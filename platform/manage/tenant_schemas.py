"""The bodies of tenants and their API keys, for operators."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from loraplex.platform.key_changes import DEFAULT_OVERLAP, MAX_OVERLAP
from loraplex.platform.key_terms import MAX_LISTED_ADAPTERS, KeyInfo, KeyTerms
from loraplex.platform.limits.rules import RateLimits, TenantLimits
from loraplex.platform.manage.adapter_schemas import Name
from loraplex.platform.tenants import DEFAULT_WEIGHT, MAX_WEIGHT, MIN_WEIGHT, TenantInfo

SECOND = timedelta(seconds=1)

Weight = Annotated[float, Meta(ge=MIN_WEIGHT, le=MAX_WEIGHT)]

Scope = Literal["inference", "adapters", "admin"]
Scopes = Annotated[list[Scope], Meta(min_length=1, max_length=3)]
KeyName = Annotated[str, Meta(min_length=1, max_length=100)]
Expiry = Annotated[datetime, Meta(tz=True)]
AdapterNames = Annotated[list[Annotated[str, Meta(max_length=63)]], Meta(min_length=1, max_length=MAX_LISTED_ADAPTERS)]


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
    """A tenant's key has the scopes inference, adapters or both; an operator's (tenant null) has admin.

    `adapters`: names of those that requests with the key may name, and "@base" for the base model; what is not among
    them is not there for it. null: all that the tenant has, and the base. Only for keys of the one scope inference.
    What the tenant has stored (files, batches, responses) is open to all its keys of that scope.
    """

    tenant: Name | None
    name: KeyName
    scopes: Scopes
    expires_at: Expiry | None = None
    adapters: AdapterNames | None = None


class ChangeKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is left out stays. `expires_at` null: never; `adapters` null: all."""

    name: KeyName | UnsetType = UNSET
    scopes: Scopes | UnsetType = UNSET
    expires_at: Expiry | UnsetType | None = UNSET
    adapters: AdapterNames | UnsetType | None = UNSET

    def apply(self, terms: KeyTerms) -> KeyTerms:
        given = {field: getattr(self, field) for field in self.__struct_fields__ if getattr(self, field) is not UNSET}
        for field in ("scopes", "adapters"):
            if given.get(field) is not None:
                given[field] = frozenset(given[field])
        return replace(terms, **given)


class RotateKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`overlap_seconds`: how long the old secret holds beside the new one; 0: it ends at once."""

    overlap_seconds: Annotated[int, Meta(ge=0, le=MAX_OVERLAP // SECOND)] = DEFAULT_OVERLAP // SECOND


class OldSecretView(Struct, frozen=True, kw_only=True):
    ends_at: datetime
    last_used_at: datetime | None


class KeyView(Struct, frozen=True, kw_only=True):
    """`old_secret`: the one from before the last rotation, while it holds. `last_used_at`: of either, up to a minute
    late."""

    id: str
    tenant: str | None
    name: str
    scopes: list[str]
    adapters: list[str] | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    rotated_at: datetime | None
    old_secret: OldSecretView | None
    last_used_at: datetime | None
    limits: RateLimits
    secret: str | None = None
    """Only in the answer to the key's creation or rotation; it cannot be had again."""

    @classmethod
    def of(cls, key: KeyInfo, secret: str | None = None) -> KeyView:
        old = key.old_secret
        return cls(
            id=key.id,
            tenant=key.tenant,
            name=key.name,
            scopes=sorted(key.scopes),
            adapters=None if key.adapters is None else sorted(key.adapters),
            created_at=key.created_at,
            expires_at=key.expires_at,
            revoked_at=key.revoked_at,
            rotated_at=key.rotated_at,
            old_secret=OldSecretView(ends_at=old.ends_at, last_used_at=old.last_used_at) if old else None,
            last_used_at=key.last_used_at,
            limits=key.limits,
            secret=secret,
        )


class KeyList(Struct, frozen=True):
    data: list[KeyView]

"""What an operator decides about an API key, within what bounds, and what may be told of a key.

Knows no secret and no query.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from loraplex.adapters.names import check_slug, check_text
from loraplex.adapters.schema import now
from loraplex.platform.limits.rules import RateLimits, stored_limits
from loraplex.platform.schema import ApiKey

SCOPES = frozenset({"inference", "adapters", "admin"})

BASE = "@base"
"""In a list of adapters: the base model of whichever server is asked. No adapter can have this name."""

MAX_LISTED_ADAPTERS = 100

_LATEST_EXPIRY = datetime(9999, 1, 1, tzinfo=UTC)  # in no time zone is a moment before it beyond what datetimes reach


class InvalidKeyRequest(Exception):
    """A key cannot have these scopes, these adapters, this expiry or this overlap. The message names the field."""


@dataclass(frozen=True, slots=True)
class KeyTerms:
    """adapters: names of the tenant's adapters, and BASE: all that the key may name in requests; None: every one that
    the tenant has, and the base. Names may be of adapters that are not there yet."""

    name: str
    scopes: frozenset[str]
    expires_at: datetime | None = None
    adapters: frozenset[str] | None = None

    def check(self, tenant: str | None) -> None:
        """For a key of that tenant, or of an operator. Raises InvalidName, InvalidKeyRequest."""
        allowed = {"admin"} if tenant is None else SCOPES - {"admin"}
        if not self.scopes or not self.scopes <= allowed:
            whose = "an operator's key" if tenant is None else "a tenant's key"
            raise InvalidKeyRequest(f"scopes: {whose} has at least one of: {', '.join(sorted(allowed))}, and no other")
        check_text(self.name, "name", 100)
        if self.adapters is not None:
            _check_adapters(self.adapters, self.scopes)

    def check_expiry(self) -> None:
        """Of a key whose end is set now. Raises InvalidKeyRequest."""
        end = self.expires_at
        if end is not None and (end.tzinfo is None or not now() < end < _LATEST_EXPIRY):
            raise InvalidKeyRequest("expires_at: give a moment in the future, before the year 9999, with its time zone")


def _check_adapters(adapters: frozenset[str], scopes: frozenset[str]) -> None:
    if scopes != {"inference"}:
        # Whoever manages adapters sees and changes all of the tenant's, so a list would promise what it does not keep.
        raise InvalidKeyRequest("adapters: only a key whose one scope is inference can be bound to some of them")
    if not 1 <= len(adapters) <= MAX_LISTED_ADAPTERS:
        raise InvalidKeyRequest(f"adapters: name 1 to {MAX_LISTED_ADAPTERS} of them, or allow all")
    for adapter in adapters - {BASE}:
        check_slug(adapter, "adapters")


@dataclass(frozen=True, slots=True)
class OldSecret:
    """The secret from before the last rotation, while it holds."""

    ends_at: datetime
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What may be told about a key: never its secret. An operator's key has no tenant.

    last_used_at: of either secret; secret_used_at: of the present one. Both may be a minute late. revision: rises with
    every change but that of its limits.
    """

    id: str
    tenant_id: str | None
    tenant: str | None
    name: str
    scopes: frozenset[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    limits: RateLimits
    adapters: frozenset[str] | None
    rotated_at: datetime | None
    secret_used_at: datetime | None
    old_secret: OldSecret | None
    revision: int

    @property
    def terms(self) -> KeyTerms:
        return KeyTerms(self.name, self.scopes, self.expires_at, self.adapters)


def adapters_of(key: ApiKey) -> frozenset[str] | None:
    return None if key.adapters is None else frozenset(key.adapters)


def key_info(key: ApiKey, tenant: str | None) -> KeyInfo:
    """tenant: the name of the key's."""
    is_old_alive = key.revoked_at is None and key.old_ends_at is not None and key.old_ends_at > now()
    used = [moment for moment in (key.last_used_at, key.old_used_at) if moment is not None]
    return KeyInfo(
        id=key.id,
        tenant_id=key.tenant_id,
        tenant=tenant,
        name=key.name,
        scopes=frozenset(key.scopes),
        created_at=key.created_at,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
        last_used_at=max(used, default=None),
        limits=stored_limits(RateLimits, key.limits),
        adapters=adapters_of(key),
        rotated_at=key.rotated_at,
        secret_used_at=key.last_used_at,
        old_secret=OldSecret(key.old_ends_at, key.old_used_at) if is_old_alive and key.old_ends_at else None,
        revision=key.revision,
    )

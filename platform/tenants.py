"""Tenants and their API keys: who they are, and who a key speaks for.

Knows rows and secrets. Knows no HTTP, and caches nothing: what it says is true at that moment.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Select, or_, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncSession

from loraplex.adapters.changes import KEYS, record_change
from loraplex.adapters.database import Database
from loraplex.adapters.names import check_slug, check_text
from loraplex.adapters.schema import now
from loraplex.platform.api_keys import fingerprint, key_id_of, new_key
from loraplex.platform.budgets.rules import CallerBudgets, caller_budgets
from loraplex.platform.limits.rules import CallerLimits, RateLimits, TenantLimits, caller_limits, stored_limits
from loraplex.platform.schema import ApiKey, Tenant

SCOPES = frozenset({"inference", "adapters", "admin"})

_LAST_USED_STEP = timedelta(minutes=1)
_NO_FINGERPRINT = bytes(32)
_LATEST_EXPIRY = datetime(9999, 1, 1, tzinfo=UTC)  # in no time zone is a moment before it beyond what datetimes reach


class TenantError(Exception):
    """Base of what can go wrong here. Messages name the field and the remedy."""


class TenantExists(TenantError):
    """There is a tenant of that name already."""


class TenantNotFound(TenantError):
    """There is no tenant of that name."""


class KeyNotFound(TenantError):
    """There is no API key with that id."""


class InvalidKeyRequest(TenantError):
    """A key cannot have these scopes or this expiry."""


class InvalidKey(TenantError):
    """The key is malformed, unknown, revoked, expired, or its tenant is suspended: callers are not told which."""

    def __init__(self) -> None:
        super().__init__("the API key is not valid")


@dataclass(frozen=True, slots=True)
class TenantInfo:
    """A tenant. `weight` is its share when the server is full, relative to the others'."""

    id: str
    slug: str
    name: str
    weight: float
    suspended_at: datetime | None
    created_at: datetime
    limits: TenantLimits


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What may be told about a key: never its secret. An operator's key has no tenant."""

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


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a request comes from. `salt` keeps the tenant's cached prefixes apart; an operator, who has none, has b"".

    limits, budgets: None where there are none. priority: the lowest that its requests have in the engine's queue, where
    the lowest is first. content_days: how long what its requests ask and are answered is kept; None: not at all.
    """

    key_id: str
    tenant_id: str | None
    tenant: str | None
    scopes: frozenset[str]
    salt: bytes
    limits: CallerLimits | None = None
    budgets: CallerBudgets | None = None
    priority: int = 0
    content_days: int | None = None


class TenantDirectory:
    """Each method is one transaction, save `authenticate`, which notes the use of the key in a second one.

    default_limits: of tenants that have none of their own.
    """

    def __init__(self, database: Database, default_limits: TenantLimits | None = None) -> None:
        self._database = database
        self._default_limits = default_limits

    async def create_tenant(self, slug: str, name: str = "") -> TenantInfo:
        """A new tenant. name: up to 200 characters for people. Raises InvalidName, TenantExists."""
        check_slug(slug, "slug")
        check_text(name, "name", 200)
        tenant = Tenant(slug=slug, name=name)
        try:
            async with self._database.transaction() as session:
                session.add(tenant)
        except IntegrityError as error:
            raise TenantExists(f'slug: there is a tenant "{slug}" already; choose another name') from error
        return _tenant_info(tenant)

    async def list_tenants(self) -> list[TenantInfo]:
        """All tenants by slug."""
        async with self._database.read() as session:
            return [_tenant_info(tenant) for tenant in await session.scalars(select(Tenant).order_by(Tenant.slug))]

    async def get_tenant(self, slug: str) -> TenantInfo:
        """Raises TenantNotFound."""
        async with self._database.read() as session:
            return _tenant_info(await _tenant(session, slug))

    async def set_suspended(self, slug: str, suspended: bool) -> TenantInfo:
        """While a tenant is suspended none of its keys is valid. Raises TenantNotFound."""
        async with self._database.transaction() as session:
            tenant = await _tenant(session, slug)
            if suspended != (tenant.suspended_at is not None):
                tenant.suspended_at = now() if suspended else None
                await record_change(session, KEYS)
            return _tenant_info(tenant)

    async def content_days(self, slug: str) -> int | None:
        """How long what its requests ask and are answered is kept; None: not at all. Raises TenantNotFound."""
        async with self._database.read() as session:
            return (await _tenant(session, slug)).content_days

    async def set_content_days(self, slug: str, days: int | None) -> None:
        """Of requests from now on. Raises TenantNotFound."""
        async with self._database.transaction() as session:
            (await _tenant(session, slug)).content_days = days
            await record_change(session, KEYS)

    async def create_key(
        self, tenant: str | None, name: str, scopes: Iterable[str], expires_at: datetime | None = None
    ) -> tuple[KeyInfo, str]:
        """A new key and its text, which cannot be had again.

        A tenant's key has the scopes inference, adapters or both; an operator's (tenant None) has admin alone.
        Raises InvalidName, InvalidKeyRequest, TenantNotFound.
        """
        granted = frozenset(scopes)
        _check_key(tenant, name, granted, expires_at)
        key_id, text = new_key()
        async with self._database.transaction() as session:
            owner = None if tenant is None else await _tenant(session, tenant)
            key = ApiKey(
                id=key_id,
                tenant_id=owner.id if owner else None,
                name=name,
                secret_sha256=fingerprint(text),
                scopes=sorted(granted),
                expires_at=expires_at,
            )
            session.add(key)
            await session.flush()
            return _key_info(key, tenant), text

    async def list_keys(self, tenant: str | None = None) -> list[KeyInfo]:
        """The keys of one tenant, or all with the operators', oldest first. Raises TenantNotFound."""
        async with self._database.read() as session:
            keys = _keys().order_by(ApiKey.created_at, ApiKey.id)
            if tenant is not None:
                keys = keys.where(ApiKey.tenant_id == (await _tenant(session, tenant)).id)
            return [_key_info(key, _slug(owner)) for key, owner in (await session.execute(keys))]

    async def get_key(self, key_id: str) -> KeyInfo:
        """Raises KeyNotFound."""
        async with self._database.read() as session:
            found = (await session.execute(_keys().where(ApiKey.id == key_id))).first()
        if found is None:
            raise KeyNotFound(f"id: there is no API key {ascii(key_id)[:20]}")
        key, owner = found
        return _key_info(key, _slug(owner))

    async def revoke_key(self, key_id: str) -> KeyInfo:
        """End the key for good; again is fine. Raises KeyNotFound."""
        async with self._database.transaction() as session:
            found = (await session.execute(_keys().where(ApiKey.id == key_id))).first()
            if found is None:
                raise KeyNotFound(f"id: there is no API key {ascii(key_id)[:20]}")
            key, owner = found
            key.revoked_at = key.revoked_at or now()
            await record_change(session, KEYS)
            return _key_info(key, _slug(owner))

    async def authenticate(self, secret: str) -> Principal:
        """Who the key speaks for. Raises InvalidKey, the same for every reason."""
        key_id = key_id_of(secret)
        if key_id is None:
            raise InvalidKey
        async with self._database.read() as session:
            found = (await session.execute(_keys().where(ApiKey.id == key_id))).first()
        # An unknown id costs the same comparison as a wrong secret.
        stored = found[0].secret_sha256 if found else _NO_FINGERPRINT
        matches = hmac.compare_digest(stored, fingerprint(secret))
        if not (matches and found and _is_valid(*found)):
            raise InvalidKey
        await self._note_use(found[0])
        return _principal(*found, _limits(*found, self._default_limits))

    async def principal_of(self, key_id: str) -> Principal:
        """Who a key speaks for that has asked for work which goes on without it: such work waits for room instead of
        counting for limits; of budgets it spends. Raises InvalidKey."""
        async with self._database.read() as session:
            found = (await session.execute(_keys().where(ApiKey.id == key_id))).first()
        if not (found and _is_valid(*found)):
            raise InvalidKey
        return _principal(*found, None)

    async def principal_of_tenant(self, slug: str, account_id: str, scopes: Iterable[str]) -> Principal:
        """Whom a person speaks for who acts for a tenant: the id stands where a key's would. Raises TenantNotFound,
        also for a tenant that is suspended."""
        async with self._database.read() as session:
            tenant = await _tenant(session, slug)
        if tenant.suspended_at is not None:
            raise TenantNotFound(f"tenant: {slug} is suspended; resume it first")
        return Principal(
            account_id,
            tenant.id,
            tenant.slug,
            frozenset(scopes),
            tenant.cache_salt,
            budgets=caller_budgets(None, tenant.budget),
            content_days=tenant.content_days,
        )

    async def _note_use(self, key: ApiKey) -> None:
        """Write the time of use unless the last one is recent. It is a hint: a busy or full disk refuses nobody."""
        recent = now() - _LAST_USED_STEP
        if key.last_used_at is not None and key.last_used_at > recent:
            return
        stale = ApiKey.id == key.id, or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at <= recent)
        with suppress(DBAPIError, PoolTimeoutError):
            async with self._database.transaction() as session:
                await session.execute(update(ApiKey).where(*stale).values(last_used_at=now()))


def _check_key(tenant: str | None, name: str, scopes: frozenset[str], expires_at: datetime | None) -> None:
    allowed = {"admin"} if tenant is None else SCOPES - {"admin"}
    if not scopes or not scopes <= allowed:
        whose = "an operator's key" if tenant is None else "a tenant's key"
        raise InvalidKeyRequest(f"scopes: {whose} has at least one of: {', '.join(sorted(allowed))}, and no other")
    check_text(name, "name", 100)
    if expires_at is not None and (expires_at.tzinfo is None or not now() < expires_at < _LATEST_EXPIRY):
        raise InvalidKeyRequest("expires_at: give a moment in the future, before the year 9999, with its time zone")


def _is_valid(key: ApiKey, tenant: Tenant | None) -> bool:
    expired = key.expires_at is not None and key.expires_at <= now()
    suspended = tenant is not None and tenant.suspended_at is not None
    return key.revoked_at is None and not expired and not suspended


def _principal(key: ApiKey, tenant: Tenant | None, limits: CallerLimits | None) -> Principal:
    return Principal(
        key_id=key.id,
        tenant_id=key.tenant_id,
        tenant=_slug(tenant),
        scopes=frozenset(key.scopes),
        salt=tenant.cache_salt if tenant else b"",
        limits=limits,
        budgets=caller_budgets(key.budget, tenant.budget if tenant else None),
        content_days=tenant.content_days if tenant else None,
    )


def _limits(key: ApiKey, tenant: Tenant | None, defaults: TenantLimits | None) -> CallerLimits | None:
    of_key = stored_limits(RateLimits, key.limits)
    of_tenant = stored_limits(TenantLimits, tenant.limits, defaults) if tenant else TenantLimits()
    return caller_limits(of_key, of_tenant)


def _keys() -> Select[ApiKey, Tenant | None]:
    return select(ApiKey, Tenant).outerjoin(Tenant, Tenant.id == ApiKey.tenant_id)


async def _tenant(session: AsyncSession, slug: str) -> Tenant:
    tenant = await session.scalar(select(Tenant).where(Tenant.slug == slug))
    if tenant is None:
        raise TenantNotFound(f"tenant: there is no tenant {ascii(slug)[:70]}; create it first")
    return tenant


def _slug(tenant: Tenant | None) -> str | None:
    return None if tenant is None else tenant.slug


def _tenant_info(tenant: Tenant) -> TenantInfo:
    return TenantInfo(
        id=tenant.id,
        slug=tenant.slug,
        name=tenant.name,
        weight=tenant.weight,
        suspended_at=tenant.suspended_at,
        created_at=tenant.created_at,
        limits=stored_limits(TenantLimits, tenant.limits),
    )


def _key_info(key: ApiKey, tenant: str | None) -> KeyInfo:
    return KeyInfo(
        id=key.id,
        tenant_id=key.tenant_id,
        tenant=tenant,
        name=key.name,
        scopes=frozenset(key.scopes),
        created_at=key.created_at,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
        last_used_at=key.last_used_at,
        limits=stored_limits(RateLimits, key.limits),
    )

"""Tenants and their API keys: who they are, and who a key speaks for.

Knows rows and secrets. Knows no HTTP, and caches nothing: what it says is true at that moment.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Select, or_, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncSession

from loraplex.adapters.audit import SERVER, Actor, record
from loraplex.adapters.changes import KEYS, record_change
from loraplex.adapters.database import Database
from loraplex.adapters.names import check_slug, check_text
from loraplex.adapters.schema import now
from loraplex.engine.events import Share
from loraplex.platform.api_keys import fingerprint, key_id_of, new_key
from loraplex.platform.budgets.rules import CallerBudgets, caller_budgets
from loraplex.platform.key_terms import KeyInfo, KeyTerms, adapters_of, key_info
from loraplex.platform.limits.rules import CallerLimits, RateLimits, TenantLimits, caller_limits, stored_limits
from loraplex.platform.schema import ApiKey, Tenant

DEFAULT_WEIGHT, MIN_WEIGHT, MAX_WEIGHT = 1.0, 0.1, 100.0
"""Of tenants: how much of a full engine one gets, relative to the others that want it."""

_LAST_USED_STEP = timedelta(minutes=1)
_NO_FINGERPRINT = bytes(32)


class TenantError(Exception):
    """Base of what can go wrong here. Messages name the field and the remedy."""


class TenantExists(TenantError):
    """There is a tenant of that name already."""


class TenantNotFound(TenantError):
    """There is no tenant of that name."""


class KeyNotFound(TenantError):
    """There is no API key with that id."""


class InvalidWeight(TenantError):
    """A tenant cannot have this weight."""


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
class Principal:
    """Who a request comes from. `salt` keeps the tenant's cached prefixes apart; an operator, who has none, has b"".

    limits, budgets: None where there are none. weight: the tenant's. priority: the lowest that its requests have in the
    engine's queue, where the lowest is first. content_days: how long what its requests ask and are answered is kept;
    None: not at all. adapters: those that it may name, as `KeyTerms` has them. valid_until: when the key, or this
    secret of it, ends.
    """

    key_id: str
    tenant_id: str | None
    tenant: str | None
    scopes: frozenset[str]
    salt: bytes
    limits: CallerLimits | None = None
    weight: float = DEFAULT_WEIGHT
    budgets: CallerBudgets | None = None
    priority: int = 0
    content_days: int | None = None
    adapters: frozenset[str] | None = None
    valid_until: datetime | None = None

    def may_name(self, adapter: str) -> bool:
        """Whether its requests may be for an adapter of its tenant's, or for `key_terms.BASE`."""
        return self.adapters is None or adapter in self.adapters

    @property
    def share(self) -> Share:
        """Whose part of the engine its requests use: the tenant's, whichever of its keys they come with."""
        return Share(self.tenant_id or "", self.weight)


class TenantDirectory:
    """Each method is one transaction, save `authenticate`, which notes the use of the key in a second one.

    default_limits: of tenants that have none of their own.
    """

    def __init__(self, database: Database, default_limits: TenantLimits | None = None) -> None:
        self._database = database
        self._default_limits = default_limits

    async def create_tenant(
        self, slug: str, name: str = "", weight: float = DEFAULT_WEIGHT, *, by: Actor = SERVER
    ) -> TenantInfo:
        """A new tenant. name: up to 200 characters for people. Raises InvalidName, InvalidWeight, TenantExists."""
        check_slug(slug, "slug")
        check_text(name, "name", 200)
        _check_weight(weight)
        tenant = Tenant(slug=slug, name=name, weight=weight)
        try:
            async with self._database.transaction() as session:
                session.add(tenant)
                await session.flush()
                after = {"name": name, "weight": weight}
                await record(session, by, "tenant.create", f"tenants/{slug}", tenant_id=tenant.id, after=after)
        except IntegrityError as error:
            raise TenantExists(f'slug: there is a tenant "{slug}" already; choose another name') from error
        return _tenant_info(tenant)

    async def list_tenants(self) -> list[TenantInfo]:
        """All tenants by slug."""
        async with self._database.read() as session:
            return [_tenant_info(tenant) for tenant in await session.scalars(select(Tenant).order_by(Tenant.slug))]

    async def slugs_of(self, tenant_ids: Collection[str]) -> dict[str, str]:
        """Of those among them that there are."""
        wanted = select(Tenant.id, Tenant.slug).where(Tenant.id.in_(tenant_ids))
        async with self._database.read() as session:
            return {row.id: row.slug for row in await session.execute(wanted)}

    async def get_tenant(self, slug: str) -> TenantInfo:
        """Raises TenantNotFound."""
        async with self._database.read() as session:
            return _tenant_info(await _tenant(session, slug))

    async def slugs(self, tenant_ids: Collection[str]) -> dict[str, str]:
        """Of those of these tenants that there are, by id."""
        async with self._database.read() as session:
            found = await session.execute(select(Tenant.id, Tenant.slug).where(Tenant.id.in_(tenant_ids)))
            return {tenant_id: slug for tenant_id, slug in found}  # noqa: C416  rows are no pairs

    async def set_suspended(self, slug: str, suspended: bool, *, by: Actor = SERVER) -> TenantInfo:
        """While a tenant is suspended none of its keys is valid. Raises TenantNotFound."""
        async with self._database.transaction() as session:
            tenant = await _tenant(session, slug)
            if suspended != (tenant.suspended_at is not None):
                tenant.suspended_at = now() if suspended else None
                await record_change(session, KEYS)
                told = {"before": {"suspended": not suspended}, "after": {"suspended": suspended}}
                action = "tenant.suspend" if suspended else "tenant.resume"
                await record(session, by, action, f"tenants/{slug}", tenant_id=tenant.id, **told)
            return _tenant_info(tenant)

    async def content_days(self, slug: str) -> int | None:
        """How long what its requests ask and are answered is kept; None: not at all. Raises TenantNotFound."""
        async with self._database.read() as session:
            return (await _tenant(session, slug)).content_days

    async def set_content_days(self, slug: str, days: int | None, *, by: Actor = SERVER) -> None:
        """Of requests from now on. Raises TenantNotFound."""
        async with self._database.transaction() as session:
            tenant = await _tenant(session, slug)
            before, tenant.content_days = tenant.content_days, days
            await record_change(session, KEYS)
            told = {"before": {"content_days": before}, "after": {"content_days": days}}
            await record(session, by, "tenant.contents", f"tenants/{slug}", tenant_id=tenant.id, **told)

    async def set_weight(self, slug: str, weight: float, *, by: Actor = SERVER) -> TenantInfo:
        """Its requests count with it from the next one on, on other servers within `changes.MAX_STALE_SECONDS`. Raises
        InvalidWeight, TenantNotFound."""
        _check_weight(weight)
        async with self._database.transaction() as session:
            tenant = await _tenant(session, slug)
            if weight != tenant.weight:
                before, tenant.weight = tenant.weight, weight
                await record_change(session, KEYS)
                told = {"before": {"weight": before}, "after": {"weight": weight}}
                await record(session, by, "tenant.weight", f"tenants/{slug}", tenant_id=tenant.id, **told)
            return _tenant_info(tenant)

    async def create_key(
        self,
        tenant: str | None,
        name: str,
        scopes: Iterable[str],
        expires_at: datetime | None = None,
        adapters: Iterable[str] | None = None,
        *,
        by: Actor = SERVER,
    ) -> tuple[KeyInfo, str]:
        """A new key and its text, which cannot be had again.

        A tenant's key has the scopes inference, adapters or both; an operator's (tenant None) has admin alone.
        adapters: as `KeyTerms` has them. Raises InvalidName, InvalidKeyRequest, TenantNotFound.
        """
        terms = KeyTerms(name, frozenset(scopes), expires_at, None if adapters is None else frozenset(adapters))
        terms.check(tenant)
        terms.check_expiry()
        key_id, text = new_key()
        async with self._database.transaction() as session:
            owner = None if tenant is None else await _tenant(session, tenant)
            key = ApiKey(
                id=key_id,
                tenant_id=owner.id if owner else None,
                name=name,
                secret_sha256=fingerprint(text),
                scopes=sorted(terms.scopes),
                expires_at=expires_at,
                adapters=None if terms.adapters is None else sorted(terms.adapters),
            )
            session.add(key)
            await session.flush()
            after = {"name": name, "scopes": key.scopes, "expires_at": expires_at, "adapters": key.adapters}
            await record(session, by, "key.create", f"keys/{key.id}", tenant_id=key.tenant_id, after=after)
            return key_info(key, tenant), text

    async def list_keys(self, tenant: str | None = None) -> list[KeyInfo]:
        """The keys of one tenant, or all with the operators', oldest first. Raises TenantNotFound."""
        async with self._database.read() as session:
            keys = _keys().order_by(ApiKey.created_at, ApiKey.id)
            if tenant is not None:
                keys = keys.where(ApiKey.tenant_id == (await _tenant(session, tenant)).id)
            return [key_info(key, _slug(owner)) for key, owner in (await session.execute(keys))]

    async def get_key(self, key_id: str) -> KeyInfo:
        """Raises KeyNotFound."""
        async with self._database.read() as session:
            key, owner = await find_key(session, key_id)
        return key_info(key, _slug(owner))

    async def revoke_key(self, key_id: str, *, by: Actor = SERVER) -> KeyInfo:
        """End the key for good; again is fine. Raises KeyNotFound."""
        async with self._database.transaction() as session:
            key, owner = await find_key(session, key_id, for_update=True)
            if key.revoked_at is None:
                key.revoked_at = now()
                key.revision += 1
                await record_change(session, KEYS)
                where, after = f"keys/{key.id}", {"revoked_at": key.revoked_at}
                await record(session, by, "key.revoke", where, tenant_id=key.tenant_id, after=after)
            return key_info(key, _slug(owner))

    async def authenticate(self, secret: str) -> Principal:
        """Who the key speaks for. Raises InvalidKey, the same for every reason."""
        key_id = key_id_of(secret)
        if key_id is None:
            raise InvalidKey
        async with self._database.read() as session:
            found = (await session.execute(_keys().where(ApiKey.id == key_id))).first()
        # An unknown id, and a key of one secret, cost the same comparisons as a wrong secret of two.
        present = found[0].secret_sha256 if found else _NO_FINGERPRINT
        old = (found[0].old_sha256 if found else None) or _NO_FINGERPRINT
        given = fingerprint(secret)
        is_present, is_old = hmac.compare_digest(present, given), hmac.compare_digest(old, given)
        if not ((is_present or is_old) and found and _is_valid(*found, by_old_secret=is_old)):
            raise InvalidKey
        await self._note_use(found[0], by_old_secret=is_old)
        return _principal(*found, _limits(*found, self._default_limits), by_old_secret=is_old)

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
            weight=tenant.weight,
            budgets=caller_budgets(None, tenant.budget),
            content_days=tenant.content_days,
        )

    async def _note_use(self, key: ApiKey, *, by_old_secret: bool) -> None:
        """Write the time of use unless the last one is recent. It is a hint: a busy or full disk refuses nobody."""
        recent = now() - _LAST_USED_STEP
        last = key.old_used_at if by_old_secret else key.last_used_at
        if last is not None and last > recent:
            return
        column = ApiKey.old_used_at if by_old_secret else ApiKey.last_used_at
        stale = ApiKey.id == key.id, or_(column.is_(None), column <= recent)
        with suppress(DBAPIError, PoolTimeoutError):
            async with self._database.transaction() as session:
                await session.execute(update(ApiKey).where(*stale).values({column: now()}))


async def find_key(session: AsyncSession, key_id: str, *, for_update: bool = False) -> tuple[ApiKey, Tenant | None]:
    """A key and its tenant. Raises KeyNotFound."""
    wanted = _keys().where(ApiKey.id == key_id)
    if for_update:
        wanted = wanted.with_for_update(of=ApiKey, key_share=True)
    for key, tenant in await session.execute(wanted):
        return key, tenant
    raise KeyNotFound(f"id: there is no API key {ascii(key_id)[:20]}")


def _check_weight(weight: float) -> None:
    if not MIN_WEIGHT <= weight <= MAX_WEIGHT:
        raise InvalidWeight(f"weight: give a number from {MIN_WEIGHT:g} to {MAX_WEIGHT:g}; {DEFAULT_WEIGHT:g} is usual")


def _is_valid(key: ApiKey, tenant: Tenant | None, *, by_old_secret: bool = False) -> bool:
    end = _end(key, by_old_secret)
    suspended = tenant is not None and tenant.suspended_at is not None
    return key.revoked_at is None and (end is None or end > now()) and not suspended


def _end(key: ApiKey, by_old_secret: bool) -> datetime | None:
    ends = (key.expires_at, key.old_ends_at if by_old_secret else None)
    return min((end for end in ends if end is not None), default=None)


def _principal(
    key: ApiKey, tenant: Tenant | None, limits: CallerLimits | None, *, by_old_secret: bool = False
) -> Principal:
    return Principal(
        key_id=key.id,
        tenant_id=key.tenant_id,
        tenant=_slug(tenant),
        scopes=frozenset(key.scopes),
        salt=tenant.cache_salt if tenant else b"",
        limits=limits,
        budgets=caller_budgets(key.budget, tenant.budget if tenant else None),
        content_days=tenant.content_days if tenant else None,
        adapters=adapters_of(key),
        valid_until=_end(key, by_old_secret),
        weight=tenant.weight if tenant else DEFAULT_WEIGHT,
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

"""Change an API key that there is: what it may do and until when, and its secret, while the old one holds on.

A key keeps its id, its limits and what was made with it. A change holds on this server at once and on others within
`changes.MAX_STALE_SECONDS`. Knows rows and secrets; knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from loraplex.adapters.audit import SERVER, Actor, Facts, record
from loraplex.adapters.changes import KEYS, record_change
from loraplex.adapters.database import Database
from loraplex.adapters.schema import now
from loraplex.platform.api_keys import fingerprint, new_key
from loraplex.platform.key_terms import InvalidKeyRequest, KeyInfo, KeyTerms, key_info
from loraplex.platform.schema import ApiKey, Tenant
from loraplex.platform.tenants import TenantError, find_key

DEFAULT_OVERLAP = timedelta(days=1)
MAX_OVERLAP = timedelta(days=30)


class KeyChanged(TenantError):
    """The key is not at the revision that the caller has seen: somebody else changed it."""


class KeyEnded(TenantError):
    """The key is revoked or has expired."""


class RotationUnderWay(TenantError):
    """An old secret still holds, and a key has two at most."""


class KeyChanges:
    """Each method is one transaction. expected: the revision at which the key has to be; None: any.

    All raise KeyNotFound, KeyChanged, and KeyEnded for a key that was revoked.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def change(
        self,
        key_id: str,
        change: Callable[[KeyTerms], KeyTerms],
        expected: int | None = None,
        *,
        by: Actor = SERVER,
    ) -> KeyInfo:
        """Let a key have other terms; `change` gives them for those of before. A key that has expired may be given
        another end. Raises InvalidName, InvalidKeyRequest, and what `change` raises."""
        async with self._database.transaction() as session:
            key, tenant = await _find_alive(session, key_id, expected)
            before = key_info(key, _slug(tenant)).terms
            after = change(before)
            if after != before:
                after.check(_slug(tenant))
                if after.expires_at != before.expires_at:
                    after.check_expiry()
                key.name, key.scopes, key.expires_at = after.name, sorted(after.scopes), after.expires_at
                key.adapters = None if after.adapters is None else sorted(after.adapters)
                await _record(session, by, "key.change", key, before=_told(before), after=_told(after))
            return key_info(key, _slug(tenant))

    async def rotate(
        self,
        key_id: str,
        overlap: timedelta = DEFAULT_OVERLAP,
        expected: int | None = None,
        *,
        by: Actor = SERVER,
    ) -> tuple[KeyInfo, str]:
        """A new secret for a key, as its whole text, which cannot be had again. The one of before ends after `overlap`,
        at once where that is zero.

        While an earlier one holds still, only a rotation without overlap is done, which ends both: nobody's secret ends
        before its time by mistake. Raises InvalidKeyRequest, RotationUnderWay, and KeyEnded also for a key that has
        expired.
        """
        if not timedelta() <= overlap <= MAX_OVERLAP:
            raise InvalidKeyRequest(f"overlap_seconds: the old secret may hold for {MAX_OVERLAP.days} days at most")
        async with self._database.transaction() as session:
            key, tenant = await _find_alive(session, key_id, expected)
            moment = now()
            if key.expires_at is not None and key.expires_at <= moment:
                raise KeyEnded("id: this key has expired; give it another expires_at first")
            if overlap and key.old_ends_at is not None and key.old_ends_at > moment:
                end = f"{key.old_ends_at:%Y-%m-%d %H:%M} UTC"
                raise RotationUnderWay(
                    f"overlap_seconds: the secret from before the last rotation holds until {end}; end it first, or "
                    "rotate without overlap, which ends both"
                )
            _, text = new_key(key.id)
            key.old_sha256, key.old_ends_at, key.old_used_at = key.secret_sha256, moment + overlap, key.last_used_at
            key.secret_sha256, key.rotated_at, key.last_used_at = fingerprint(text), moment, None
            await _record(session, by, "key.rotate", key, after={"old_secret_ends_at": key.old_ends_at})
            return key_info(key, _slug(tenant)), text

    async def end_old_secret(self, key_id: str, expected: int | None = None, *, by: Actor = SERVER) -> KeyInfo:
        """End the secret from before the last rotation now; again, or where there is none, is fine."""
        async with self._database.transaction() as session:
            key, tenant = await _find_alive(session, key_id, expected)
            if key.old_ends_at is not None and key.old_ends_at > now():
                before, key.old_ends_at = key.old_ends_at, now()
                told = {"before": {"old_secret_ends_at": before}, "after": {"old_secret_ends_at": key.old_ends_at}}
                await _record(session, by, "key.end_old_secret", key, **told)
            return key_info(key, _slug(tenant))


async def _find_alive(session: AsyncSession, key_id: str, expected: int | None) -> tuple[ApiKey, Tenant | None]:
    key, tenant = await find_key(session, key_id, for_update=True)
    if expected is not None and key.revision != expected:
        raise KeyChanged(f"If-Match: the key is at revision {key.revision}, not {expected}; read it again")
    if key.revoked_at is not None:
        raise KeyEnded("id: this key was revoked, which is for good; create another one")
    return key, tenant


async def _record(session: AsyncSession, by: Actor, action: str, key: ApiKey, **told: Facts) -> None:
    key.revision += 1
    await record_change(session, KEYS)
    await record(session, by, action, f"keys/{key.id}", tenant_id=key.tenant_id, **told)


def _told(terms: KeyTerms) -> Facts:
    adapters = None if terms.adapters is None else sorted(terms.adapters)
    return {"name": terms.name, "scopes": sorted(terms.scopes), "expires_at": terms.expires_at, "adapters": adapters}


def _slug(tenant: Tenant | None) -> str | None:
    return None if tenant is None else tenant.slug

"""Accounts of people for whom an OpenID provider vouches: made at their first sign-in, and what they may see is decided
anew at each.

An account belongs to (issuer, subject) and to nothing else: an address or a name that a provider tells links nobody to
an account that there is. Knows rows and claims; knows no protocol and no cookie.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from loraplex.adapters.audit import SERVER, Actor, Facts, record
from loraplex.adapters.database import Database
from loraplex.adapters.schema import now
from loraplex.platform.accounts import AccountError, AccountInfo, account_info, new_account_id, role_of
from loraplex.platform.oidc_flow import Identity
from loraplex.platform.oidc_settings import OPERATOR, TENANT, OidcSettings
from loraplex.platform.schema import MAX_SUBJECT_CHARS, Account, AccountIdentity, Tenant, WebSession

MAX_LOGIN_CHARS = 40
TRIES = 3
"""To make an account while others make theirs of the same name."""


class NotAdmitted(AccountError):
    """The provider knows the person, and this server does not let them in: nothing that it says of them stands for a
    role, the role's tenant is not there or suspended, or the account is disabled. People are not told which."""

    def __init__(self, reason: str) -> None:
        super().__init__("You are known there, but may not sign in here. Ask whoever runs this server.")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Grant:
    """tenant: of which the person is an admin; None: an operator."""

    tenant: str | None


def grant_of(claims: Mapping[str, Any], settings: OidcSettings) -> Grant:
    """Raises NotAdmitted."""
    if settings.oidc_email_domains:
        domain = str(claims.get("email", "")).rpartition("@")[2].lower()
        if claims.get("email_verified") is not True or domain not in map(str.lower, settings.oidc_email_domains):
            raise NotAdmitted("no verified address in oidc_email_domains")
    values = _values(claims, settings.oidc_role_claim)
    for value, role in settings.oidc_roles.items():
        if value in values:
            return Grant(None if role == OPERATOR else role.removeprefix(TENANT))
    raise NotAdmitted("no value of oidc_role_claim is in oidc_roles")


class IdentityDirectory:
    """Each method is one transaction, tried again where others get in its way."""

    def __init__(self, database: Database, settings: OidcSettings) -> None:
        self._database = database
        self._settings = settings

    async def sign_in(self, identity: Identity, *, by: Actor = SERVER) -> AccountInfo:
        """The person's account, made where there is none. Where what it may see has changed, its sessions end, and
        likewise where it may see nothing any more. Raises NotAdmitted."""
        for attempt in range(TRIES):
            try:
                return await self._sign_in(identity, by)
            except IntegrityError:
                if attempt == TRIES - 1:
                    raise
        raise AssertionError

    async def _sign_in(self, identity: Identity, by: Actor) -> AccountInfo:
        refusal: NotAdmitted
        async with self._database.transaction() as session:
            account = await _find(session, identity)
            try:
                return await self._admit(session, identity, account, by)
            except NotAdmitted as error:
                refusal = error
                if account is not None and await _end_sessions(session, account):
                    await _record(session, by, "account.logout_everywhere", account)
        raise refusal

    async def _admit(
        self, session: AsyncSession, identity: Identity, account: Account | None, by: Actor
    ) -> AccountInfo:
        grant = grant_of(identity.claims, self._settings)
        tenant = None
        if grant.tenant is not None:
            tenant = await session.scalar(select(Tenant).where(Tenant.slug == grant.tenant))
            if tenant is None or tenant.suspended_at is not None:
                raise NotAdmitted("the tenant of the role is not there or suspended")
        tenant_id = tenant.id if tenant else None
        is_new = account is None
        if account is None:
            account = await _create(session, identity, tenant_id)
        if account.disabled_at is not None:
            raise NotAdmitted("the account is disabled")
        before = account.tenant_id
        if before != tenant_id:
            account.tenant_id = tenant_id
            await _end_sessions(session, account)
        account.last_login_at = now()
        person = replace(by, kind="account", id=account.id, name=account.login, tenant_id=tenant_id)
        if is_new:
            await _record(session, by, "account.create", account, after={"role": role_of(tenant_id)})
        if before != tenant_id:
            told = {"before": {"role": role_of(before)}, "after": {"role": role_of(tenant_id)}}
            await _record(session, by, "account.role", account, **told)
        await _record(session, person, "account.login", account)
        return account_info(account, grant.tenant)


async def _find(session: AsyncSession, identity: Identity) -> Account | None:
    is_theirs = AccountIdentity.issuer == identity.issuer, AccountIdentity.subject == identity.subject
    found = select(Account).join(AccountIdentity, AccountIdentity.account_id == Account.id).where(*is_theirs)
    return await session.scalar(found.with_for_update(of=Account))


async def _create(session: AsyncSession, identity: Identity, tenant_id: str | None) -> Account:
    if not 0 < len(identity.subject) <= MAX_SUBJECT_CHARS or not identity.subject.isprintable():
        raise NotAdmitted("the provider's name for the person is longer than OpenID Connect allows, or unprintable")
    account = Account(id=new_account_id(), login=await _free_login(session, identity.claims), tenant_id=tenant_id)
    session.add(account)
    await session.flush()
    session.add(AccountIdentity(issuer=identity.issuer, subject=identity.subject, account_id=account.id))
    return account


async def _free_login(session: AsyncSession, claims: Mapping[str, Any]) -> str:
    """A name for people to read: what the provider calls the person, with something behind it where that is taken."""
    told = claims.get("preferred_username") or claims.get("email") or ""
    wanted = re.sub(r"[^a-z0-9._-]+", "-", str(told).partition("@")[0].lower())[:MAX_LOGIN_CHARS].strip("-._")
    login = wanted or "person"
    while await session.scalar(select(Account.id).where(Account.login == login)):
        login = f"{wanted or 'person'}-{secrets.token_hex(3)}"
    return login


async def _end_sessions(session: AsyncSession, account: Account) -> int:
    """How many there were."""
    ended = delete(WebSession).where(WebSession.account_id == account.id).returning(WebSession.account_id)
    return len((await session.execute(ended)).all())


async def _record(session: AsyncSession, by: Actor, action: str, account: Account, **told: Facts) -> None:
    await record(session, by, action, f"accounts/{account.login}", tenant_id=account.tenant_id, **told)


def _values(claims: Mapping[str, Any], name: str) -> frozenset[str]:
    """Of a claim by its name or, where there is none of that, by the path that the name is."""
    found: Any = claims
    for part in [name] if name in claims else name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    values = found if isinstance(found, list) else [found]
    return frozenset(value for value in values if isinstance(value, str))

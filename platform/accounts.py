"""Accounts of the people who use the admin pages: who they are, and what they may see.

Knows rows and passwords. Knows no HTTP and no cookie; sessions are in `web_sessions`.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from sqlalchemy import ColumnElement, Select, delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from loraplex.adapters.audit import SERVER, Actor, Facts, record
from loraplex.adapters.database import Database
from loraplex.adapters.names import check_slug
from loraplex.adapters.schema import RegistryState, now
from loraplex.platform.login_throttle import PER_ACCOUNT
from loraplex.platform.passwords import Passwords
from loraplex.platform.schema import Account, Tenant, WebSession
from loraplex.platform.tenants import TenantNotFound

Role = Literal["operator", "tenant-admin"]
"""An operator sees and does everything; a tenant-admin what is of one tenant."""


class AccountError(Exception):
    """Base of what can go wrong here. Messages name the field and the remedy."""


class AccountExists(AccountError):
    """There is an account of that name already."""


class AccountNotFound(AccountError):
    """There is no account of that name."""


class NoPassword(AccountError):
    """The account has none and gets none: an OpenID provider vouches for its person."""

    def __init__(self) -> None:
        super().__init__("login: this account signs in through a provider and has no password; make another account")


class NotTheFirst(AccountError):
    """The first account was to be made, and there is one."""


class WrongCredentials(AccountError):
    """No such account, another password, disabled, or its tenant is suspended: callers are not told which."""

    def __init__(self) -> None:
        super().__init__("password: the name or the password is wrong, or the account is disabled")


@dataclass(frozen=True, slots=True)
class AccountInfo:
    """An account. `tenant`: of a tenant-admin; None: it is an operator's. Without a password its person signs in
    through an OpenID provider alone."""

    id: str
    login: str
    tenant_id: str | None
    tenant: str | None
    created_at: datetime
    disabled_at: datetime | None
    last_login_at: datetime | None
    has_password: bool

    @property
    def role(self) -> Role:
        return role_of(self.tenant_id)


def role_of(tenant_id: str | None) -> Role:
    return "operator" if tenant_id is None else "tenant-admin"


class AccountDirectory:
    """Each method is one transaction, save `authenticate`, which notes the login in a second one."""

    def __init__(self, database: Database, passwords: Passwords) -> None:
        self._database = database
        self._passwords = passwords

    async def exist(self) -> bool:
        """Whether there is any account."""
        async with self._database.read() as session:
            return await session.scalar(select(Account.id).limit(1)) is not None

    async def create(
        self, login: str, password: str, tenant: str | None = None, *, first: bool = False, by: Actor = SERVER
    ) -> AccountInfo:
        """A new account: a tenant's, or an operator's. first: only where there is none yet.

        Raises InvalidName, PasswordRefused, PasswordsBusy, TenantNotFound, AccountExists, NotTheFirst.
        """
        check_slug(login, "login")
        account = Account(id=new_account_id(), login=login, password_hash=await self._passwords.hash(password))
        try:
            async with self._database.transaction() as session:
                if first:
                    await _require_none(session)
                owner = None if tenant is None else await _tenant(session, tenant)
                account.tenant_id = owner.id if owner else None
                session.add(account)
                await session.flush()
                after = {"role": role_of(account.tenant_id)}
                await _record(session, by, "account.create", account, after=after)
                return account_info(account, tenant)
        except IntegrityError as error:
            raise AccountExists(f'login: there is an account "{login}" already; choose another name') from error

    async def get(self, login: str) -> AccountInfo:
        """Raises AccountNotFound."""
        async with self._database.read() as session:
            return account_info(*await _find(session, login))

    async def list_accounts(self) -> list[AccountInfo]:
        """All accounts by name."""
        async with self._database.read() as session:
            return [account_info(*found) for found in await session.execute(_accounts().order_by(Account.login))]

    async def authenticate(
        self, login: str, password: str, *, is_login: bool = True, by: Actor = SERVER
    ) -> AccountInfo:
        """Whose name and password these are. Raises WrongCredentials, the same for every reason; PasswordsBusy.

        is_login: they sign in, which is noted; else a password is only asked for once more.
        """
        async with self._database.read() as session:
            found = (await session.execute(_accounts().where(Account.login == login, *_is_usable()))).first()
        stored = found[0].password_hash if found else None
        matches = await self._passwords.matches(stored, password)
        if not (matches and found and stored):
            raise WrongCredentials
        account = found[0]
        changes: dict[str, object] = {"failed_logins": 0} | ({"last_login_at": now()} if is_login else {})
        if self._passwords.is_outdated(stored):
            changes["password_hash"] = await self._passwords.hash(password)
        async with self._database.transaction() as session:
            await session.execute(update(Account).where(Account.id == account.id).values(changes))
            if is_login:
                person = replace(by, kind="account", id=account.id, name=login, tenant_id=account.tenant_id)
                await _record(session, person, "account.login", account)
        return account_info(*found)

    async def note_failed_login(self, login: str, *, by: Actor = SERVER) -> None:
        """Count a wrong password; a name that no account has is nothing.

        The 1st, 2nd, 4th, 8th ... in a row has an entry in the audit log, and the one that locks the account: so that
        nobody can fill the log by guessing. To be called when the answer is out: it takes time that would tell which
        names there are.
        """
        counted = update(Account).where(Account.login == login).values(failed_logins=Account.failed_logins + 1)
        async with self._database.transaction() as session:
            for account in await session.scalars(counted.returning(Account)):
                failures = account.failed_logins
                is_lock_out = failures == PER_ACCOUNT.burst
                if is_lock_out or failures & (failures - 1) == 0:
                    action = "account.lock_out" if is_lock_out else "account.login_fail"
                    await _record(session, by, action, account, after={"failures": failures})

    async def set_password(self, login: str, password: str, *, by: Actor = SERVER) -> AccountInfo:
        """Give an account another password and end all its sessions. Raises PasswordRefused,
        AccountNotFound, NoPassword.

        An account that a provider vouches for gets none: its role would go on by a password when it is lost there.
        """
        password_hash = await self._passwords.hash(password)
        async with self._database.transaction() as session:
            account, tenant = await _find(session, login)
            if account.password_hash is None:
                raise NoPassword
            account.password_hash = password_hash
            await session.execute(delete(WebSession).where(WebSession.account_id == account.id))
            await _record(session, by, "account.password", account)
            return account_info(account, tenant)

    async def set_disabled(self, login: str, disabled: bool, *, by: Actor = SERVER) -> AccountInfo:
        """A disabled account cannot sign in, and its sessions end. Raises AccountNotFound."""
        async with self._database.transaction() as session:
            account, tenant = await _find(session, login)
            if disabled:
                await session.execute(delete(WebSession).where(WebSession.account_id == account.id))
            if disabled != (account.disabled_at is not None):
                account.disabled_at = now() if disabled else None
                told = {"before": {"disabled": not disabled}, "after": {"disabled": disabled}}
                action = "account.disable" if disabled else "account.enable"
                await _record(session, by, action, account, **told)
            return account_info(account, tenant)


async def _record(session: AsyncSession, by: Actor, action: str, account: Account, **told: Facts) -> None:
    await record(session, by, action, f"accounts/{account.login}", tenant_id=account.tenant_id, **told)


def new_password() -> str:
    """One that nobody has to think of: 120 bits."""
    return secrets.token_urlsafe(15)


def new_account_id() -> str:
    """As long as the id of an API key, beside which it stands where a row says who changed it."""
    return secrets.token_hex(6)


def _is_usable() -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return Account.disabled_at.is_(None), Tenant.suspended_at.is_(None)


def _accounts() -> Select[Account, str | None]:
    return select(Account, Tenant.slug).outerjoin(Tenant, Tenant.id == Account.tenant_id)


async def _require_none(session: AsyncSession) -> None:
    # Of two who set up at once, the second waits here and then sees the first one's account.
    await session.execute(select(RegistryState.revision).with_for_update())
    if await session.scalar(select(Account.id).limit(1)):
        raise NotTheFirst("token: this server is set up already; sign in, or ask its operator for an account")


async def _tenant(session: AsyncSession, slug: str) -> Tenant:
    tenant = await session.scalar(select(Tenant).where(Tenant.slug == slug))
    if tenant is None:
        raise TenantNotFound(f"tenant: there is no tenant {ascii(slug)[:70]}; create it first")
    return tenant


async def _find(session: AsyncSession, login: str) -> tuple[Account, str | None]:
    for account, tenant in await session.execute(_accounts().where(Account.login == login)):
        return account, tenant
    raise AccountNotFound(f"login: there is no account {ascii(login)[:70]}")


def account_info(account: Account, tenant: str | None) -> AccountInfo:
    return AccountInfo(
        id=account.id,
        login=account.login,
        tenant_id=account.tenant_id,
        tenant=tenant,
        created_at=account.created_at,
        disabled_at=account.disabled_at,
        last_login_at=account.last_login_at,
        has_password=account.password_hash is not None,
    )

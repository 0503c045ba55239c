"""Sessions of people on the admin pages: opened at login, found by their token, ended by the clock or by hand.

Knows rows; of a token the database has the SHA-256 alone. Knows no cookie.
"""

from __future__ import annotations

import hashlib
import secrets
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import ColumnElement, delete, or_, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncSession

from loraplex.adapters.audit import Actor, record
from loraplex.adapters.database import Database
from loraplex.adapters.schema import now
from loraplex.platform.accounts import Role, role_of
from loraplex.platform.schema import Account, Tenant, WebSession

MAX_SESSIONS = 20
"""Of one account; of more, those that began first end."""

_SEEN_STEP = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Person:
    """Who is signed in. `tenant_id`, `tenant`: of a tenant-admin, who sees nothing else; None of an operator."""

    account_id: str
    login: str
    tenant_id: str | None
    tenant: str | None

    @property
    def role(self) -> Role:
        return role_of(self.tenant_id)

    @property
    def is_operator(self) -> bool:
        return self.tenant_id is None


class WebSessions:
    """A session ends `idle` after its last use and `longest` after its beginning, whatever it is used for."""

    def __init__(self, database: Database, *, idle: timedelta, longest: timedelta) -> None:
        self._database = database
        self._idle = idle
        self._longest = longest

    async def open(self, account_id: str) -> str:
        """A new session's token, which has 256 bits and cannot be had again."""
        token = secrets.token_urlsafe(32)
        of_account = select(WebSession.token_sha256).where(WebSession.account_id == account_id)
        newest = of_account.order_by(WebSession.created_at.desc()).limit(MAX_SESSIONS - 1)
        async with self._database.transaction() as session:
            kept = (await session.scalars(newest)).all()
            too_many = WebSession.account_id == account_id, WebSession.token_sha256.not_in(kept)
            await session.execute(delete(WebSession).where(*too_many))
            session.add(WebSession(token_sha256=_fingerprint(token), account_id=account_id))
        return token

    async def find(self, token: str, *, is_use: bool = True) -> Person | None:
        """Whose session it is; None where it has ended, or its account is disabled or its tenant suspended.

        is_use: whether that keeps it from ending.
        """
        found = (
            select(WebSession, Account.login, Account.tenant_id, Tenant.slug)
            .join(Account, Account.id == WebSession.account_id)
            .outerjoin(Tenant, Tenant.id == Account.tenant_id)
            .where(WebSession.token_sha256 == _fingerprint(token))
            .where(Account.disabled_at.is_(None), Tenant.suspended_at.is_(None))
        )
        async with self._database.read() as session:
            row = (await session.execute(found)).first()
        if row is None or not self._is_alive(row[0]):
            return None
        if is_use:
            await self._note_use(row[0])
        return Person(row[0].account_id, *row[1:])

    async def close(self, token: str, *, signs_out: Actor | None = None) -> None:
        """End a session; one that has ended is fine. signs_out: who does so, unless another session takes its place."""
        ended = delete(WebSession).where(WebSession.token_sha256 == _fingerprint(token))
        async with self._database.transaction() as session:
            await session.execute(ended)
            if signs_out is not None:
                await _record(session, signs_out, "account.logout")

    async def close_all(self, account_id: str, *, by: Actor) -> None:
        """End all sessions of an account."""
        async with self._database.transaction() as session:
            await session.execute(delete(WebSession).where(WebSession.account_id == account_id))
            await _record(session, by, "account.logout_everywhere")

    async def count(self, account_id: str) -> int:
        """How many of an account's sessions have not ended."""
        of_account = select(WebSession).where(WebSession.account_id == account_id)
        async with self._database.read() as session:
            return sum(map(self._is_alive, await session.scalars(of_account)))

    async def drop_expired(self) -> None:
        """Forget the sessions that the clock has ended."""
        async with self._database.transaction() as session:
            await session.execute(delete(WebSession).where(self._has_expired()))

    def _is_alive(self, row: WebSession) -> bool:
        moment = now()
        return moment < row.created_at + self._longest and moment < row.last_seen_at + self._idle

    def _has_expired(self) -> ColumnElement[bool]:
        moment = now()
        return or_(WebSession.created_at <= moment - self._longest, WebSession.last_seen_at <= moment - self._idle)

    async def _note_use(self, row: WebSession) -> None:
        """Write the time of use unless the last one is recent. A database that is busy or read-only ends no page."""
        recent = now() - min(_SEEN_STEP, self._idle / 4)
        if row.last_seen_at > recent:
            return
        stale = WebSession.token_sha256 == row.token_sha256, WebSession.last_seen_at <= recent
        with suppress(DBAPIError, PoolTimeoutError):
            async with self._database.transaction() as session:
                await session.execute(update(WebSession).where(*stale).values(last_seen_at=now()))


def _fingerprint(token: str) -> bytes:
    """A slow hash would add nothing, for 256 random bits cannot be guessed."""
    return hashlib.sha256(token.encode()).digest()


async def _record(session: AsyncSession, by: Actor, action: str) -> None:
    """by: the person whose sessions they are."""
    await record(session, by, action, f"accounts/{by.name}", tenant_id=by.tenant_id)

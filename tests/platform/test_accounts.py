"""Accounts, their passwords and sessions as rows, on both databases; and how often passwords may be tried."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

import pytest
from click.testing import CliRunner
from clock import Clock
from sqlalchemy import select

from loraplex.adapters.audit import Actor
from loraplex.adapters.database import Database
from loraplex.platform.accounts import (
    AccountDirectory,
    AccountExists,
    AccountNotFound,
    NotTheFirst,
    WrongCredentials,
    new_password,
)
from loraplex.platform.cli.main import main
from loraplex.platform.login_throttle import MAX_ENTRIES, PER_ACCOUNT, PER_ADDRESS, LoginThrottle
from loraplex.platform.passwords import MAX_AT_ONCE, MAX_WAITING, PasswordRefused, Passwords, PasswordsBusy
from loraplex.platform.schema import Account, WebSession
from loraplex.platform.tenants import TenantDirectory, TenantNotFound
from loraplex.platform.web_sessions import MAX_SESSIONS, Person, WebSessions

PASSWORD = "seven herons by the canal"
OTHER = "another sentence to keep"

pytestmark = pytest.mark.anyio


@pytest.fixture
def accounts(database: Database) -> AccountDirectory:
    return AccountDirectory(database, Passwords())


@pytest.fixture
def sessions(database: Database) -> WebSessions:
    return WebSessions(database, idle=timedelta(minutes=30), longest=timedelta(hours=12))


async def test_an_account_lives(accounts: AccountDirectory, sessions: WebSessions, database: Database) -> None:
    """Created, signed in, given another password, disabled and enabled; the database has an argon2id hash alone."""
    await TenantDirectory(database).create_tenant("acme")
    assert not await accounts.exist()
    ada, wile = await accounts.create("ada", PASSWORD, first=True), await accounts.create("wile", PASSWORD, "acme")
    assert (ada.role, wile.role, wile.tenant) == ("operator", "tenant-admin", "acme")
    async with database.read() as session:
        stored = await session.scalar(select(Account.password_hash).where(Account.login == "ada"))
    assert str(stored).startswith("$argon2id$")

    assert (await accounts.authenticate("wile", PASSWORD)).id == wile.id
    token = await sessions.open(wile.id)
    assert await sessions.find(token) == Person(wile.id, "wile", wile.tenant_id, "acme")
    await accounts.set_password("wile", OTHER)
    assert await sessions.find(token) is None
    for wrong in (("wile", PASSWORD), ("nobody", PASSWORD), ("wile", OTHER * 100), ("\0", OTHER)):
        with pytest.raises(WrongCredentials):
            await accounts.authenticate(*wrong)
    await accounts.set_disabled("wile", True)
    with pytest.raises(WrongCredentials):
        await accounts.authenticate("wile", OTHER)
    await accounts.set_disabled("wile", False)
    await accounts.authenticate("wile", OTHER)
    listed = {account.login: account for account in await accounts.list_accounts()}
    assert listed["wile"].last_login_at is not None
    assert listed["ada"].last_login_at is None


async def test_accounts_that_make_no_sense_are_refused(accounts: AccountDirectory) -> None:
    """Each by what is wrong with it."""
    await accounts.create("ada", PASSWORD)
    for login, password, tenant, refusal in (
        ("ada", PASSWORD, None, AccountExists),
        ("bob", "too short", None, PasswordRefused),
        ("bob", "x" * 257, None, PasswordRefused),
        ("bob", PASSWORD, "nobody", TenantNotFound),
    ):
        with pytest.raises(refusal):
            await accounts.create(login, password, tenant)
    for change in (accounts.set_password("bob", PASSWORD), accounts.set_disabled("bob", True)):
        with pytest.raises(AccountNotFound):
            await change
    assert [account.login for account in await accounts.list_accounts()] == ["ada"]


async def test_one_account_is_the_first(accounts: AccountDirectory) -> None:
    """Of several that are made as the first at once."""
    attempts = [accounts.create(f"ada{number}", PASSWORD, first=True) for number in range(4)]
    made = await asyncio.gather(*attempts, return_exceptions=True)
    assert sorted(type(each).__name__ for each in made) == ["AccountInfo"] + ["NotTheFirst"] * 3
    with pytest.raises(NotTheFirst):
        await accounts.create("eve", PASSWORD, first=True)


async def test_an_account_has_so_many_sessions(
    accounts: AccountDirectory, sessions: WebSessions, database: Database
) -> None:
    """Of more, those that began first end."""
    ada = await accounts.create("ada", PASSWORD)
    tokens = [await sessions.open(ada.id) for _ in range(MAX_SESSIONS + 2)]
    alive = [token for token in tokens if await sessions.find(token)]
    assert alive == tokens[2:]
    assert await sessions.count(ada.id) == MAX_SESSIONS
    await sessions.close(tokens[5])
    assert await sessions.find(tokens[5]) is None
    await sessions.close_all(ada.id, by=Actor("account", ada.id, "ada"))
    async with database.read() as session:
        assert (await session.scalars(select(WebSession))).all() == []


async def test_a_crowd_of_passwords_is_sent_away() -> None:
    """Two are checked at a time, some wait, and memory is bounded by that."""
    passwords = Passwords()
    passwords._matches = lambda stored, given: False  # type: ignore[method-assign]  # it is about the crowd
    crowd = [passwords.matches(None, PASSWORD) for _ in range(MAX_AT_ONCE + MAX_WAITING + 3)]
    told = await asyncio.gather(*crowd, return_exceptions=True)
    assert [type(each) for each in told[-3:]] == [PasswordsBusy] * 3
    assert told[:-3] == [False] * (MAX_AT_ONCE + MAX_WAITING)
    assert await passwords.matches(None, PASSWORD) is False


def test_tries_are_counted_by_account_and_by_network() -> None:
    """A burst, then one by one as time goes by; the right password forgets the account's; a network of IPv6 counts as
    one address."""
    clock = Clock()
    throttle = LoginThrottle(clock)
    for _ in range(PER_ACCOUNT.burst):
        assert throttle.admit("ada", "192.0.2.1") == 0
    assert throttle.admit("ada", "192.0.2.2") == PER_ACCOUNT.seconds
    clock.now += PER_ACCOUNT.seconds
    assert throttle.admit("ada", "192.0.2.2") == 0
    assert throttle.admit("ada", "192.0.2.2") > 0
    throttle.succeeded("ada", "192.0.2.2")
    assert throttle.admit("ada", "192.0.2.2") == 0
    for number in range(PER_ADDRESS.burst):
        assert throttle.admit(f"guess{number}", f"2001:db8::{number:x}") == 0
    assert throttle.admit("guess", "2001:db8::ffff") > 0
    assert throttle.admit("guess", "2001:db8:0:1::1") == 0


def test_the_throttle_takes_little_memory() -> None:
    """However many names are tried from however many addresses."""
    throttle = LoginThrottle()
    for number in range(MAX_ENTRIES):
        throttle.admit(f"{number}" * 100, f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(throttle._spent) == MAX_ENTRIES
    assert max(len(name) for _, name in throttle._spent) <= 64


def test_commands_make_and_disable_accounts(tmp_path) -> None:
    """A password is made and told once, or read from stdin; mistakes are told in one line."""

    def run(*arguments: str, code: int = 0, stdin: str = "") -> str:
        result = CliRunner().invoke(main, ["account", *arguments, "--data-dir", str(tmp_path)], input=stdin)
        assert result.exit_code == code, result.output
        return result.output

    made = json.loads(run("create", "ada", "--json"))
    assert (made["role"], len(made["password"])) == ("operator", len(new_password()))
    assert "password" not in json.loads(run("create", "bob", "--password-stdin", "--json", stdin=PASSWORD + "\n"))
    assert "12 to 256" in run("create", "eve", "--password-stdin", code=1, stdin="short\n")
    assert "there is an account" in run("create", "ada", code=1)
    assert "no tenant" in run("create", "eve", "--tenant", "nobody", code=1)
    changed = json.loads(run("reset-password", "ada", "--json"))
    assert changed["password"] != made["password"]
    assert "disabled" in run("disable", "ada")
    listed = run("list")
    assert "disabled" in listed
    assert changed["password"] not in listed
    assert [each["disabled_at"] is None for each in json.loads(run("list", "--json"))] == [False, True]
    assert "enabled" in run("enable", "ada")

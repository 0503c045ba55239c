"""`loraplex account`: work on the database itself, whether a server runs or not.

Knows click and the account directory.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TypeVar

import click
import msgspec

from loraplex.platform.accounts import AccountDirectory, AccountInfo, new_password
from loraplex.platform.cli.database import by_command, database_options, print_json, print_table, run_with_database
from loraplex.platform.passwords import Passwords

T = TypeVar("T")

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
password_option = click.option("--password-stdin", is_flag=True, help="Read the password from stdin; else one is made.")


@click.group()
def account() -> None:
    """Accounts of the admin pages: create, list, reset-password, disable, enable."""


@account.command()
@click.argument("login")
@click.option("--tenant", help="Its people see this tenant only.  [default: an operator, who sees everything]")
@password_option
@json_option
@database_options
def create(url: str, login: str, tenant: str | None, password_stdin: bool, as_json: bool) -> None:
    """Create the account LOGIN and print its password: this once."""
    password = _password(password_stdin)
    created = _run(url, lambda accounts: accounts.create(login, password, tenant, by=by_command()))
    _print(created, None if password_stdin else password, as_json, f"Account {login} is there: {created.role}.")


@account.command("list")
@json_option
@database_options
def list_accounts(url: str, as_json: bool) -> None:
    """List all accounts."""
    accounts = _run(url, lambda directory: directory.list_accounts())
    if as_json:
        print_json([_facts(each) for each in accounts])
    else:
        print_table("account", "role", "tenant", "state", "created", "last login", rows=map(_row, accounts))


@account.command("reset-password")
@click.argument("login")
@password_option
@json_option
@database_options
def reset_password(url: str, login: str, password_stdin: bool, as_json: bool) -> None:
    """Give LOGIN another password, print it, this once, and end all its sessions."""
    password = _password(password_stdin)
    changed = _run(url, lambda accounts: accounts.set_password(login, password, by=by_command()))
    _print(changed, None if password_stdin else password, as_json, f"Account {login} has a new password.")


@account.command()
@click.argument("login")
@json_option
@database_options
def disable(url: str, login: str, as_json: bool) -> None:
    """Refuse LOGIN until it is enabled, and end all its sessions."""
    changed = _run(url, lambda accounts: accounts.set_disabled(login, True, by=by_command()))
    _print(changed, None, as_json, f"Account {login} is disabled.")


@account.command()
@click.argument("login")
@json_option
@database_options
def enable(url: str, login: str, as_json: bool) -> None:
    """Let LOGIN sign in again."""
    changed = _run(url, lambda accounts: accounts.set_disabled(login, False, by=by_command()))
    _print(changed, None, as_json, f"Account {login} is enabled.")


def _run(url: str, work: Callable[[AccountDirectory], Awaitable[T]]) -> T:
    return run_with_database(url, lambda database: work(AccountDirectory(database, Passwords())))


def _password(from_stdin: bool) -> str:
    return sys.stdin.readline().rstrip("\r\n") if from_stdin else new_password()


def _print(account: AccountInfo, password: str | None, as_json: bool, text: str) -> None:
    if as_json:
        print_json(_facts(account) | ({} if password is None else {"password": password}))
        return
    click.echo(text)
    if password is not None:
        click.echo(f"\n  {password}\n\nThat is its password, shown this once. Sign in at /admin.")


def _facts(account: AccountInfo) -> dict[str, object]:
    return {**msgspec.to_builtins(account), "role": account.role}


def _row(account: AccountInfo) -> tuple[str, ...]:
    state = "active" if account.disabled_at is None else "disabled"
    moments = _moment(account.created_at), _moment(account.last_login_at)
    return account.login, account.role, account.tenant or "(all)", state, *moments


def _moment(moment: datetime | None) -> str:
    return "never" if moment is None else f"{moment:%Y-%m-%d %H:%M} UTC"

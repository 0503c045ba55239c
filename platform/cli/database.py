"""`loraplex db`, and the options that say which database a command works on.

Knows click. Knows no table.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import click
import msgspec
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from sqlalchemy.exc import OperationalError

from loraplex.adapters.audit import Actor
from loraplex.adapters.database import Database, InvalidDatabaseUrl
from loraplex.adapters.errors import AdapterError
from loraplex.platform.accounts import AccountError
from loraplex.platform.key_terms import InvalidKeyRequest
from loraplex.platform.migrate import (
    MigrationError,
    current_revision,
    head_revision,
    prepare_database,
    upgrade_database,
)
from loraplex.platform.passwords import PasswordRefused
from loraplex.platform.settings import Settings
from loraplex.platform.tenants import TenantError

P = ParamSpec("P")
T = TypeVar("T")

WIDEST = 1000
"""Columns of characters, of a table that no terminal shows: programs and files take any."""


def database_options(command: Callable[Concatenate[str, P], T]) -> Callable[..., T]:
    """Give a command `--data-dir` and `--database-url`; its first argument becomes the URL they come to."""

    @click.option(
        "--data-dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder of the database.  [env: LORAPLEX_DATA_DIR; default: ~/.local/share/loraplex]",
    )
    @click.option(
        "--database-url",
        metavar="URL",
        help="sqlite:///path or postgresql://host/name.  [env: LORAPLEX_DATABASE_URL; default: SQLite in the data dir]",
    )
    @wraps(command)
    def with_url(data_dir: Path | None, database_url: str | None, *args: P.args, **kwargs: P.kwargs) -> T:
        given = {"data_dir": data_dir, "database_url": database_url}
        with user_errors():
            settings = Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
            return command(settings.resolved_database_url, *args, **kwargs)

    return with_url


@contextmanager
def user_errors() -> Iterator[None]:
    """What a user can put right is told in one line, without a traceback."""
    try:
        yield
    except (
        AdapterError,
        TenantError,
        InvalidKeyRequest,
        AccountError,
        PasswordRefused,
        MigrationError,
        InvalidDatabaseUrl,
        ValidationError,
    ) as error:
        raise click.ClickException(str(error)) from error
    except OperationalError as error:
        raise click.ClickException(f"the database does not answer: {error.orig}") from error


def by_command() -> Actor:
    """Who runs the command, as the system knows the user."""
    user = os.getuid()
    try:
        return Actor("command", pwd.getpwuid(user).pw_name[:64])
    except KeyError:  # in a container a user need have no name
        return Actor("command", f"uid {user}")


def run_with_database(url: str, work: Callable[[Database], Awaitable[T]]) -> T:
    """Do the work on the database, whose tables are created where there are none."""

    async def session() -> T:
        database = Database(url)
        try:
            return await work(database)
        finally:
            await database.dispose()

    prepare_database(url)
    return asyncio.run(session())


def print_json(value: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value, order="deterministic")).decode())


def print_table(*columns: str, rows: Iterator[tuple[str, ...]]) -> None:
    """As wide as the terminal; where there is none, as wide as its rows are."""
    table = Table(*columns)
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else WIDEST
    Console(markup=False, emoji=False, width=width).print(table)  # what people wrote is no markup


@click.group()
def db() -> None:
    """The tables of the database."""


@db.command()
@database_options
def upgrade(url: str) -> None:
    """Create the tables, or bring them up to this release. `loraplex serve` does so when it starts."""
    upgrade_database(url)
    click.echo(f"The database is at revision {head_revision()}.")


@db.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@database_options
def current(url: str, as_json: bool) -> None:
    """Show the revision of the tables and the one that this release needs."""
    revision, head = current_revision(url), head_revision()
    if as_json:
        print_json({"revision": revision, "head": head})
    else:
        hint = "" if revision == head else "; run: loraplex db upgrade"
        click.echo(f"The database is at revision {revision or 'none'}, this release needs {head}{hint}")

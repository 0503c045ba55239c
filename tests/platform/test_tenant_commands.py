"""`loraplex db`, `loraplex tenant` and `loraplex key`, as a person types them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import text

from loraplex.adapters.database import Database
from loraplex.platform.cli.database import db
from loraplex.platform.cli.tenants import key, tenant
from loraplex.platform.migrate import head_revision, locked_connection, upgrade_database
from loraplex.platform.tenants import TenantDirectory


@click.group()
def main() -> None: ...


for group in (db, tenant, key):
    main.add_command(group)


@pytest.fixture
def run(tmp_path: Path):
    def run(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(main, [*arguments, "--data-dir", str(tmp_path / "data")])
        assert result.exit_code == code, result.output
        return result

    return run


def test_a_newcomer_needs_no_other_command(run):
    """On a machine without a database, tenants and keys can be created at once, and listed as JSON."""
    created = json.loads(run("tenant", "create", "acme", "--name", "Acme Ltd.", "--json").output)
    made = json.loads(run("key", "create", "--tenant", "acme", "--scope", "adapters", "--name", "ci", "--json").output)
    run("key", "create", "--admin", "--expires-in-days", "30")

    assert json.loads(run("tenant", "list", "--json").output) == [created]
    mine, operators = json.loads(run("key", "list", "--json").output)
    assert mine == {name: value for name, value in made.items() if name != "secret"}
    assert (operators["tenant"], operators["scopes"]) == (None, ["admin"])
    assert operators["expires_at"] is not None


def test_a_tenants_weight_is_given_and_changed(run):
    """Within its bounds, nan being in none."""
    run("tenant", "create", "acme", "--weight", "3")
    assert "0.5" in run("tenant", "set", "acme", "--weight", "0.5").output
    for wrong in ("0", "101", "nan"):
        run("tenant", "set", "acme", "--weight", wrong, code=2 if wrong != "nan" else 1)
    (listed,) = json.loads(run("tenant", "list", "--json").output)
    assert listed["weight"] == 0.5


@pytest.mark.anyio
async def test_the_printed_key_is_the_key(tmp_path):
    """What `key create` prints authenticates, and is shown by no other command."""

    def prepare() -> str:
        options = ["--data-dir", str(tmp_path)]
        CliRunner().invoke(main, ["tenant", "create", "acme", *options])
        output = CliRunner().invoke(main, ["key", "create", "--tenant", "acme", *options]).output
        secret = output.split()[0]
        assert f"export LORAPLEX_API_KEY={secret}" in output
        assert secret.split("_")[2] not in CliRunner().invoke(main, ["key", "list", "--json", *options]).output
        return secret

    secret = await asyncio.to_thread(prepare)
    database = Database(f"sqlite:///{tmp_path / 'loraplex.db'}")
    principal = await TenantDirectory(database).authenticate(secret)
    await database.dispose()
    assert (principal.tenant, principal.scopes) == ("acme", {"inference"})


def test_tables_for_people(run):
    """Without --json there are tables with the state of each tenant and key, and hints how to go on."""
    assert "loraplex key create --tenant acme" in run("tenant", "create", "acme").output
    key_id = json.loads(run("key", "create", "--tenant", "acme", "--json").output)["id"]

    assert "suspended" in run("tenant", "suspend", "acme").output
    assert "suspended" in run("tenant", "list").output
    assert json.loads(run("tenant", "resume", "acme", "--json").output)["suspended_at"] is None
    assert key_id in run("key", "list", "--tenant", "acme").output
    assert "revoked" in run("key", "revoke", key_id).output
    assert "revoked" in run("key", "list").output
    assert json.loads(run("key", "revoke", key_id, "--json").output)["revoked_at"] is not None


def test_mistakes_are_told_in_one_line(run):
    """No traceback: what is wrong, and an exit code that scripts see."""
    run("tenant", "create", "acme")
    assert "there is a tenant" in run("tenant", "create", "acme", code=1).output
    assert "slug:" in run("tenant", "create", "A/B", code=1).output
    assert "no tenant" in run("key", "create", "--tenant", "nobody", code=1).output
    assert "no API key" in run("key", "revoke", "nothing", code=1).output
    assert "either --tenant" in run("key", "create", code=2).output
    assert "either --tenant" in run("key", "create", "--admin", "--tenant", "acme", code=2).output
    assert "not supported" in run("tenant", "list", "--database-url", "mysql://host/name", code=1).output
    unreachable = run("tenant", "list", "--database-url", "postgresql://127.0.0.1:1/none", code=1)
    assert "the database does not answer" in unreachable.output


def test_the_revision_is_shown_and_upgraded(run):
    """`db current` tells what to do about a database without tables; `db upgrade` does it."""
    assert "run: loraplex db upgrade" in run("db", "current").output
    assert head_revision() in run("db", "upgrade").output
    assert json.loads(run("db", "current", "--json").output) == {"revision": head_revision(), "head": head_revision()}


def test_commands_leave_a_newer_database_alone(run, tmp_path):
    """A database that a newer release upgraded is refused by every command."""
    run("db", "upgrade")
    with locked_connection(f"sqlite:///{tmp_path / 'data' / 'loraplex.db'}") as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    for arguments in (("tenant", "list"), ("db", "upgrade"), ("key", "create", "--admin")):
        assert "9999" in run(*arguments, code=1).output


def test_commands_work_on_postgres_and_sqlite_by_url(empty_database_url):
    """--database-url wins over the data directory on both engines."""
    upgrade_database(empty_database_url)
    options = ["--database-url", empty_database_url, "--json"]

    assert CliRunner().invoke(main, ["tenant", "create", "acme", *options]).exit_code == 0
    listed = CliRunner().invoke(main, ["tenant", "list", *options])
    assert [each["slug"] for each in json.loads(listed.output)] == ["acme"]


def test_limits_are_shown_and_changed_one_by_one(run):
    """What is given is set, `none` takes it away, the rest stays; sizes may have their unit; nonsense is refused."""
    run("tenant", "create", "acme")
    key_id = json.loads(run("key", "create", "--tenant", "acme", "--json").output)["id"]

    run("tenant", "limits", "acme", "--tokens-per-minute", "90000", "--stored-bytes", "10GiB")
    changed = run("tenant", "limits", "acme", "--tokens-per-minute", "none", "--versions", "3", "--json").output
    set_ = {name: value for name, value in json.loads(changed).items() if value is not None}
    assert set_ == {"stored_bytes": 10 << 30, "versions": 3}
    assert run("tenant", "limits", "acme", "--json").output == changed
    assert "versions" in run("tenant", "limits", "acme").output
    assert json.loads(run("tenant", "list", "--json").output)[0]["limits"] == json.loads(changed)

    run("key", "limits", key_id, "--requests-per-minute", "60")
    assert json.loads(run("key", "limits", key_id, "--json").output)["requests_per_minute"] == 60
    assert "from 1 to" in run("key", "limits", key_id, "--requests-per-minute", "0", code=2).output
    assert "no such option" in run("key", "limits", key_id, "--versions", "3", code=2).output.lower()
    assert "no tenant" in run("tenant", "limits", "nobody", code=1).output


def test_a_key_is_rotated_and_bound_to_adapters(run):
    """A new secret is printed once, the table tells until when the old one holds, and what the key may be used for."""
    run("tenant", "create", "acme")
    made = json.loads(run("key", "create", "--tenant", "acme", "--adapter", "bot", "--json").output)
    assert made["adapters"] == ["bot"]
    key_id = made["id"]

    run("key", "set", key_id, "--adapter", "router", "--adapter", "@base", "--expires-in-days", "30", "--name", "ci")
    changed = json.loads(run("key", "list", "--json").output)[0]
    assert (changed["adapters"], changed["name"]) == (["@base", "router"], "ci")
    assert changed["expires_at"] is not None
    run("key", "set", key_id, "--all-adapters", "--never-expires")
    assert "give what is to change" in run("key", "set", key_id, code=2).output
    assert "or --all-adapters" in run("key", "set", key_id, "--all-adapters", "--adapter", "bot", code=2).output
    assert "not a valid name" in run("key", "set", key_id, "--adapter", "acme/bot", code=1).output

    rotated = json.loads(run("key", "rotate", key_id, "--overlap", "7d", "--json").output)
    assert rotated["secret"] != made["secret"]
    assert rotated["old_secret"]["ends_at"] is not None
    assert "old" in run("key", "list").output
    assert "end it first" in run("key", "rotate", key_id, code=1).output
    assert "30 days" in run("key", "rotate", key_id, "--overlap", "31d", code=1).output
    assert "one secret" in run("key", "end-old-secret", key_id).output
    assert "The old secret has ended" in run("key", "rotate", key_id, "--overlap", "0s").output

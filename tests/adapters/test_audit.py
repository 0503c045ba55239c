"""The audit log on SQLite and PostgreSQL: entries come with their changes, in a chain that shows tampering."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from contextlib import suppress

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from loraplex.adapters import audit_log
from loraplex.adapters.audit import GENESIS, LONGEST_TEXT, Actor, record
from loraplex.adapters.audit_log import START, AuditLog, ChainBroken, Link, Wanted
from loraplex.adapters.database import Database
from loraplex.adapters.errors import AdapterExists
from loraplex.adapters.registry import AdapterRegistry
from loraplex.platform.audit_views import lines
from loraplex.platform.tenants import TenantDirectory

pytestmark = pytest.mark.anyio


class PowerCut(Exception):
    """In the middle of a transaction."""


ADA = Actor("account", "a" * 12, "ada", None, "req_1", "127.0.0.1")


async def append(database: Database, number: int = 1) -> None:
    for _ in range(number):
        await AuditLog(database).note(ADA, "version.warm", "adapters/bot@1", tenant_id="t1", after={"é": [0.5, None]})


async def test_a_change_and_its_entry_happen_together(
    database: Database, registry: AdapterRegistry, acme_with_bot: str
) -> None:
    """Who did what to what is written with the change; a change that is refused or undone has no entry."""
    log, tenants = AuditLog(database), TenantDirectory(database)
    before = (await log.head()).number
    await registry.create_adapter(acme_with_bot, "legal", "base", "reads contracts", by=ADA)
    with pytest.raises(AdapterExists):
        await registry.create_adapter(acme_with_bot, "legal", "base", by=ADA)
    with suppress(PowerCut):
        async with database.transaction() as session:
            await record(session, ADA, "adapter.delete", "adapters/legal")
            raise PowerCut
    await tenants.set_suspended("acme", False, by=ADA)  # it is not

    (entry,) = await log.list(Wanted(acme_with_bot), 1)
    assert (entry.number, entry.action, entry.object, entry.actor) == (
        before + 1, "adapter.create", "adapters/legal", ADA,
    )  # fmt: skip
    assert (entry.before, entry.after) == (None, {"base_model": "base", "description": "reads contracts"})
    assert (await log.head()).number == before + 1


async def test_entries_of_several_servers_are_one_chain(
    database_url: str, database: Database, registry: AdapterRegistry, acme_with_bot: str
) -> None:
    """Transactions that write to the log at once take turns, whatever else they lock: none is lost, none waits for
    ever."""
    others = [Database(database_url) for _ in range(3)]
    directories = [TenantDirectory(other) for other in others]
    await asyncio.gather(
        *(directory.create_tenant(f"t{n}-{i}") for n, directory in enumerate(directories) for i in range(5)),
        *(directories[0].set_suspended("acme", suspended) for suspended in (True, False, True, False)),
        *(AdapterRegistry(other).create_adapter(acme_with_bot, f"a{n}", "base") for n, other in enumerate(others)),
        *(append(other, 5) for other in others),
    )
    log = AuditLog(database)
    entries = await log.list(Wanted(), 1000)
    assert [entry.number for entry in entries] == list(range(len(entries), 0, -1))
    assert await log.verify() == await log.head() == Link(entries[0].number, entries[0].hash)
    for other in others:
        await other.dispose()


async def test_the_database_refuses_to_change_entries(database: Database) -> None:
    """Whoever connects to it, as long as its triggers are there."""
    await append(database)
    statements = ["UPDATE audit_entries SET actor_name = 'eve'", "DELETE FROM audit_entries"]
    if database._engine.dialect.name == "postgresql":
        statements.append("TRUNCATE audit_entries")
    for statement in statements:
        with pytest.raises(DBAPIError, match="never changed"):
            async with database.transaction() as session:
                await session.execute(text(statement))
    assert (await AuditLog(database).verify()).number == 1


@pytest.mark.parametrize(
    ("statement", "number"),
    [
        ("UPDATE audit_entries SET actor_name = 'eve' WHERE number = 3", 3),
        ("UPDATE audit_entries SET after = '{\"é\":[0.6,null]}' WHERE number = 1", 1),
        ("UPDATE audit_entries SET hash = (SELECT hash FROM audit_entries WHERE number = 1) WHERE number = 4", 4),
        ("DELETE FROM audit_entries WHERE number = 2", 2),
        ("DELETE FROM audit_entries WHERE number = 5", 5),
        ("DELETE FROM audit_entries", 1),
        ("UPDATE audit_head SET number = 4", 5),
    ],
)
async def test_a_chain_that_was_tampered_with_is_known_by_its_first_wrong_entry(
    database: Database, statement: str, number: int
) -> None:
    """What is altered, taken out or cut off, by whoever could take the triggers away."""
    await append(database, 5)
    log = AuditLog(database)
    assert (await log.verify()).number == 5
    triggers = (
        ["DROP TRIGGER audit_entries_no_change ON audit_entries"]
        if database._engine.dialect.name == "postgresql"
        else ["DROP TRIGGER audit_entries_no_update", "DROP TRIGGER audit_entries_no_delete"]
    )
    async with database.transaction() as session:
        for each in (*triggers, statement):
            await session.execute(text(each.replace(":", "\\:")))
    with pytest.raises(ChainBroken) as broken:
        await log.verify()
    assert broken.value.number == number


async def test_a_long_chain_is_followed_in_pieces(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """From wherever one stands; and it can be followed without this program, by the lines that are exported."""
    monkeypatch.setattr(audit_log, "MAX_PAGE", 2)
    await append(database, 5)
    log, place, seen = AuditLog(database), START, []
    while (place := await log.verify(place)).number not in seen:
        seen.append(place.number)
    assert seen == [2, 4, 5]
    chained = GENESIS
    async for line in lines(log, Wanted(), None):
        told = json.loads(line)
        content = {name: value for name, value in told.items() if name != "hash"}
        plain = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        chained = hashlib.sha256(chained.encode() + plain.encode()).hexdigest()
        assert chained == told["hash"]
    assert chained == (await log.head()).hash


async def test_entries_are_found_by_what_they_are_about(
    database: Database, registry: AdapterRegistry, acme_with_bot: str
) -> None:
    """An adapter's have its versions and aliases, and not those of an adapter whose name begins alike."""
    for name in ("botany", "bo"):
        await registry.create_adapter(acme_with_bot, name, "base", by=ADA)
    log = AuditLog(database)
    for place in ("adapters/bot@1", "adapters/bot@prod", "adapters/botany@1", "adapters/bot-2"):
        await log.note(ADA, "version.warm", place, tenant_id=acme_with_bot)
    await log.note(ADA, "version.warm", "adapters/bot@1", tenant_id="another")

    async def found(**wanted: object) -> list[str]:
        return [entry.object for entry in await log.list(Wanted(**wanted), 100)]  # type: ignore[arg-type]

    bot = ["adapters/bot@prod", "adapters/bot@1", "adapters/bot"]
    assert await found(tenant_id=acme_with_bot, object="adapters/bot") == bot
    assert len(await found(actor="ada")) == len(await found(actor="a" * 12)) == 7
    assert await found(action="adapter.create", actor="ada") == ["adapters/bo", "adapters/botany"]
    assert await found(actor="nobody") == []
    newest = (await log.list(Wanted(), 1))[0]
    assert await found(since=newest.at, tenant_id="another") == ["adapters/bot@1"]
    assert await found(until=newest.at, tenant_id="another") == []
    assert [entry.number for entry in await log.list(Wanted(), 2, newest.number)] == [
        newest.number - 1,
        newest.number - 2,
    ]


async def test_an_entry_is_bounded_and_can_hold_any_text(database: Database) -> None:
    """Long texts are told by their digest; what a database cannot store is replaced."""
    log = AuditLog(database)
    long = "x" * (LONGEST_TEXT + 1)
    await log.note(
        ADA, "version.warm", "adapters/bot@1", after={"a": "\0\ud800", "long": long, "many": list(range(99))}
    )
    (entry,) = await log.list(Wanted(), 1)
    digest = hashlib.sha256(long.encode()).hexdigest()
    assert entry.after == {"a": "\ufffd?", "long": {"characters": 201, "sha256": digest}, "many": {"of": 99}}
    assert await log.verify() == await log.head()
    assert re.fullmatch("[0-9a-f]{64}", entry.hash)

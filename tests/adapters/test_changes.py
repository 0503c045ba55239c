"""What one server changes another one learns, in the order of commits, on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from clock import Clock
from sqlalchemy.exc import OperationalError

from loraplex.adapters.aliases import AdapterAliases
from loraplex.adapters.base_models import register_base_model
from loraplex.adapters.changes import (
    KEPT_CHANGES,
    KEYS,
    MAX_STALE_SECONDS,
    ChangeFeed,
    deletion_of,
    names_of,
    record_change,
)
from loraplex.adapters.database import Database
from loraplex.adapters.profile import ServingProfile
from loraplex.adapters.profile_store import ProfileStore
from loraplex.adapters.registry import AdapterRegistry
from loraplex.platform.tenants import TenantDirectory

pytestmark = pytest.mark.anyio


@pytest.fixture
async def elsewhere(database_url: str, database: Database) -> AsyncIterator[Database]:
    """The same database as another server has it open."""
    other = Database(database_url)
    yield other
    await other.dispose()


async def change(database: Database, subject: str) -> None:
    async with database.transaction() as session:
        await record_change(session, subject)


async def listening(database: Database, **options: object) -> tuple[ChangeFeed, list[frozenset[str] | None]]:
    """A feed that has had its first look, and what it tells from then on."""
    feed = ChangeFeed(database, **options)
    await feed.look()
    told: list[frozenset[str] | None] = []
    feed.subscribe(told.append)
    return feed, told


async def test_what_changed_elsewhere_is_told_once(database, elsewhere):
    """All subjects since the last look, and nothing where nothing changed."""
    feed, told = await listening(database)
    for subject in ("t/a", "t/b", "t/a"):
        await change(elsewhere, subject)
    for _ in range(3):
        await feed.look()
    assert told == [frozenset({"t/a", "t/b"})]


async def test_own_changes_are_seen_at_once_and_others_within_the_bound(database, elsewhere):
    """A refresh asks the database only when something was written here, or the last look is too old."""
    clock = Clock()
    feed, told = await listening(database, clock=clock)
    await change(elsewhere, "t/else")
    await feed.refresh()
    assert told == []
    await change(database, "t/own")
    await feed.refresh()
    assert told == [frozenset({"t/else", "t/own"})]

    await change(elsewhere, "t/later")
    clock.now = MAX_STALE_SECONDS
    await feed.refresh()
    assert told[1:] == [frozenset({"t/later"})]


async def test_everything_that_names_and_keys_depend_on_is_a_change(database):
    """Versions, aliases, profiles, deletions, suspensions and revocations; reading is none."""
    profiles = ProfileStore(database)
    registry, aliases, tenants = AdapterRegistry(database), AdapterAliases(database), TenantDirectory(database)
    await register_base_model(database, "base", "0" * 64, "hub:base")
    acme = (await tenants.create_tenant("acme")).id
    key, _ = await tenants.create_key("acme", "k", ["inference"])
    await registry.create_adapter(acme, "bot", "base")
    feed, told = await listening(database)

    async def publish(digest: str, **options: str) -> None:
        facts = {"size_bytes": 1, "max_rank": 8, "targets": (), "report": [], **options}
        version = await registry.publish(acme, "bot", digest=digest * 64, **facts)
        await registry.settle(version, "ready")

    bot = names_of(acme, "bot")
    for action, *subjects in (
        (lambda: publish("a"), bot),
        (lambda: publish("b"), bot),
        (lambda: aliases.move(acme, "bot", "prod", {1: 1}), bot),
        (lambda: aliases.move(acme, "bot", "prod", {2: 1}), bot),
        (lambda: aliases.roll_back(acme, "bot", "prod"), bot),
        (lambda: aliases.delete(acme, "bot", "prod"), bot),
        (lambda: profiles.change(acme, "bot", 1, lambda _: ServingProfile(temperature=0)), bot),
        (lambda: profiles.change(acme, "bot", 1, lambda _: None), bot),
        (lambda: publish("a", chat_template="x"), bot),
        (lambda: registry.delete_version(acme, "bot", 1), bot, deletion_of("a" * 64)),
        (lambda: registry.delete_adapter(acme, "bot"), bot, deletion_of("b" * 64)),
        (lambda: tenants.set_suspended("acme", True), KEYS),
        (lambda: tenants.revoke_key(key.id), KEYS),
    ):
        told.clear()
        await action()
        await feed.look()
        assert told == [frozenset(subjects)]
    told.clear()
    await registry.list_adapters(acme)
    await feed.look()
    assert told == []


async def test_a_change_that_was_rolled_back_is_none(database, elsewhere):
    """Neither it nor a gap where it would have been."""
    feed, told = await listening(database)

    async def change_until_the_power_goes() -> None:
        async with elsewhere.transaction() as session:
            await record_change(session, "t/never")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        await change_until_the_power_goes()
    await change(elsewhere, "t/real")
    await feed.look()
    assert told == [frozenset({"t/real"})]


async def test_no_change_is_lost_among_many_at_once(database, elsewhere):
    """Forty from two servers while a third reads: all are told, whatever overlapped."""
    reader, told = await listening(database)

    async def write(number: int) -> None:
        await change((database, elsewhere)[number % 2], f"t/{number}")

    async def read() -> None:
        for _ in range(40):
            await reader.look()

    await asyncio.gather(read(), *(write(number) for number in range(40)))
    await reader.look()
    assert frozenset().union(*told) == {f"t/{number}" for number in range(40)}


async def test_whoever_missed_too_much_forgets_everything(database, elsewhere, monkeypatch):
    """Changes are not kept for ever; a server that was away too long is told that anything may have changed."""
    monkeypatch.setattr("loraplex.adapters.changes.KEPT_CHANGES", 5)
    feed, told = await listening(database)
    for number in range(6):
        await change(elsewhere, f"t/{number}")
    await feed.look()
    await change(elsewhere, "t/next")
    await feed.look()
    assert told == [None, frozenset({"t/next"})]
    assert KEPT_CHANGES > 1000


async def test_a_database_that_does_not_answer_is_told(database):
    """`refresh` raises instead of letting what is cached be served."""
    clock = Clock()
    feed, _ = await listening(database, clock=clock)

    class Down:
        commits = 0

        def read(self):
            raise OperationalError("select", {}, OSError("connection refused"))

    feed._database = Down()
    await feed.refresh()
    clock.now = MAX_STALE_SECONDS
    with pytest.raises(OperationalError):
        await feed.refresh()

"""Aliases on SQLite and PostgreSQL: they move as a whole or not at all, and know the way back."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loraplex.adapters.aliases import ABSENT, MAX_HISTORY
from loraplex.adapters.audit import Actor
from loraplex.adapters.database import Database
from loraplex.adapters.errors import (
    AdapterNotFound,
    AliasMoved,
    InvalidName,
    NothingToRestore,
    VersionInUse,
    VersionNotFound,
)
from loraplex.adapters.registry import AdapterRegistry
from loraplex.platform.tenants import TenantDirectory

pytestmark = pytest.mark.anyio

BOT = "bot"
VERSIONS = 4


@pytest.fixture
async def acme(database: Database, registry: AdapterRegistry) -> str:
    """A tenant whose `bot` has VERSIONS versions."""
    tenant = (await TenantDirectory(database).create_tenant("acme")).id
    await make_bot(registry, tenant)
    return tenant


async def make_bot(registry: AdapterRegistry, tenant: str) -> None:
    await registry.create_adapter(tenant, BOT, "base")
    for digest in "abcdef"[:VERSIONS]:
        version = await registry.publish(
            tenant, BOT, digest=digest * 64, size_bytes=1, max_rank=8, targets=(), report=[]
        )
        await registry.settle(version, "ready")


async def resolved(registry: AdapterRegistry, tenant: str, selector: str | None = None) -> dict[int, int]:
    return {target.version.number: target.weight for target in await registry.resolve(tenant, BOT, selector)}


async def test_an_alias_stands_for_one_version_or_shares_traffic(aliases, registry, acme):
    """Newest first; without @ it is prod's versions that answer, and those of the newest without a prod."""
    assert await resolved(registry, acme) == {4: 1}
    await aliases.move(acme, BOT, "prod", {1: 1})
    assert await resolved(registry, acme) == await resolved(registry, acme, "prod") == {1: 1}
    moved = await aliases.move(acme, BOT, "prod", {1: 90, 3: 10})
    assert list(moved.split.items()) == [(3, 10), (1, 90)]
    assert await resolved(registry, acme) == {3: 10, 1: 90}
    assert await resolved(registry, acme, "4") == {4: 1}
    assert (await registry.get_adapter(acme, BOT)).aliases == {"prod": moved}


async def test_a_move_from_another_revision_changes_nothing(aliases, acme):
    """Whoever has not seen the last move is refused, for moves, rollbacks and deletions alike."""
    first = await aliases.move(acme, BOT, "prod", {1: 1}, expected=ABSENT)
    second = await aliases.move(acme, BOT, "prod", {2: 1}, expected=first.revision)
    for attempt in (
        aliases.move(acme, BOT, "prod", {3: 1}, expected=ABSENT),
        aliases.move(acme, BOT, "prod", {3: 1}, expected=first.revision),
        aliases.roll_back(acme, BOT, "prod", expected=first.revision),
        aliases.delete(acme, BOT, "prod", expected=first.revision),
        aliases.move(acme, BOT, "canary", {3: 1}, expected=1),
    ):
        with pytest.raises(AliasMoved):
            await attempt
    assert await aliases.get(acme, BOT, "prod") == second


async def test_of_moves_at_once_one_wins(aliases, acme):
    """Eight that have seen the same revision: one moves the alias, the others learn that it moved."""
    seen = await aliases.move(acme, BOT, "prod", {1: 1})
    outcomes = await asyncio.gather(
        *(aliases.move(acme, BOT, "prod", {1 + i % VERSIONS: 1}, expected=seen.revision) for i in range(8)),
        return_exceptions=True,
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["AliasInfo"] + ["AliasMoved"] * 7


async def test_a_rollback_goes_back_and_further_back(aliases, acme):
    """One more move back with every call, also past an earlier rollback; then there is nothing left."""
    for split in ({1: 1}, {1: 9, 2: 1}, {3: 1}):
        await aliases.move(acme, BOT, "prod", split, by=Actor("key", "k" * 12))

    assert (await aliases.roll_back(acme, BOT, "prod")).split == {1: 9, 2: 1}
    assert (await aliases.roll_back(acme, BOT, "prod")).split == {1: 1}
    with pytest.raises(NothingToRestore):
        await aliases.roll_back(acme, BOT, "prod")
    await aliases.move(acme, BOT, "prod", {4: 1})
    assert (await aliases.roll_back(acme, BOT, "prod")).split == {1: 1}
    assert (await aliases.roll_back(acme, BOT, "prod", to=3)).split == {3: 1}

    history = await aliases.history(acme, BOT, "prod")
    assert [(move.revision, move.restores) for move in history] == [
        (8, 3),
        (7, 1),
        (6, None),
        (5, 1),
        (4, 2),
        (3, None),
        (2, None),
        (1, None),
    ]
    assert history[-1].moved_by == "k" * 12


async def test_a_deleted_alias_comes_back_by_a_rollback(aliases, registry, acme):
    """With what it stood for; no revision comes twice."""
    await aliases.move(acme, BOT, "prod", {1: 1})
    await aliases.delete(acme, BOT, "prod")
    with pytest.raises(VersionNotFound):
        await aliases.get(acme, BOT, "prod")
    with pytest.raises(VersionNotFound):
        await aliases.delete(acme, BOT, "prod")
    assert (await aliases.history(acme, BOT, "prod"))[0].split == {}

    restored = await aliases.roll_back(acme, BOT, "prod", expected=ABSENT)
    assert (restored.split, restored.revision) == ({1: 1}, 3)
    assert await resolved(registry, acme) == {1: 1}


async def test_a_rollback_to_a_deleted_version_is_refused(aliases, registry, acme):
    """It names the version, and the alias stays where it is."""
    await aliases.move(acme, BOT, "prod", {1: 1})
    here = await aliases.move(acme, BOT, "prod", {2: 1})
    await registry.delete_version(acme, BOT, 1)
    with pytest.raises(NothingToRestore, match="no version 1"):
        await aliases.roll_back(acme, BOT, "prod")
    assert await aliases.get(acme, BOT, "prod") == here


async def test_every_version_of_a_split_is_kept(aliases, registry, acme):
    """Whatever its weight; a move away lets go of it."""
    await aliases.move(acme, BOT, "prod", {1: 999, 2: 1})
    for number in (1, 2):
        with pytest.raises(VersionInUse, match="prod"):
            await registry.delete_version(acme, BOT, number)
    await aliases.move(acme, BOT, "prod", {1: 1})
    await registry.delete_version(acme, BOT, 2)


async def test_history_is_bounded_and_goes_with_the_adapter(aliases, registry, acme):
    """The last moves are remembered; a new adapter of the same name knows nothing of them."""
    for number in range(MAX_HISTORY + 5):
        await aliases.move(acme, BOT, "prod", {1 + number % 2: 1})
    history = await aliases.history(acme, BOT, "prod")
    assert [move.revision for move in history] == list(range(MAX_HISTORY + 5, 5, -1))

    await registry.delete_adapter(acme, BOT)
    await registry.create_adapter(acme, BOT, "base")
    assert await aliases.history(acme, BOT, "prod") == []


async def test_what_cannot_be_pointed_at(aliases, registry, acme, database):
    """A missing version, a malformed alias, a missing adapter and another tenant's: nothing is written."""
    zeta = (await TenantDirectory(database).create_tenant("zeta")).id
    for number in (0, -1, 5, 1 << 40, 1 << 80):
        with pytest.raises(VersionNotFound, match="has no version"):
            await aliases.move(acme, BOT, "prod", {1: 1, number: 1})
    for alias in ("7", "UP", "", "a" * 64, "\x00"):
        with pytest.raises(InvalidName):
            await aliases.move(acme, BOT, alias, {1: 1})
    for attempt in (
        aliases.move(zeta, BOT, "prod", {1: 1}),
        aliases.roll_back(zeta, BOT, "prod"),
        aliases.delete(zeta, BOT, "prod"),
        aliases.get(zeta, BOT, "prod"),
        aliases.history(zeta, BOT, "prod"),
        aliases.move(acme, "nobody", "prod", {1: 1}),
    ):
        with pytest.raises(AdapterNotFound):
            await attempt
    assert (await registry.get_adapter(acme, BOT)).aliases == {}


STEPS = st.lists(
    st.one_of(
        st.dictionaries(st.integers(1, VERSIONS), st.integers(1, 100), min_size=1),
        st.sampled_from(["roll back", "delete"]),
    ),
    max_size=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_any_way_of_moves_is_undone_step_by_step(aliases, registry, acme, steps):
    """Against a list of what the alias stood for, whose last entry counts: a rollback cuts it, all else adds to it."""
    await registry.delete_adapter(acme, BOT)
    await make_bot(registry, acme)
    way: list[dict[int, int]] = []
    revision = 0
    for step in steps:
        if step == "roll back":
            goal = max((index for index, split in enumerate(way[:-1]) if split), default=None)
            if goal is None:
                with pytest.raises(NothingToRestore):
                    await aliases.roll_back(acme, BOT, "prod")
                continue
            await aliases.roll_back(acme, BOT, "prod")
            del way[goal + 1 :]
        elif step == "delete":
            if not way or not way[-1]:
                continue
            await aliases.delete(acme, BOT, "prod")
            way.append({})
        else:
            await aliases.move(acme, BOT, "prod", step)
            way.append(step)
        revision += 1
        newest = (await aliases.history(acme, BOT, "prod"))[0]
        assert (newest.revision, newest.split) == (revision, way[-1])
        if way[-1]:
            assert (await aliases.get(acme, BOT, "prod")).split == way[-1]

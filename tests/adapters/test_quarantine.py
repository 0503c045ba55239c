"""What is quarantined is not resolved, whatever name stands for it, until it is released and validated anew."""

from __future__ import annotations

import asyncio

import pytest

from loraplex.adapters.aliases import AdapterAliases
from loraplex.adapters.changes import ChangeFeed, released
from loraplex.adapters.database import Database
from loraplex.adapters.errors import AdapterNotFound, InvalidName, VersionNotFound, VersionNotReady
from loraplex.adapters.quarantine import Quarantine
from loraplex.adapters.registry import AdapterRegistry, VersionInfo
from loraplex.platform.tenants import TenantDirectory

pytestmark = pytest.mark.anyio

BAD, GOOD = "a" * 64, "b" * 64


@pytest.fixture
async def acme(registry: AdapterRegistry, acme_with_bot: str) -> str:
    """Version 1 of its `bot` has the bad bytes, version 2 good ones, both are ready."""
    for digest in (BAD, GOOD):
        await registry.settle(await publish(registry, acme_with_bot, digest), "ready", report=[{"code": "proof"}])
    return acme_with_bot


async def publish(registry: AdapterRegistry, tenant_id: str, digest: str, name: str = "bot") -> VersionInfo:
    return await registry.publish(
        tenant_id, name, digest=digest, size_bytes=1, max_rank=1, targets=["q_proj"],
        report=[{"code": "statistics"}],
    )  # fmt: skip


async def numbers(registry: AdapterRegistry, tenant_id: str, selector: str | None) -> list[int]:
    try:
        return [target.version.number for target in await registry.resolve(tenant_id, "bot", selector)]
    except AdapterNotFound:
        return []


async def test_no_name_stands_for_a_quarantined_version(
    database: Database, registry: AdapterRegistry, acme: str
) -> None:
    """Not its number and no alias; a split goes to the others; where prod is out, no other version stands in for it."""
    aliases, quarantine = AdapterAliases(database), Quarantine(database)
    await aliases.move(acme, "bot", "prod", {1: 1})
    await aliases.move(acme, "bot", "half", {1: 1, 2: 1})
    await quarantine.begin(BAD, "it insults people")

    assert [await numbers(registry, acme, selector) for selector in (None, "prod", "1", "half", "2")] == [
        [], [], [], [2], [2],
    ]  # fmt: skip
    with pytest.raises(VersionNotReady, match="is quarantined: it insults people"):
        await aliases.move(acme, "bot", "canary", {1: 1})
    await aliases.delete(acme, "bot", "prod")
    assert await numbers(registry, acme, None) == [2]


async def test_all_versions_of_the_bytes_are_taken_out(
    database: Database, registry: AdapterRegistry, acme: str
) -> None:
    """Whoever they belong to, in whatever state; validating or uploading them again does not bring them back."""
    other = await TenantDirectory(database).create_tenant("globex")
    await registry.create_adapter(other.id, "bot", "base")
    validating = await publish(registry, other.id, BAD)
    quarantine = Quarantine(database)

    taken_out = await quarantine.begin(BAD, "bad")

    assert {(version.tenant, version.number, version.state) for version in taken_out} == {
        ("acme", 1, "quarantined"),
        ("globex", 1, "quarantined"),
    }
    assert (await registry.settle(validating, "ready")).state == "quarantined"
    assert (await publish(registry, acme, BAD)).state == "quarantined"
    assert await numbers(registry, acme, "2") == [2]


async def test_bytes_that_were_taken_out_are_out_in_a_new_adapter(
    database: Database, registry: AdapterRegistry, acme: str
) -> None:
    """Of the same tenant; the quarantine's end releases them there too."""
    quarantine = Quarantine(database)
    await quarantine.begin(BAD, "it insults people")
    await registry.create_adapter(acme, "again", "base")

    version = await publish(registry, acme, BAD, "again")

    assert (version.state, version.state_reason) == ("quarantined", "it insults people")
    assert {released.name for released in await quarantine.end(BAD, "it does not")} == {"bot", "again"}


async def test_no_publication_escapes_a_quarantine(database: Database, registry: AdapterRegistry, acme: str) -> None:
    """Bytes that are published from ready ones while they are taken out are out, whichever of the two comes first."""
    names = [f"bot-{number}" for number in range(8)]
    for name in names:
        await registry.create_adapter(acme, name, "base")
    publications = [publish(registry, acme, BAD, name) for name in names]

    await asyncio.gather(*publications[:4], Quarantine(database).begin(BAD, "bad"), *publications[4:])

    states = [version.state for name in names for version in (await registry.get_adapter(acme, name)).versions]
    assert states == ["quarantined"] * len(names)


async def test_a_released_version_is_validated_anew(database: Database, registry: AdapterRegistry, acme: str) -> None:
    """It serves once it has passed; its report holds one proof; every server is told."""
    feed, told = ChangeFeed(database), []
    await feed.look()
    feed.subscribe(lambda subjects: told.extend(released(subjects or frozenset())))
    quarantine = Quarantine(database)
    await quarantine.begin(BAD, "crashes")
    [version] = await quarantine.end(BAD, "mended in release 7")
    await feed.look()

    assert (version.state, version.state_reason, told) == ("validating", "mended in release 7", [BAD])
    assert await numbers(registry, acme, "1") == []
    await registry.settle(version, "ready", report=[{"code": "proof"}])
    assert await numbers(registry, acme, "1") == [1]
    assert [entry["code"] for entry in await registry.get_report(acme, "bot", 1)] == ["statistics", "proof"]


async def test_what_is_not_there_cannot_be_moved(database: Database, acme: str) -> None:
    """Unknown bytes, strange ones, and the release of what is not quarantined; a reason that is no text."""
    quarantine = Quarantine(database)
    for digest in ("c" * 64, "", "\0", "x" * 5000):
        with pytest.raises(VersionNotFound):
            await quarantine.begin(digest, "why")
    with pytest.raises(VersionNotFound):
        await quarantine.end(GOOD, "why")
    with pytest.raises(InvalidName):
        await quarantine.begin(GOOD, "\0")
    validating = await quarantine.begin(GOOD, "why")
    await quarantine.end(GOOD, "because")
    with pytest.raises(VersionNotFound):
        await quarantine.begin(validating[0].digest, "crashes", only_ready=True)

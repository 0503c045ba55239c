"""The adapter registry on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from loraplex.adapters.audit import Actor
from loraplex.adapters.base_models import register_base_model
from loraplex.adapters.changes import ChangeFeed, names_of
from loraplex.adapters.database import Database
from loraplex.adapters.errors import (
    AdapterError,
    AdapterExists,
    AdapterNotFound,
    BaseModelConflict,
    BaseModelUnknown,
    InvalidName,
    VersionInUse,
    VersionNotFound,
    VersionNotReady,
)
from loraplex.adapters.registry import AdapterRegistry, VersionInfo
from loraplex.platform.tenants import TenantDirectory

pytestmark = pytest.mark.anyio

CHECKS = [{"check": "rank", "value": 8}]
PROOF = [{"code": "proof"}]


@pytest.fixture
async def zeta(database: Database) -> str:
    return (await TenantDirectory(database).create_tenant("zeta")).id


@pytest.fixture
async def bot(registry: AdapterRegistry, acme: str) -> str:
    return (await registry.create_adapter(acme, "bot", "base")).name


async def publish(registry: AdapterRegistry, tenant_id: str, name: str, digest: str) -> VersionInfo:
    """A version that is ready."""
    return await registry.settle(await upload(registry, tenant_id, name, digest), "ready", report=PROOF)


async def upload(registry: AdapterRegistry, tenant_id: str, name: str, digest: str) -> VersionInfo:
    return await registry.publish(
        tenant_id,
        name,
        digest=digest * 64,
        size_bytes=1 << 33,
        max_rank=8,
        targets=("q_proj", "v_proj"),
        report=CHECKS,
        by=Actor("key", "k" * 12),
    )


async def test_a_version_comes_back_as_it_was_published(registry, acme, bot):
    """Everything said at publishing is said again by get_version, with the canonical name and a time in UTC."""
    published = await publish(registry, acme, bot, "a")

    version = await registry.get_version(acme, bot, 1)
    assert version == published
    assert version.canonical_name == "acme/bot@1"
    assert (version.tenant, version.base_model, version.digest) == ("acme", "base", "a" * 64)
    assert (version.size_bytes, version.max_rank) == (1 << 33, 8)
    assert (version.targets, version.state, version.state_reason) == (("q_proj", "v_proj"), "ready", "")
    assert await registry.get_report(acme, bot, 1) == CHECKS + PROOF
    assert version.created_at.tzinfo is UTC
    assert abs(datetime.now(UTC) - version.created_at) < timedelta(minutes=5)


async def test_how_a_version_may_be_used_is_kept(registry, acme, bot):
    """Where it begins to act, whether it can be combined, and its tokens; most begin at once, can, and have none."""
    facts = {"size_bytes": 1, "max_rank": 8, "targets": ["q_proj"], "report": []}
    plain = await registry.publish(acme, bot, digest="a" * 64, **facts)
    own = {"invocation_tokens": [7, 8], "is_additive": False, "vocab_size": 300}
    other = await registry.publish(acme, bot, digest="b" * 64, **own, **facts)

    assert (plain.invocation_tokens, plain.is_additive, plain.vocab_size) == ((), True, None)
    assert (other.invocation_tokens, other.is_additive, other.vocab_size) == ((7, 8), False, 300)


async def test_numbers_are_never_used_twice(registry, acme, bot):
    """Deleting the newest version does not free its number."""
    for digest in "ab":
        await publish(registry, acme, bot, digest)
    await registry.delete_version(acme, bot, 2)

    assert (await publish(registry, acme, bot, "c")).number == 3


async def test_the_same_bytes_are_the_same_version(registry, acme, zeta, bot):
    """Publishing a digest again returns its version; another adapter with the digest gets one of its own."""
    first = await publish(registry, acme, bot, "a")
    await publish(registry, acme, bot, "b")
    await registry.create_adapter(zeta, "bot", "base")

    assert await publish(registry, acme, bot, "a") == first
    assert (await publish(registry, zeta, "bot", "a")).adapter_id != first.adapter_id


async def test_bytes_that_a_tenant_serves_are_ready_in_another_of_its_adapters(registry, database, acme, zeta, bot):
    """With the report of those, and findable by their files; not on another base, nor asked by another template, nor
    for another tenant, whose version begins as that of bytes which nobody has."""
    await register_base_model(database, "other", "0" * 64, "hub:other")
    await registry.create_adapter(zeta, "bot", "base")
    for name, base in (("new", "base"), ("far", "other"), ("asked", "base")):
        await registry.create_adapter(acme, name, base)
    facts = {"digest": "a" * 64, "size_bytes": 1, "max_rank": 8, "targets": ["q_proj"]}
    facts |= {"report": CHECKS, "received_sha256": "f" * 64}
    served = await registry.settle(await registry.publish(acme, bot, **facts), "ready", report=PROOF)
    feed = ChangeFeed(database)
    await feed.look()
    changed = []
    feed.subscribe(changed.append)

    found = [await registry.find_received(acme, name, "f" * 64) for name in ("new", "far")]
    assert found == [served, None]
    assert await registry.find_received(zeta, "bot", "f" * 64) is None
    again = await registry.publish(acme, "new", **facts)
    others = [
        await registry.publish(acme, "far", **facts),
        await registry.publish(acme, "asked", chat_template="{{ messages }}", **facts),
        await registry.publish(zeta, "bot", **facts),
    ]

    assert (again.number, again.state) == (1, "ready")
    assert await registry.get_report(acme, "new", 1) == CHECKS + PROOF
    assert (await registry.resolve(acme, "new", None))[0].version == again
    assert [version.state for version in others] == ["validating"] * 3
    await feed.look()
    assert names_of(acme, "new") in changed[0]
    assert (await registry.find_received(acme, "new", "f" * 64)) == again


async def test_publishing_the_same_bytes_in_several_adapters_at_once_ends(registry, acme):
    """Each publication locks all of the tenant's adapters that have the bytes: in one order, or two would wait for
    each other."""
    names = [f"bot-{number}" for number in range(8)]
    for name in names:
        await registry.create_adapter(acme, name, "base")
        await upload(registry, acme, name, "a")

    versions = await asyncio.gather(*(upload(registry, acme, name, "a") for name in names * 2))

    assert {version.number for version in versions} == {1}


async def test_publishing_at_once_gives_different_numbers(registry, acme, bot):
    """Eight publishes at the same time get the numbers 1 to 8."""
    versions = await asyncio.gather(*(publish(registry, acme, bot, digest) for digest in "abcdef01"))

    assert sorted(version.number for version in versions) == list(range(1, 9))
    assert len((await registry.get_adapter(acme, bot)).versions) == 8


async def test_publishing_the_same_bytes_at_once_gives_one_version(registry, acme, bot):
    """A retried upload that overlaps the first one makes no second version."""
    versions = await asyncio.gather(*(publish(registry, acme, bot, "a") for _ in range(4)))

    assert {version.number for version in versions} == {1}


async def test_an_adapter_is_created_once(registry, acme, zeta):
    """Of several creations at once one wins, the others learn that it exists; other tenants do not care."""
    outcomes = await asyncio.gather(
        *(registry.create_adapter(acme, "bot", "base") for _ in range(4)), return_exceptions=True
    )

    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["AdapterExists"] * 3 + ["AdapterInfo"]
    await registry.create_adapter(zeta, "bot", "base")


async def test_deleting_a_version_races_with_pointing_an_alias_at_it(registry, aliases, acme, bot):
    """Either the version goes and the alias is refused, or the alias points and the version stays: never both."""
    for number, digest in enumerate("abcdef012345", start=1):
        await publish(registry, acme, bot, digest)
        pointed, deleted = await asyncio.gather(
            aliases.move(acme, bot, "prod", {number: 1}),
            registry.delete_version(acme, bot, number),
            return_exceptions=True,
        )

        info = await registry.get_adapter(acme, bot)
        if deleted is None:
            assert isinstance(pointed, VersionNotFound)
            assert number not in {version.number for version in info.versions}
        else:
            assert isinstance(deleted, VersionInUse)
            assert info.aliases["prod"].split == {number: 1}
        pointed_at = {number for alias in info.aliases.values() for number in alias.split}
        assert pointed_at <= {version.number for version in info.versions}


async def test_an_alias_protects_its_version(registry, aliases, acme, bot):
    """A version goes only when no alias points at it; the refusal names the aliases."""
    await publish(registry, acme, bot, "a")
    await publish(registry, acme, bot, "b")
    for alias in ("prod", "canary"):
        await aliases.move(acme, bot, alias, {1: 1})

    with pytest.raises(VersionInUse, match="canary, prod"):
        await registry.delete_version(acme, bot, 1)

    await aliases.move(acme, bot, "prod", {2: 1})
    await aliases.delete(acme, bot, "canary")
    await registry.delete_version(acme, bot, 1)
    assert [version.number for version in (await registry.get_adapter(acme, bot)).versions] == [2]


async def test_what_a_name_resolves_to(registry, aliases, acme, bot):
    """Digits are a version, words an alias, nothing is `prod` if there is one and else the newest version."""
    for digest in "abc":
        await publish(registry, acme, bot, digest)

    async def number(selector: str | None) -> int:
        (target,) = await registry.resolve(acme, bot, selector)
        return target.version.number

    assert [await number(None), await number("1")] == [3, 1]
    await aliases.move(acme, bot, "canary", {2: 1})
    assert [await number(None), await number("canary")] == [3, 2]
    await aliases.move(acme, bot, "prod", {1: 1})
    assert [await number(None), await number("prod"), await number("3")] == [1, 1, 3]


async def test_only_what_is_ready_serves(registry, aliases, acme, bot):
    """A validating or rejected version is listed, and neither names nor aliases find it."""
    await publish(registry, acme, bot, "a")
    validating = await upload(registry, acme, bot, "b")
    rejected = await registry.settle(
        await upload(registry, acme, bot, "c"), "rejected", reason="it changes nothing", report=[{"code": "no_effect"}]
    )

    assert [version.state for version in (await registry.get_adapter(acme, bot)).versions] == [
        "ready",
        "validating",
        "rejected",
    ]
    assert [target.version.number for target in await registry.resolve(acme, bot, None)] == [1]
    for version in (validating, rejected):
        with pytest.raises(AdapterNotFound):
            await registry.resolve(acme, bot, str(version.number))
        with pytest.raises(VersionNotReady, match=version.state):
            await aliases.move(acme, bot, "prod", {1: 1, version.number: 1})
    assert (await registry.get_version(acme, bot, 3)).state_reason == "it changes nothing"
    assert await registry.get_report(acme, bot, 3) == [*CHECKS, {"code": "no_effect"}]


async def test_a_validation_ends_once(registry, acme, bot):
    """Whoever comes second changes nothing; the bytes of a rejected version may try again."""
    version = await upload(registry, acme, bot, "a")
    outcomes = await asyncio.gather(
        registry.settle(version, "ready", report=PROOF), registry.settle(version, "rejected", reason="no")
    )
    assert len({(outcome.state, outcome.state_reason) for outcome in outcomes}) == 1

    other = await upload(registry, acme, bot, "b")
    await registry.settle(other, "rejected", reason="no", report=[{"code": "no"}])
    again = await upload(registry, acme, bot, "b")
    assert (again.number, again.state, again.state_reason) == (other.number, "validating", "")
    assert await registry.get_report(acme, bot, other.number) == CHECKS
    await registry.delete_version(acme, bot, other.number)
    with pytest.raises(VersionNotFound):
        await registry.settle(again, "ready")


async def test_what_a_template_says_can_be_stored(registry, acme, bot):
    """A stranger's template writes a part of the reason and of the report: no character of it stops a validation."""
    version = await upload(registry, acme, bot, "a")
    said = "no\0\ud800"
    settled = await registry.settle(version, "rejected", reason=said, report=[{"message": said, "all": [{said: 1}]}])
    assert settled.state_reason == "no\ufffd?"
    assert (await registry.get_report(acme, bot, 1))[-1] == {"message": "no\ufffd?", "all": [{"no\ufffd?": 1}]}


async def test_files_that_became_a_version_are_found_again(registry, acme, zeta, bot):
    """By what was received, of this tenant alone; a version that was rejected is none of them."""

    async def receive(tenant: str, digest: str) -> VersionInfo:
        facts = {"size_bytes": 1, "max_rank": 8, "targets": ["q_proj"], "report": []}
        return await registry.publish(tenant, "bot", digest=digest * 64, received_sha256="f" * 64, **facts)

    await registry.create_adapter(zeta, "bot", "base")
    assert await registry.find_received(acme, bot, "f" * 64) is None
    first, second = [await receive(acme, digest) for digest in "ab"]
    assert await registry.find_received(acme, bot, "f" * 64) == second
    await registry.settle(second, "rejected", reason="no")
    assert await registry.find_received(acme, bot, "f" * 64) == first
    await registry.settle(first, "rejected", reason="no")
    assert await registry.find_received(acme, bot, "f" * 64) is None
    await receive(zeta, "a")
    assert await registry.find_received(acme, bot, "f" * 64) is None


async def test_validations_that_were_left_behind_are_found(registry, acme, bot):
    """Those that began long ago, on the base that is served."""
    version = await upload(registry, acme, bot, "a")
    await publish(registry, acme, bot, "b")
    assert await registry.validating("base", timedelta(minutes=3)) == []
    assert await registry.validating("base", timedelta(seconds=-60)) == [version]
    assert await registry.validating("another", timedelta(seconds=-60)) == []


async def test_every_miss_reads_the_same(registry, acme, zeta, bot):
    """A missing adapter, version or alias, one without versions, and another tenant's: one error, one text."""
    await registry.create_adapter(acme, "empty", "base")
    await publish(registry, acme, bot, "a")
    misses = [
        (acme, "nobody", None),
        (acme, "empty", None),
        (acme, bot, "2"),
        (acme, bot, "007"),
        (acme, bot, "9" * 400),
        (acme, bot, "²"),
        (acme, bot, "canary"),
        (acme, bot, "'; --"),
        (acme, bot, "x" * 10_000),
        (acme, bot, "\x00"),
        (acme, "\x00", None),
        (acme, "\ud800", None),
        (zeta, bot, None),
        (zeta, bot, "1"),
    ]

    texts = set()
    for miss in misses:
        with pytest.raises(AdapterNotFound) as missed:
            await registry.resolve(*miss)
        assert type(missed.value) is AdapterNotFound
        texts.add(str(missed.value))
    assert len(texts) == 1


async def test_no_call_reaches_another_tenants_adapter(registry, aliases, acme, zeta, bot):
    """Under another tenant's id every call finds nothing and changes nothing."""
    await publish(registry, acme, bot, "a")
    await aliases.move(acme, bot, "prod", {1: 1})
    before = await registry.get_adapter(acme, bot)

    for attempt in (
        registry.get_adapter(zeta, bot),
        registry.get_version(zeta, bot, 1),
        publish(registry, zeta, bot, "b"),
        registry.delete_version(zeta, bot, 1),
        registry.delete_adapter(zeta, bot),
    ):
        with pytest.raises(AdapterNotFound):
            await attempt

    assert await registry.list_adapters(zeta) == []
    assert await registry.get_adapter(acme, bot) == before


async def test_a_missing_version_is_told_from_a_missing_adapter(registry, acme, bot):
    """The owner of an adapter learns that the version or the alias is what is missing, for any number."""
    for number in (0, -1, 1, 1 << 40, 1 << 80):
        for attempt in (
            registry.get_version(acme, bot, number),
            registry.delete_version(acme, bot, number),
        ):
            with pytest.raises(VersionNotFound, match="has no version"):
                await attempt


async def test_a_deleted_adapter_is_gone_with_all_it_had(registry, aliases, acme, bot):
    """Versions, aliases and digests go with the adapter, and its name is free."""
    await publish(registry, acme, bot, "a")
    await aliases.move(acme, bot, "prod", {1: 1})

    await registry.delete_adapter(acme, bot)

    assert await registry.live_digests() == set()
    with pytest.raises(AdapterNotFound):
        await registry.delete_adapter(acme, bot)
    assert (await registry.create_adapter(acme, bot, "base")).versions == ()


async def test_live_digests_are_those_of_all_versions(registry, acme, zeta, bot):
    """A digest is live while any version of any tenant has it."""
    await registry.create_adapter(zeta, "bot", "base")
    for tenant, digest in ((acme, "a"), (acme, "b"), (zeta, "a")):
        await publish(registry, tenant, "bot", digest)
    await registry.delete_version(acme, bot, 1)
    assert await registry.live_digests() == {"a" * 64, "b" * 64}

    await registry.delete_adapter(zeta, "bot")
    assert await registry.live_digests() == {"b" * 64}


async def test_pages_cover_every_adapter_once_and_in_order(registry, acme, zeta):
    """Following `after` from page to page lists all adapters by tenant and name, in code-point order."""
    names = ["a-b", "a.b", "a_b", "ab", "b", "0"]
    for tenant in (zeta, acme):
        for name in names:
            await registry.create_adapter(tenant, name, "base")

    seen: list[str] = []
    while page := await registry.list_adapters(None, limit=5, after=seen[-1] if seen else None):
        seen += [f"{adapter.tenant}/{adapter.name}" for adapter in page]

    assert seen == [f"{tenant}/{name}" for tenant in ("acme", "zeta") for name in sorted(names)]
    assert [adapter.name for adapter in await registry.list_adapters(zeta, after="zeta/b")] == []
    assert len(await registry.list_adapters(acme, limit=0)) == 1
    with pytest.raises(InvalidName, match="after"):
        await registry.list_adapters(acme, after="b")


async def test_adapters_are_found_by_part_of_their_name_and_counted(registry, acme, zeta, bot):
    """Signs that mean more in a pattern mean themselves; counts are of one tenant, or of all."""
    for name in ("legal", "legal_fr", "legalese"):
        await registry.create_adapter(zeta, name, "base")
    await publish(registry, acme, bot, "a")

    found = {part: await registry.list_adapters(None, containing=part) for part in ("legal", "l_f", "%", "bo")}
    assert {part: [adapter.name for adapter in adapters] for part, adapters in found.items()} == {
        "legal": ["legal", "legal_fr", "legalese"],
        "l_f": ["legal_fr"],
        "%": [],
        "bo": [bot],
    }
    assert [each.name for each in await registry.list_adapters(zeta, 1, "zeta/legal", "legal")] == ["legal_fr"]
    assert await registry.count_versions(zeta) == (3, {})
    adapters, versions = await registry.count_versions(None)
    assert (adapters, sum(versions.values())) == (4, 1)


async def test_a_base_model_keeps_its_shape(database):
    """Registering a model again is fine, even at once; another shape under the name is refused with the way out."""
    await asyncio.gather(*(register_base_model(database, "new", "1" * 64, "folder") for _ in range(4)))

    with pytest.raises(BaseModelConflict, match="under another name"):
        await register_base_model(database, "new", "2" * 64, "folder")


async def test_what_cannot_be_an_adapter(registry, acme):
    """A bad name, a base model's name, and an unknown base model are refused."""
    with pytest.raises(InvalidName):
        await registry.create_adapter(acme, "no/slash", "base")
    with pytest.raises(InvalidName, match="name of a base model"):
        await registry.create_adapter(acme, "base", "base")
    with pytest.raises(BaseModelUnknown, match="base_model: no base model 'other'"):
        await registry.create_adapter(acme, "bot", "other")
    with pytest.raises(BaseModelUnknown):
        await registry.create_adapter(acme, "bot", "\x00")
    for description in ("x" * 2001, "\x00", "\ud800"):
        with pytest.raises(InvalidName, match="description: "):
            await registry.create_adapter(acme, "bot", "base", description)


async def test_an_existing_adapter_says_so(registry, acme, bot):
    """The refusal is a domain error that tells what to do instead."""
    with pytest.raises(AdapterExists, match="publish a version"):
        await registry.create_adapter(acme, bot, "base")
    assert issubclass(AdapterExists, AdapterError)

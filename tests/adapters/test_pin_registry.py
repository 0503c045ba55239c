"""Pins on SQLite and PostgreSQL: they last as long as was said, and go with their version."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from loraplex.adapters.audit import Actor
from loraplex.adapters.base_models import register_base_model
from loraplex.adapters.database import Database
from loraplex.adapters.errors import AdapterNotFound, VersionNotFound, VersionNotReady
from loraplex.adapters.pin_registry import PinInfo, PinRegistry
from loraplex.adapters.registry import AdapterRegistry, VersionInfo
from loraplex.platform.tenants import TenantDirectory

pytestmark = pytest.mark.anyio

LATER = datetime.now(UTC) + timedelta(days=3, microseconds=1)


@pytest.fixture
def pins(database: Database) -> PinRegistry:
    return PinRegistry(database)


async def publish(registry: AdapterRegistry, tenant: str, digest: str, *, name="bot", base="base", state="ready"):
    try:
        await registry.get_adapter(tenant, name)
    except AdapterNotFound:
        await registry.create_adapter(tenant, name, base)
    version: VersionInfo = await registry.publish(
        tenant, name, digest=digest * 64, size_bytes=1, max_rank=8, targets=(), report=[]
    )
    return version if state == "validating" else await registry.settle(version, state)


async def test_pins_last_as_long_as_was_said(database, registry, pins, acme):
    """Asked again the end moves, also forward; those that are over and those of other bases are not listed."""
    await register_base_model(database, "other", "1" * 64, "hub:other")
    first, second = await publish(registry, acme, "a"), await publish(registry, acme, "b")
    elsewhere = await publish(registry, acme, "c", name="elsewhere", base="other")
    for version in (first, elsewhere):
        await pins.put(version, LATER, by=Actor("key", "k" * 12))
    await pins.put(second, datetime.now(UTC) - timedelta(seconds=1))
    assert await pins.on_base("base") == [PinInfo(acme, first.digest, LATER)]

    await pins.put(second, LATER)
    await pins.put(first, LATER - timedelta(days=1))
    assert [(pin.digest, pin.expires_at) for pin in await pins.on_base("base")] == [
        (first.digest, LATER - timedelta(days=1)),
        (second.digest, LATER),
    ]
    await pins.delete(first)
    await pins.delete(first)
    assert [pin.digest for pin in await pins.on_base("base")] == [second.digest]


async def test_a_pin_goes_with_its_version(registry, pins, acme):
    """And nothing can be pinned that is not there or cannot serve."""
    versions = [await publish(registry, acme, digest) for digest in "abc"]
    for version in versions:
        await pins.put(version, LATER)
    await registry.delete_version(acme, "bot", 1)
    assert [pin.digest for pin in await pins.on_base("base")] == ["b" * 64, "c" * 64]
    with pytest.raises(VersionNotFound):
        await pins.put(versions[0], LATER)

    await registry.delete_adapter(acme, "bot")
    assert await pins.on_base("base") == []
    with pytest.raises(AdapterNotFound):
        await pins.delete(versions[1])
    with pytest.raises(VersionNotReady):
        await pins.put(await publish(registry, acme, "d", state="validating"), LATER)


async def test_a_suspended_tenant_keeps_no_memory(database, registry, pins, acme):
    """Its pins are not listed, and are again when it is back."""
    await pins.put(await publish(registry, acme, "a"), LATER)
    tenants = TenantDirectory(database)
    await tenants.set_suspended("acme", suspended=True)
    assert await pins.on_base("base") == []
    await tenants.set_suspended("acme", suspended=False)
    assert len(await pins.on_base("base")) == 1


async def test_who_has_the_same_bytes(database, registry, acme):
    """Is known to the server: of others than a tenant, and by name."""
    globex = (await TenantDirectory(database).create_tenant("globex")).id
    for tenant, digest in ((acme, "a"), (acme, "b"), (globex, "a")):
        await publish(registry, tenant, digest)
    assert [await registry.others_have(acme, digest * 64) for digest in "abc"] == [True, False, False]
    names = await registry.versions_of(["a" * 64, "b" * 64, "c" * 64])
    assert names == {"a" * 64: ["acme/bot@1", "globex/bot@1"], "b" * 64: ["acme/bot@2"]}

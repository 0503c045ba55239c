"""Tenants and API keys on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import shutil
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, text, update

from loraplex.adapters.database import Database
from loraplex.adapters.errors import InvalidName
from loraplex.platform.api_keys import key_id_of, new_key
from loraplex.platform.key_terms import InvalidKeyRequest
from loraplex.platform.schema import ApiKey
from loraplex.platform.tenants import (
    InvalidKey,
    KeyNotFound,
    TenantDirectory,
    TenantExists,
    TenantNotFound,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
async def tenants(database: Database) -> TenantDirectory:
    directory = TenantDirectory(database)
    await directory.create_tenant("acme", "Acme Ltd.")
    return directory


async def test_a_key_speaks_for_its_tenant(tenants):
    """Authenticating gives the key's tenant and scopes, and a salt that no other tenant has."""
    zeta = await tenants.create_tenant("zeta")
    info, secret = await tenants.create_key("zeta", "ci", {"inference"})
    _, other = await tenants.create_key("acme", "ci", ["inference", "adapters"])

    principal = await tenants.authenticate(secret)

    assert (principal.key_id, principal.tenant_id, principal.tenant) == (info.id, zeta.id, "zeta")
    assert principal.scopes == {"inference"}
    assert len(principal.salt) == 32
    assert (await tenants.authenticate(other)).salt != principal.salt
    assert (await tenants.authenticate(other)).scopes == {"inference", "adapters"}


async def test_an_operators_key_has_no_tenant(tenants):
    """It carries the scope admin and nothing by which it could use a tenant's adapters."""
    _, secret = await tenants.create_key(None, "ops", ["admin"])

    principal = await tenants.authenticate(secret)
    assert (principal.tenant_id, principal.tenant, principal.scopes, principal.salt) == (None, None, {"admin"}, b"")


@pytest.mark.parametrize(
    ("tenant", "scopes"),
    [
        ("acme", ["admin"]),
        ("acme", ["inference", "admin"]),
        ("acme", []),
        ("acme", ["root"]),
        (None, ["inference"]),
        (None, []),
        (None, ["admin", "adapters"]),
    ],
)
async def test_scopes_that_are_not_granted(tenants, tenant, scopes):
    """A tenant's key never gets admin, an operator's nothing else, and no key is without scopes."""
    with pytest.raises(InvalidKeyRequest, match="scopes: "):
        await tenants.create_key(tenant, "k", scopes)
    assert await tenants.list_keys() == []


async def test_keys_that_are_not_made(tenants):
    """An unknown tenant, an overlong name, a past or zoneless expiry."""
    with pytest.raises(TenantNotFound, match="create it first"):
        await tenants.create_key("nobody", "k", ["inference"])
    for name in ("k" * 101, "\x00", "\ud800"):
        with pytest.raises(InvalidName, match="name: "):
            await tenants.create_key("acme", name, ["inference"])
    for moment in (datetime(2001, 1, 1, tzinfo=UTC), datetime(2999, 1, 1)):
        with pytest.raises(InvalidKeyRequest, match="expires_at"):
            await tenants.create_key("acme", "k", ["inference"], moment)


async def test_every_refused_key_reads_the_same(tenants, database):
    """Malformed, unknown, wrong, revoked, expired, suspended: one error, one text."""
    await tenants.create_tenant("zeta")
    _, suspended = await tenants.create_key("zeta", "k", ["inference"])
    await tenants.set_suspended("zeta", True)
    revoked_info, revoked = await tenants.create_key("acme", "k", ["inference"])
    await tenants.revoke_key(revoked_info.id)
    expired_info, expired = await tenants.create_key("acme", "k", ["inference"], datetime.now(UTC) + timedelta(hours=1))
    await tenants.authenticate(expired)
    wrong_info, _ = await tenants.create_key("acme", "k", ["inference"])
    async with database.transaction() as session:
        past = datetime.now(UTC) - timedelta(seconds=1)
        await session.execute(update(ApiKey).where(ApiKey.id == expired_info.id).values(expires_at=past))
        # The id of a real key with another's secret, well-formed: only the stored hash tells.
        stranger_id, stranger = new_key()
        await session.execute(update(ApiKey).where(ApiKey.id == wrong_info.id).values(id=stranger_id))

    texts = set()
    for secret in ("", "x" * 10_000, "lk_\x00", "ключ", new_key()[1], stranger, revoked, expired, suspended):
        with pytest.raises(InvalidKey) as refused:
            await tenants.authenticate(secret)
        texts.add(str(refused.value))
    assert texts == {"the API key is not valid"}


async def test_a_suspended_tenant_comes_back_as_it_was(tenants):
    """Suspending stops all of its keys, resuming revives them; other tenants notice nothing."""
    await tenants.create_tenant("zeta")
    _, secret = await tenants.create_key("acme", "k", ["inference"])
    _, other = await tenants.create_key("zeta", "k", ["inference"])
    before = await tenants.authenticate(secret)

    first = await tenants.set_suspended("acme", True)
    assert await tenants.set_suspended("acme", True) == first
    with pytest.raises(InvalidKey):
        await tenants.authenticate(secret)
    await tenants.authenticate(other)

    assert (await tenants.set_suspended("acme", False)).suspended_at is None
    assert await tenants.authenticate(secret) == before
    with pytest.raises(TenantNotFound):
        await tenants.set_suspended("nobody", True)


async def test_only_a_hash_of_the_key_is_stored(tenants, database):
    """Neither the row nor what is told about a key holds its secret."""
    info, secret = await tenants.create_key("acme", "k", ["inference"])
    async with database.read() as session:
        row = (await session.scalars(select(ApiKey))).one()

    private = secret.split("_")[2]
    assert private not in repr(vars(row))
    assert private not in repr(info)
    assert len(row.secret_sha256) == 32


async def test_use_is_noted_once_a_minute(tenants, database):
    """The first use is written, further ones within a minute are not, later ones are."""
    info, secret = await tenants.create_key("acme", "k", ["inference"])

    async def last_used() -> datetime | None:
        return (await tenants.list_keys("acme"))[0].last_used_at

    assert await last_used() is None
    await tenants.authenticate(secret)
    first = await last_used()
    await tenants.authenticate(secret)
    assert await last_used() == first

    earlier = first - timedelta(seconds=61)
    async with database.transaction() as session:
        await session.execute(update(ApiKey).where(ApiKey.id == info.id).values(last_used_at=earlier))
    await tenants.authenticate(secret)
    assert await last_used() >= first


async def test_a_full_disk_refuses_nobody(migrated_sqlite_file, tmp_path):
    """That the time of use cannot be written does not make a key invalid."""
    path = shutil.copyfile(migrated_sqlite_file, tmp_path / "full.db")
    database = Database(f"sqlite:///{path}")
    tenants = TenantDirectory(database)
    _, secret = await tenants.create_key(None, "ops", ["admin"])
    async with database.transaction() as session:
        refuse = "CREATE TRIGGER full BEFORE UPDATE ON api_keys BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        await session.execute(text(refuse))

    assert (await tenants.authenticate(secret)).scopes == {"admin"}
    assert (await tenants.list_keys())[0].last_used_at is None
    await database.dispose()


async def test_lists_and_revocation(tenants):
    """Keys are listed by tenant or all together; a revoked one stays listed with the time of its end."""
    await tenants.create_tenant("zeta", "Zeta")
    mine, _ = await tenants.create_key("acme", "mine", ["inference"])
    theirs, _ = await tenants.create_key("zeta", "theirs", ["adapters"])
    operators, _ = await tenants.create_key(None, "ops", ["admin"])

    assert [tenant.slug for tenant in await tenants.list_tenants()] == ["acme", "zeta"]
    assert await tenants.list_keys("acme") == [mine]
    assert await tenants.list_keys() == [mine, theirs, operators]
    revoked = await tenants.revoke_key(mine.id)
    assert revoked.revoked_at is not None
    assert await tenants.revoke_key(mine.id) == revoked
    assert await tenants.list_keys("acme") == [revoked]
    for nothing in ("nothing", "\x00", "\ud800", "x" * 10_000):
        with pytest.raises(KeyNotFound):
            await tenants.revoke_key(nothing)
        with pytest.raises(TenantNotFound):
            await tenants.list_keys(nothing)


async def test_a_tenant_is_created_once(tenants):
    """Of several creations at once one wins; names that cannot stand in a model name are refused."""
    outcomes = await asyncio.gather(*(tenants.create_tenant("beta") for _ in range(4)), return_exceptions=True)

    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["TenantExists"] * 3 + ["TenantInfo"]
    with pytest.raises(TenantExists):
        await tenants.create_tenant("acme")
    with pytest.raises(InvalidName, match="slug"):
        await tenants.create_tenant("acme/bot")
    for name in ("x" * 201, "\x00", "\ud800"):
        with pytest.raises(InvalidName, match="name: "):
            await tenants.create_tenant("gamma", name)


@given(st.data())
def test_a_typing_error_is_noticed_without_a_database(data):
    """A key reads back as its id; with any one character changed it is no key at all."""
    key_id, key = new_key()
    assert key_id_of(key) == key_id

    position = data.draw(st.integers(0, len(key) - 1))
    wrong = data.draw(st.characters().filter(lambda character: character != key[position]))
    assert key_id_of(key[:position] + wrong + key[position + 1 :]) is None


@given(st.text())
def test_other_text_is_no_key(other):
    """Whatever stands in the header, reading it as a key raises nothing."""
    assert key_id_of(other) is None

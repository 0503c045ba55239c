"""Keys that change while they are in use: two secrets for a while, another end, other scopes and adapters."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from clock import Clock
from sqlalchemy import select, update

from loraplex.adapters.changes import MAX_STALE_SECONDS, ChangeFeed
from loraplex.adapters.database import Database
from loraplex.adapters.errors import InvalidName
from loraplex.platform.api_keys import key_id_of
from loraplex.platform.auth import Authenticator
from loraplex.platform.key_changes import KeyChanged, KeyChanges, KeyEnded, RotationUnderWay
from loraplex.platform.key_terms import BASE, MAX_LISTED_ADAPTERS, InvalidKeyRequest
from loraplex.platform.schema import ApiKey
from loraplex.platform.tenants import InvalidKey, KeyNotFound, TenantDirectory

pytestmark = pytest.mark.anyio

HOUR = timedelta(hours=1)


@pytest.fixture
async def tenants(database: Database) -> TenantDirectory:
    directory = TenantDirectory(database)
    await directory.create_tenant("acme")
    return directory


@pytest.fixture
def changes(database: Database) -> KeyChanges:
    return KeyChanges(database)


async def set_row(database: Database, key_id: str, **values: object) -> None:
    async with database.transaction() as session:
        await session.execute(update(ApiKey).where(ApiKey.id == key_id).values(**values))


async def is_refused(tenants: TenantDirectory, secret: str) -> bool:
    try:
        await tenants.authenticate(secret)
    except InvalidKey:
        return True
    return False


async def test_both_secrets_of_a_rotated_key_hold_until_the_overlap_ends(tenants, changes, database):
    """They are one key, of one id; each notes its own use, so one sees when nobody needs the old one any more."""
    info, first = await tenants.create_key("acme", "ci", ["inference"])
    await tenants.authenticate(first)
    rotated, second = await changes.rotate(info.id, HOUR)
    assert key_id_of(second) == info.id
    assert rotated.old_secret is not None
    assert (rotated.old_secret.ends_at - rotated.rotated_at, rotated.secret_used_at) == (HOUR, None)
    assert rotated.old_secret.last_used_at is not None
    assert rotated.last_used_at == rotated.old_secret.last_used_at
    old, new = await tenants.authenticate(first), await tenants.authenticate(second)
    assert replace(old, valid_until=None) == new
    assert old.valid_until == rotated.old_secret.ends_at
    assert (await tenants.get_key(info.id)).secret_used_at is not None

    await set_row(database, info.id, old_ends_at=datetime.now(UTC) - timedelta(seconds=1))
    assert await is_refused(tenants, first)
    await tenants.authenticate(second)
    assert (await tenants.get_key(info.id)).old_secret is None
    async with database.read() as session:
        row = (await session.scalars(select(ApiKey))).one()
    assert all(secret.split("_")[2] not in repr(vars(row)) for secret in (first, second))


async def test_a_key_has_two_secrets_at_most(tenants, changes):
    """A second rotation waits for the overlap of the first, or is done without any: then both old secrets end."""
    info, first = await tenants.create_key("acme", "ci", ["inference"])
    _, second = await changes.rotate(info.id, HOUR)
    with pytest.raises(RotationUnderWay, match="end it first"):
        await changes.rotate(info.id, HOUR)
    assert not await is_refused(tenants, first)
    rotated, third = await changes.rotate(info.id, timedelta())
    assert rotated.old_secret is None
    assert [await is_refused(tenants, secret) for secret in (first, second, third)] == [True, True, False]

    _, fourth = await changes.rotate(info.id, HOUR)
    for _ in range(2):
        assert (await changes.end_old_secret(info.id)).old_secret is None
    assert [await is_refused(tenants, secret) for secret in (third, fourth)] == [True, False]
    for overlap in (timedelta(seconds=-1), timedelta(days=30, seconds=1)):
        with pytest.raises(InvalidKeyRequest, match="overlap_seconds"):
            await changes.rotate(info.id, overlap)


async def test_what_ends_a_key_ends_both_secrets(tenants, changes, database):
    """Revoked and expired keys are not rotated; an expired one may get another end, a revoked one is gone for good."""
    info, first = await tenants.create_key("acme", "ci", ["inference"], datetime.now(UTC) + HOUR)
    _, second = await changes.rotate(info.id, 2 * HOUR)
    assert (await tenants.authenticate(first)).valid_until == (await tenants.authenticate(second)).valid_until
    await set_row(database, info.id, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    assert await is_refused(tenants, first)
    assert await is_refused(tenants, second)
    with pytest.raises(KeyEnded, match="expired"):
        await changes.rotate(info.id, timedelta())
    await changes.change(info.id, lambda terms: replace(terms, expires_at=None))
    assert not await is_refused(tenants, first)

    assert (await tenants.revoke_key(info.id)).old_secret is None
    assert await is_refused(tenants, first)
    assert await is_refused(tenants, second)
    for refused in (
        changes.rotate(info.id),
        changes.end_old_secret(info.id),
        changes.change(info.id, lambda terms: terms),
    ):
        with pytest.raises(KeyEnded, match="revoked"):
            await refused
    with pytest.raises(KeyNotFound):
        await changes.rotate("nothing")


async def test_a_change_is_made_of_what_was_seen(tenants, changes):
    """Each change raises the revision; one that expected another revision is not made."""
    info, _ = await tenants.create_key("acme", "ci", ["inference"])
    changed = await changes.change(info.id, lambda terms: replace(terms, name="deploy"), expected=info.revision)
    assert (changed.name, changed.revision) == ("deploy", info.revision + 1)
    assert await changes.change(info.id, lambda terms: terms) == changed
    for late in (
        changes.change(info.id, lambda terms: terms, info.revision),
        changes.rotate(info.id, HOUR, info.revision),
    ):
        with pytest.raises(KeyChanged, match="read it again"):
            await late
    assert (await tenants.get_key(info.id)) == changed


@pytest.mark.parametrize(
    ("scopes", "adapters", "message"),
    [
        (["inference"], [], "name 1 to"),
        (["inference"], [f"a{number}" for number in range(MAX_LISTED_ADAPTERS + 1)], "name 1 to"),
        (["inference", "adapters"], ["bot"], "only a key whose one scope is inference"),
        (["inference"], ["acme/bot"], "not a valid name"),
        (["inference"], ["bot@prod"], "not a valid name"),
    ],
)
async def test_lists_of_adapters_that_no_key_has(tenants, changes, scopes, adapters, message):
    """Neither a new key nor one that is changed."""
    info, _ = await tenants.create_key("acme", "ci", scopes)
    with pytest.raises((InvalidKeyRequest, InvalidName), match=message):
        await tenants.create_key("acme", "ci", scopes, adapters=adapters)
    with pytest.raises((InvalidKeyRequest, InvalidName), match=message):
        await changes.change(info.id, lambda terms: replace(terms, adapters=frozenset(adapters)))
    with pytest.raises(InvalidKeyRequest, match="only a key"):
        await tenants.create_key(None, "ops", ["admin"], adapters=["bot"])


async def test_other_servers_see_a_change_in_time(tenants, changes, database):
    """And none trusts a key, or the old secret of one, beyond its end, however long it remembers keys."""
    clock = Clock()
    info, first = await tenants.create_key("acme", "ci", ["inference"], adapters=["bot", BASE])
    await changes.rotate(info.id, HOUR)
    feed = ChangeFeed(database, clock)
    elsewhere = Authenticator(tenants, feed, ttl_seconds=24 * 3600, clock=clock)
    assert (await elsewhere.authenticate(first)).adapters == {"bot", BASE}
    await changes.change(info.id, lambda terms: replace(terms, adapters=frozenset({"router"})))
    clock.now += MAX_STALE_SECONDS
    assert (await elsewhere.authenticate(first)).adapters == {"router"}
    await changes.end_old_secret(info.id)
    clock.now += MAX_STALE_SECONDS
    with pytest.raises(InvalidKey):
        await elsewhere.authenticate(first)

    _, second = await changes.rotate(info.id, timedelta())
    _, third = await changes.rotate(info.id, timedelta(minutes=10))
    await elsewhere.authenticate(second)
    await set_row(database, info.id, old_ends_at=datetime.now(UTC) - timedelta(seconds=1))  # as the clock would
    clock.now += 9 * 60
    await elsewhere.authenticate(second)
    clock.now += 61
    with pytest.raises(InvalidKey):
        await elsewhere.authenticate(second)
    await elsewhere.authenticate(third)

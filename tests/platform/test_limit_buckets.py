"""What a bucket lets through, and what servers that share one let through together."""

from __future__ import annotations

import asyncio
import random

import pytest
from clock import Clock
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError

from loraplex.adapters.database import Database
from loraplex.platform.catalog import ResolvedModel
from loraplex.platform.errors import ApiError
from loraplex.platform.limits.account import Demand
from loraplex.platform.limits.bucket import REFILL_SECONDS, Bucket
from loraplex.platform.limits.limiter import EXCHANGE_SECONDS, FRESH_SECONDS, Limiter
from loraplex.platform.limits.refusals import BUSY, MAX_TENANTS, Refusals
from loraplex.platform.limits.rules import CallerLimits, RateLimits
from loraplex.platform.limits.shared_use import KEPT_SECONDS, SharedUse
from loraplex.platform.limits.wording import duration
from loraplex.platform.schema import RateUse
from loraplex.platform.tenants import Principal

BASE = ResolvedModel("base")

AMOUNT = st.integers(1, 100)
STEP = st.tuples(st.floats(0, 30), AMOUNT, st.integers(0, 100))
"""Seconds that pass, what is asked for, and the part in percent of it that is used."""


@pytest.fixture(autouse=True)
def patient_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is: no look outlasts its moment on the tests' clock."""
    monkeypatch.setattr("loraplex.platform.limits.limiter.LOOK_SECONDS", 60.0)


def caller(**limits: int) -> Principal:
    held = CallerLimits(RateLimits(), RateLimits(**limits), RateLimits())
    return Principal("k", "t", "acme", frozenset({"inference"}), b"", held)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(100, 1000), st.lists(STEP, min_size=1, max_size=60))
def test_in_any_time_no_more_is_used_than_the_bucket_holds_and_gets(capacity: int, steps: list) -> None:
    """From any moment on: a capacity, and what comes back in the time since. What is not used comes back at the next
    step; what has to wait is there when it was told to be, and not before."""
    bucket, now, used = Bucket(capacity, 0.0), 0.0, []
    for passed, amount, percent in steps:
        now += passed
        wait = bucket.seconds_until(amount, now)
        if wait > 1e-3:
            assert bucket.seconds_until(amount, now + wait - 1e-3) > 0
        now += wait + 1e-9
        before = bucket.remaining(now)
        assert before >= amount - 1e-6
        bucket.charge(amount, now)
        unused = amount * percent // 100
        bucket.charge(-unused, now)
        assert bucket.remaining(now) == pytest.approx(before - amount + unused)
        used.append((now, amount - unused))
    for first, (start, _) in enumerate(used):
        total = 0
        for moment, amount in used[first:]:
            total += amount
            assert total <= capacity * (1 + (moment - start) / REFILL_SECONDS) + 1e-3


def test_what_was_used_beyond_what_was_taken_is_paid_before_anything_else() -> None:
    """An answer that nobody bounded may bring the bucket below nothing."""
    bucket = Bucket(60, 0.0)
    bucket.charge(60, 0.0)
    bucket.charge(30, 0.0)

    assert (bucket.remaining(0.0), bucket.seconds_until(1, 0.0)) == (-30, 31)
    assert bucket.remaining(1000.0) == 60


def test_what_came_back_by_itself_is_not_given_back_again() -> None:
    """A request that ends a minute after it took everything: what is taken then counts, here and once others know."""
    bucket = Bucket(60, 0.0)
    bucket.charge(60, 0.0)
    bucket.hear(bucket.tell(5, 1.0).after(0.0, 0.0), 1.0)
    bucket.charge(-60, 61.0)
    bucket.charge(50, 61.0)
    assert bucket.remaining(61.0) == 10

    bucket.hear(bucket.tell(5, 61.0).after(59.0, 60.0), 61.0)
    assert bucket.remaining(61.0) == 10


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (0.02, "20ms"), (0.9999, "1s"), (1, "1s"), (59.2, "1m0s"), (360, "6m0s")]
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    """Rounded up."""
    assert duration(seconds) == text


class Fleet:
    """Servers over one database, at one moment."""

    def __init__(self, database: Database, count: int) -> None:
        self.clock = Clock()
        self.servers = [Limiter(SharedUse(database, self.clock), self.clock) for _ in range(count)]

    async def flood(self, server: Limiter, who: Principal, amount: int) -> int:
        """What is admitted of as many requests as it takes until one is not."""
        admitted = 0
        while True:
            try:
                admission = await server.admit(who, BASE, Demand(amount, 1))
            except ApiError:
                return admitted
            admission.settle(amount)
            admitted += amount


@pytest.mark.anyio
async def test_servers_together_exceed_a_limit_by_no_more_than_is_said(database: Database) -> None:
    """Three servers that are flooded, each telling the others at its own moments: never above the stated bound; and
    since the excess is owed, by the end of four minutes the rate is what it should be."""
    limit, random_ = 600, random.Random(7)
    who, fleet = caller(tokens_per_minute=limit), Fleet(database, 3)
    clock, total = fleet.clock, 0
    told = [0.0, 0.3, 0.6]
    while clock.now < 240:
        clock.now += random_.choice([0.7, 1.5, 2.5])
        for index, server in enumerate(fleet.servers):
            if clock.now - told[index] >= EXCHANGE_SECONDS:
                await server.tell()
                told[index] = clock.now
            total += await fleet.flood(server, who, 7)
        blind = FRESH_SECONDS + EXCHANGE_SECONDS
        assert total <= limit * (1 + (clock.now + 1) / 60) + 2 * limit * (1 + blind / 60)
    assert total == pytest.approx(limit * (1 + clock.now / 60), rel=0.05)


@pytest.mark.anyio
async def test_a_server_that_starts_knows_what_others_have_used(database: Database) -> None:
    """Its first request asks, so a restart gives no tenant a full bucket. What was given back is known as well."""
    who, fleet = caller(tokens_per_minute=600), Fleet(database, 2)
    first, second = fleet.servers
    running = await first.admit(who, BASE, Demand(600, 1))
    await first.tell()

    with pytest.raises(ApiError, match="600 tokens per minute, of which 0 are left; this request needs 50"):
        await second.admit(who, BASE, Demand(50, 1))
    running.settle(100)
    await first.tell()
    fleet.clock.now = FRESH_SECONDS
    admitted = await second.admit(who, BASE, Demand(50, 1))
    assert admitted.headers["x-ratelimit-remaining-tokens"] == str(600 - 100 + 20 - 50)


@pytest.mark.anyio
async def test_without_the_database_each_server_goes_by_its_own(database: Database, monkeypatch) -> None:
    """Nothing fails or waits; when it is back, what was used meanwhile is no debt."""
    who, fleet = caller(tokens_per_minute=600), Fleet(database, 1)
    (server,), clock = fleet.servers, fleet.clock
    assert await fleet.flood(server, who, 10) == 600

    async def away(told: object) -> None:
        raise OperationalError("UPDATE", {}, Exception("the server is gone"))

    with monkeypatch.context() as patch:
        patch.setattr(server._shared, "exchange", away)
        for minute in range(1, 11):
            clock.now = minute * 60.0
            assert await fleet.flood(server, who, 10) == 600
    clock.now += 60
    await server.tell()
    assert await fleet.flood(server, who, 10) >= 500


@pytest.mark.anyio
async def test_a_warm_request_takes_no_statement(database: Database) -> None:
    """Of a thousand requests in a moment the first asks, and all are told of in one transaction."""
    who, fleet = caller(requests_per_minute=5000), Fleet(database, 1)
    (server,) = fleet.servers
    before = database.commits
    for admission in await asyncio.gather(*(server.admit(who, BASE, Demand(1, 1)) for _ in range(1000))):
        admission.settle(1)
    await server.tell()
    assert database.commits == before + 2


@pytest.mark.anyio
async def test_a_change_of_a_limit_keeps_what_was_used(database: Database) -> None:
    """More room at once; less room never forgives."""
    fleet = Fleet(database, 1)
    (server,) = fleet.servers
    assert await fleet.flood(server, caller(tokens_per_minute=600), 10) == 600
    assert await fleet.flood(server, caller(tokens_per_minute=700), 10) == 100
    assert await fleet.flood(server, caller(tokens_per_minute=600), 10) == 0


@pytest.mark.anyio
async def test_use_of_long_ago_is_forgotten(database: Database) -> None:
    """Rows do not stay for ever; what they say after a day is that all has come back."""
    who, fleet = caller(tokens_per_minute=600), Fleet(database, 2)
    first, second = fleet.servers
    await fleet.flood(first, who, 600)
    await first.tell()
    for seconds, rows in ((0, 1), (KEPT_SECONDS + 1, 0)):
        fleet.clock.now += seconds
        await first._shared.drop_idle()
        async with database.read() as session:
            assert await session.scalar(select(func.count()).select_from(RateUse)) == rows
    assert await fleet.flood(second, who, 600) == 600


def test_refusals_are_counted_for_five_minutes_and_of_so_many_tenants() -> None:
    """Older ones come off; beyond the bound whoever was refused longest ago is forgotten."""
    clock = Clock()
    refusals = Refusals(clock)
    refusals.note("a", BUSY)
    clock.now += 200
    refusals.note("a", "tokens per minute")
    assert refusals.of("a") == {BUSY: 1, "tokens per minute": 1}
    clock.now += 150
    assert refusals.of("a") == {"tokens per minute": 1}
    for number in range(MAX_TENANTS):
        refusals.note(str(number), BUSY)
    assert refusals.of("a") == {}
    assert refusals.of("0") == {BUSY: 1}

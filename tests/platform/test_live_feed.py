"""The live feed over an engine that says what it was told to: who is told what, how many may watch, and that nobody is
asked for nobody."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from api_running import IDLE

from loraplex.adapters.whereabouts import LoadTimes, Movement, Whereabouts
from loraplex.engine.client import EngineUnavailable
from loraplex.engine.events import AdapterUse
from loraplex.engine.snapshot import Lane, Queue, Snapshot, StepFigures
from loraplex.platform.errors import ApiError
from loraplex.platform.live import feed as live_feed
from loraplex.platform.live.feed import MAX_VIEWERS, LiveFeed
from loraplex.platform.live.frame import Frame

pytestmark = pytest.mark.anyio

SHARED, OTHERS, HOST = "a" * 64, "b" * 64, "c" * 64
STEP = StepFigures(1, 1e9, 0.001, 0.02, 0.001, 3, 16, 2, 2, 9, 1, 0, 0)


def lane(number: int, owner: str, digest: str, pages: int) -> Lane:
    return Lane(f"request-{owner}-{number}", owner, [AdapterUse(digest)], 16, 0, 18, 2, 1, pages, 1.5)


SNAPSHOT = Snapshot(
    status=IDLE,
    lanes=[lane(0, "one", SHARED, 2), lane(1, "two", SHARED, 3), lane(2, "two", OTHERS, 4)],
    queues=[Queue("one", [SHARED], 1, 0.5), Queue("two", [OTHERS], 7, 2.5)],
    cells=[2, 2, 4, 3, 6, 3, 7, 1, 1, 5, 0, 50],
    pages_per_cell=1,
    adapters=[Whereabouts(SHARED, 100, 100, 2), Whereabouts(OTHERS, 100, 0, 1), Whereabouts(HOST, 0, 100)],
    on_device=2,
    in_host=2,
    steps=[STEP],
    movements=[Movement(1, 1e9, "load", OTHERS, LoadTimes(0.0, 0.001, 0.004)), Movement(2, 1e9, "eviction", HOST)],
)


class Engine:
    """Answers every look with the same, or is down."""

    def __init__(self, ready: Any) -> None:
        self.ready = ready
        self.is_down = False
        self.asked: list[tuple[int, int]] = []

    async def look(self, after_step: int, after_movement: int) -> Snapshot:
        self.asked.append((after_step, after_movement))
        if self.is_down:
            raise EngineUnavailable("down")
        return SNAPSHOT


class Names:
    """Everybody's names of everything."""

    async def learn(self, tenant_ids: Any, digests: Any) -> None:
        pass

    def tenant(self, tenant_id: str) -> str:
        return f"tenant-{tenant_id}"

    def names(self, digest: str) -> list[str]:
        return [f"tenant-{owner}/{digest[0]}@1" for owner in ("one", "two")]

    def rank(self, digest: str) -> int:
        return 8

    def model(self, tenant_id: str, uses: Any) -> str:
        return "+".join(self.own_name(tenant_id, use.digest) for use in uses)

    def own_name(self, tenant_id: str, digest: str) -> str:
        return f"tenant-{tenant_id}/{digest[0]}@1"


@pytest.fixture
def engine_that_answers() -> Engine:
    return Engine(SimpleNamespace(num_pages=64, page_tokens=16, adapter_device_bytes=1000))


@pytest.fixture
def feed(engine_that_answers: Engine, monkeypatch: pytest.MonkeyPatch) -> LiveFeed:
    monkeypatch.setattr(live_feed, "PERIOD_SECONDS", 0.0)
    monkeypatch.setattr(live_feed, "DOWN_PERIOD_SECONDS", 0.0)
    engine: Any = engine_that_answers
    names: Any = Names()
    return LiveFeed(engine, names, "tiny", max_sequences=16, max_step_tokens=64, host_bytes=1000)


async def test_an_operator_is_told_everything(feed: LiveFeed) -> None:
    """Lanes, queues, pages, adapters by tier, steps and events, under the names that people use."""
    with feed.watching() as samples:
        frame = msgspec.json.decode((await anext(samples)).frame(None), type=Frame)
    assert [found.model for found in frame.lanes] == ["tenant-one/a@1", "tenant-two/a@1", "tenant-two/b@1"]
    assert (frame.cells, frame.pages_per_cell) == (SNAPSHOT.cells, 1)
    assert [adapter.tier for adapter in frame.adapters] == ["device", "device", "host"]
    assert [queue.waiting for queue in frame.queues] == [1, 7]
    assert [step.execute_ms for step in frame.steps] == [20.0]
    assert {event.kind for event in frame.events} == {"load", "eviction", "preemption"}
    assert frame.totals is not None
    assert frame.others is None


async def test_a_tenant_is_told_nothing_of_others_but_a_quarter(feed: LiveFeed) -> None:
    """No name, digest, id, count, time or place of another's, also where both have the same bytes."""
    with feed.watching() as samples:
        encoded = (await anext(samples)).frame("one")
    frame = json.loads(encoded)
    text = encoded.decode()
    for foreign in ("two", OTHERS[:8], HOST[:8], "request-two"):
        assert foreign not in text
    assert [found["id"] for found in frame["lanes"]] == ["request-one-0"]
    assert [queue["waiting"] for queue in frame["queues"]] == [1]
    assert frame["others"] == {"sequences": 1, "pages": 1}
    assert (frame["totals"], frame["steps"], frame["events"]) == (None, [], [])
    assert frame["cells"] == [2, 2, 4, 16, 0, 46], "its own pages, a quarter for others, the rest; in no place"
    [adapter] = frame["adapters"]
    assert (adapter["names"], adapter["leases"], adapter["loads"], adapter["load_ms"]) == (
        ["tenant-one/a@1"], 1, 0, None
    )  # fmt: skip
    assert (frame["bounds"]["device_bytes"], frame["bounds"]["host_bytes"]) == (0, 0)


async def test_nobody_watches_and_nobody_asks(feed: LiveFeed, engine_that_answers: Engine) -> None:
    """One sampler for all viewers, which ends with the last of them; one viewer too many is refused."""
    assert engine_that_answers.asked == []
    with feed.watching() as first, feed.watching() as second:
        one, two = await asyncio.gather(anext(first), anext(second))
        assert one is two
        seats = [feed.watching() for _ in range(MAX_VIEWERS - 2)]
        for seat in seats:
            seat.__enter__()
        with pytest.raises(ApiError, match="watch this engine already") as refused, feed.watching():
            pass
        assert refused.value.status == 503
        for seat in seats:
            seat.__exit__(None, None, None)
    asked = list(engine_that_answers.asked)
    for _ in range(20):
        await asyncio.sleep(0)
    assert (feed.viewers, engine_that_answers.asked) == (0, asked)


async def test_who_comes_back_is_told_what_is_new(feed: LiveFeed, engine_that_answers: Engine) -> None:
    """A stream ends every minute: what was told before it did is not told again."""
    for known in (0, IDLE.steps):
        engine_that_answers.asked.clear()
        with feed.watching() as samples:
            await anext(samples)
        assert engine_that_answers.asked[0] == (known, 0)


async def test_a_slow_viewer_misses_frames(feed: LiveFeed) -> None:
    """And is then as near to now as a quick one."""
    with feed.watching() as slow, feed.watching() as quick:
        first = await anext(slow)
        for _ in range(5):
            newest = await anext(quick)
        late = await anext(slow)
    assert late.empty.n > first.empty.n + 1
    assert late.empty.n >= newest.empty.n


async def test_an_engine_that_dies_is_told_and_its_return_too(feed: LiveFeed, engine_that_answers: Engine) -> None:
    """Tenants are told of it as well: of all events this one is everybody's."""
    with feed.watching() as samples:
        await anext(samples)
        engine_that_answers.is_down = True
        async for sample in samples:
            if sample.snapshot is None:
                break
        for who in (None, "one"):
            frame = json.loads(sample.frame(who))
            assert (frame["engine"], [event["kind"] for event in frame["events"]]) == ("down", ["down"])
        engine_that_answers.is_down = False
        async for sample in samples:
            if sample.snapshot is not None:
                break
        for who in (None, "one"):
            assert "restart" in [event["kind"] for event in json.loads(sample.frame(who))["events"]]

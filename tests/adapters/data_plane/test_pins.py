"""What is pinned stays on the device, for as long as it is pinned and no longer, and others still get their room."""

from __future__ import annotations

import pytest
import torch
from clock import Clock
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from loraplex.adapters.device_pool import DevicePool
from loraplex.adapters.errors import AdapterUnavailable
from loraplex.adapters.host_cache import HostCache
from loraplex.adapters.pins import PinLimits
from loraplex.adapters.residency import AdapterResidency
from loraplex.adapters.weights import load_packed

RANKS = (2, 4, 6, 8)
UNIT = 128  # bytes of rank 2 on one q_proj of the toy base, in fp32
SIZES = tuple(rank // 2 * UNIT for rank in RANKS)
CAPACITY = 7 * UNIT
LIMITS = PinLimits(share=5 / 7, share_per_owner=3 / 7)
OWNERS = ("acme", "globex", "initech")


class Bench:
    """A residency of four adapters, the sequences that wait for them, and the answers to pins."""

    def __init__(self, blobs, shape, digests, jobs, *, host_bytes=CAPACITY, limits=LIMITS) -> None:
        self.digests, self.clock, self.jobs = digests, Clock(), jobs
        self.pool = DevicePool(CAPACITY, torch.device("cpu"), torch.float32)
        options = {"pin_limits": limits, "clock": self.clock}
        self.residency = AdapterResidency(blobs, shape, self.pool, HostCache(host_bytes), **options)
        self.waiting: list[str] = []
        self.running: list[str] = []
        self.failed: list[str] = []
        self.answers = {}
        self.tickets = 0

    def request(self, digest: str) -> None:
        self.residency.want(digest)
        self.waiting.append(digest)

    def step(self) -> None:
        for digest in list(self.waiting):
            try:
                lease = self.residency.try_lease(digest)
            except AdapterUnavailable:
                self.failed.append(digest)
            else:
                if lease is None:
                    continue
                self.running.append(digest)
            self.waiting.remove(digest)
            self.residency.unwant(digest)
        self.residency.load_ahead(is_busy=bool(self.running))
        self.answers |= dict(self.residency.take_pin_answers())

    def run_jobs(self) -> None:
        """As many steps as it takes until nothing is on its way."""
        self.step()
        while self.jobs.waiting:
            self.jobs.run_one()
            self.step()

    def pin(self, digest: str, owner: str = "acme", seconds: float = 60) -> int:
        self.tickets += 1
        self.residency.pin(self.tickets, digest, owner, seconds)
        return self.tickets

    def end_one(self, digest: str) -> None:
        self.running.remove(digest)
        self.residency.release(digest)

    def on_device(self) -> set[str]:
        return {found.digest for found in self.residency.locate(self.digests) if found.device_bytes}

    def pinned(self) -> set[str]:
        return {found.digest for found in self.residency.locate(self.digests) if found.pins}


@pytest.fixture
def make_bench(blobs, base_shape, make_stored, jobs):
    digests = [make_stored(seed=rank, rank=rank) for rank in RANKS]
    made = []

    def make(**options) -> Bench:
        made.append(Bench(blobs, base_shape, digests, jobs, **options))
        return made[-1]

    yield make
    for bench in made:
        bench.residency.close()


def test_what_is_pinned_outlasts_everything_but_its_time(make_bench):
    """It is loaded unasked, stays while others come and go, and can be evicted once its time is over."""
    bench = make_bench()
    one, two, three, four = bench.digests
    ticket = bench.pin(three, seconds=60)
    bench.run_jobs()
    assert bench.answers == {ticket: None}
    for digest in (one, two, four, two, one, four):
        bench.request(digest)
        bench.run_jobs()
        bench.end_one(digest)
        assert three in bench.on_device()
    assert bench.residency.evict(three).code == "adapter_pinned"
    (found,) = bench.residency.locate([three])
    assert (found.pins, found.pinned_seconds, found.loads) == (1, 60.0, 1)

    bench.clock.now = 61
    bench.step()

    assert bench.pinned() == set()
    assert bench.residency.evict(three) is None


def test_a_pin_that_takes_too_much_is_refused(make_bench):
    """By what its owner pins already, and by what all do; each pays in full, so that the answer shows no twin."""
    bench = make_bench()
    one, two, three, _ = bench.digests
    for digest, owner in ((two, "acme"), (one, "globex"), (one, "acme")):
        bench.pin(digest, owner)
    bench.run_jobs()
    assert bench.residency.pinned_bytes == 3 * UNIT

    own, together = bench.pin(three, "acme"), bench.pin(two, "hooli")
    fits, twin = bench.pin(one, "initech"), bench.pin(one, "umbrella")
    bench.run_jobs()

    assert "your pins would take" in bench.answers[own].message
    assert "all tenants' pins" in bench.answers[together].message
    assert bench.answers[fits] is None
    assert bench.answers[twin] == bench.answers[together]
    assert bench.pinned() == {one, two}


def test_a_pin_is_told_why_its_adapter_cannot_be_loaded(make_bench):
    """And the same owner may ask again, for longer or for less long."""
    bench = make_bench(host_bytes=0)
    ticket = bench.pin("0" * 64)
    bench.run_jobs()
    assert bench.answers[ticket].code == "adapter_load_failed"
    assert "upload it again" in bench.answers[ticket].message

    one, two, _, _ = bench.digests
    bench.pin(one, seconds=9)
    taken_back = bench.pin(two, "globex", seconds=9)
    bench.residency.unpin(two, "globex")
    bench.run_jobs()
    again = bench.pin(one, seconds=30)
    bench.step()
    assert (bench.answers[taken_back].code, bench.answers[again]) == ("pin_ended", None)
    bench.clock.now = 20
    bench.step()
    assert bench.pinned() == {one}
    bench.residency.unpin(one, "acme")
    assert bench.pinned() == set()


def test_pins_leave_room_in_one_piece_or_say_that_there_is_none(make_bench):
    """An adapter that fits beside them gets its room wherever they lie, one that does not fails and does not wait."""
    bench = make_bench()
    one, two, three, four = bench.digests
    for digest in (one, three, two):
        bench.request(digest)
    bench.run_jobs()
    bench.pin(three)
    for digest in (one, three, two):
        bench.end_one(digest)
    bench.request(four)
    bench.run_jobs()
    assert (bench.running, bench.on_device()) == ([four], {three, four})

    bench.end_one(four)
    bench.residency.evict(four)
    bench.pin(two, "globex")
    bench.run_jobs()
    bench.request(four)
    bench.request(one)
    bench.run_jobs()
    assert (bench.failed, bench.running) == ([four], [one])


def test_a_pin_whose_time_is_over_is_in_nobodys_way(make_bench):
    """From the very step on in which it ends."""
    bench = make_bench()
    one, _, three, four = bench.digests
    bench.pin(one, "globex", seconds=1)
    bench.pin(three, seconds=1)
    bench.pin(four)  # refused, but in the host's memory from now on
    bench.run_jobs()
    assert bench.pinned() == {one, three}
    bench.clock.now = 1
    bench.request(four)
    bench.run_jobs()
    assert (bench.failed, bench.running) == ([], [four])


def test_a_pin_is_answered_while_there_is_no_room(make_bench):
    """Whether it is granted depends on what its adapter takes, and not on when that comes to the device."""
    bench = make_bench()
    one, two, three, four = bench.digests
    for digest in (four, three, two):
        bench.request(digest)
    bench.run_jobs()
    assert bench.residency.lacks_room(two)

    tickets = [bench.pin(one), bench.pin("0" * 64)]
    bench.run_jobs()

    answers = [bench.answers[ticket] for ticket in tickets]
    assert (answers[0], answers[1].code) == (None, "adapter_load_failed")
    assert one not in bench.on_device()


@pytest.mark.parametrize("asked_by", ["a pin", "warm"])
def test_what_is_loaded_ahead_gets_its_room_in_one_piece_too(make_bench, asked_by):
    """Where nobody waits, it need not wait for somebody's turn: a pin in its way is moved."""
    bench = make_bench(limits=PinLimits(1, 1))
    one, two, three, four = bench.digests
    for digest in (three, one):
        bench.request(digest)
        bench.run_jobs()
        bench.end_one(digest)
    bench.pin(one)
    if asked_by == "warm":
        bench.residency.warm(four)
    else:
        bench.pin(four)
    bench.residency.warm(two)

    bench.run_jobs()

    assert bench.on_device() == {one, two, four}


def test_a_pinned_adapter_finds_room_beside_the_others_of_its_sum(make_bench):
    """What its pin has set aside for it is not counted against the others."""
    bench = make_bench()
    one, two, three, four = bench.digests
    for digest in (one, four, two):
        bench.request(digest)
        bench.run_jobs()
    ticket = bench.pin(three)
    bench.run_jobs()
    assert bench.answers == {ticket: None}
    for digest in (one, four, two):
        bench.end_one(digest)
    leases = (bench.residency.try_lease(four),)
    bench.residency.want(three)
    assert bench.residency.try_lease(three) is None
    assert bench.residency.lacks_room(three)

    (moved,) = bench.residency.make_room_beside(leases, three)
    bench.run_jobs()

    assert (moved.digest, bench.on_device()) == (four, {three, four})
    assert bench.residency.try_lease(three) is not None
    for digest in (three, four):
        bench.residency.release(digest)
    bench.residency.unwant(three)


class ResidencyMachine(RuleBasedStateMachine):
    """Any order of requests, pins, loads, ends, evictions and time; no job of a load ends before it is told to."""

    def __init__(self, bench: Bench, expected: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.bench = bench
        self.expected = expected
        self.were_pinned: set[str] = set()

    @rule(index=st.integers(0, 3))
    def request(self, index: int) -> None:
        self.bench.request(self.bench.digests[index])

    @rule(jobs=st.integers(0, 2))
    def step(self, jobs: int) -> None:
        for _ in range(min(jobs, len(self.bench.jobs.waiting))):
            self.bench.jobs.run_one()
        self.bench.step()

    @rule()
    def run_jobs(self) -> None:
        self.bench.run_jobs()

    @precondition(lambda self: self.bench.running)
    @rule(data=st.data())
    def end_one(self, data: st.DataObject) -> None:
        self.bench.end_one(data.draw(st.sampled_from(self.bench.running)))

    @rule(index=st.integers(0, 3), owner=st.sampled_from(OWNERS), seconds=st.integers(1, 30))
    def pin(self, index: int, owner: str, seconds: int) -> None:
        self.bench.pin(self.bench.digests[index], owner, seconds)

    @rule(index=st.integers(0, 3), owner=st.sampled_from(OWNERS))
    def unpin(self, index: int, owner: str) -> None:
        self.bench.residency.unpin(self.bench.digests[index], owner)

    @rule(index=st.integers(0, 3))
    def warm(self, index: int) -> None:
        self.bench.residency.warm(self.bench.digests[index])

    @rule(seconds=st.integers(1, 20))
    def pass_time(self, seconds: int) -> None:
        self.bench.clock.now += seconds

    @rule(index=st.integers(0, 3))
    def evict(self, index: int) -> None:
        digest = self.bench.digests[index]
        if self.bench.residency.evict(digest) is None:
            assert digest not in self.bench.pinned() | {*self.bench.running, *self.bench.waiting}
            (found,) = self.bench.residency.locate([digest])
            assert (found.device_bytes, found.host_bytes) == (0, 0)

    @invariant()
    def holds(self) -> None:
        bench = self.bench
        bench.residency.check_integrity()
        on_device, pinned = bench.on_device(), bench.pinned()
        assert self.were_pinned & pinned <= on_device, "lost a place that was pinned"
        self.were_pinned = on_device & pinned
        leases = {found.digest: found.leases for found in bench.residency.locate(bench.digests) if found.leases}
        assert leases == {digest: bench.running.count(digest) for digest in set(bench.running)}
        for digest in on_device:
            adapter = bench.pool.lease(digest)
            start = int(adapter.table[0, 0])
            assert torch.equal(bench.pool.pool[start : start + len(self.expected[digest])], self.expected[digest])
            bench.pool.release(digest)

    def teardown(self) -> None:
        """Whoever waits is served once others have ended, or hears that there is no room beside the pins; what was
        granted a pin is there."""
        bench = self.bench
        for digest in list(bench.running):
            bench.end_one(digest)
        failed = len(bench.failed)
        for _ in range(40):
            bench.step()
            self.holds()
            if bench.jobs.waiting:
                bench.jobs.run_one()
            for digest in list(bench.running):
                bench.end_one(digest)
        assert bench.waiting == []
        assert bench.pinned() <= bench.on_device()
        size_of = dict(zip(bench.digests, SIZES, strict=True))
        room = CAPACITY - bench.residency.pinned_bytes
        assert all(size_of[digest] > room for digest in bench.failed[failed:])
        assert len(bench.answers) == bench.tickets
        bench.residency.close()


def test_any_order(blobs, base_shape, make_stored, jobs):
    """Memory is never given twice, pinned adapters stay, and nobody waits for ever."""
    digests = [make_stored(seed=rank, rank=rank) for rank in RANKS]
    expected = {digest: load_packed(blobs.open(digest), base_shape, torch.float32).weights for digest in digests}

    def machine() -> ResidencyMachine:
        jobs.waiting.clear()
        return ResidencyMachine(Bench(blobs, base_shape, digests, jobs), expected)

    run_state_machine_as_test(machine, settings=settings(max_examples=40, stateful_step_count=40, deadline=None))

"""Device memory is handed out by size: no two adapters overlap, and what is leased stays where it is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from loraplex.adapters.device_pool import DevicePool
from loraplex.adapters.errors import AdapterUnavailable
from loraplex.adapters.weights import PackedAdapter

UNIT = 16  # elements of fp32 in 64 bytes
CPU = torch.device("cpu")


def packed(elements: int, value: float = 1.0) -> PackedAdapter:
    table = torch.tensor([[0, 16, 1, 0, 0, -1, 8], [16, 16, 0, 0, 0, -1, -1]], dtype=torch.int64)
    return PackedAdapter(torch.full((elements,), value), table)


def make_pool(units: int) -> DevicePool:
    return DevicePool(units * 64, CPU, torch.float32)


def load(pool: DevicePool, digest: str, elements: int, value: float = 1.0) -> int | None:
    offset = pool.allocate(digest, elements)
    if offset is not None:
        weights = packed(elements, value)
        pool.begin_copy(digest, weights)()
        pool.publish(digest, weights)
    return offset


def names(pool: DevicePool) -> list[str]:
    return [resident.digest for resident in pool.residents()]


def test_a_leased_adapter_is_read_at_its_absolute_offsets():
    """The table points into the pool, where the weights are."""
    pool = make_pool(8)
    load(pool, "a", 20, 1.0)
    load(pool, "b", 20, 2.0)

    adapter = pool.lease("b")

    assert adapter.table.tolist() == [[32, 48, 1, 0, 0, -1, 40], [48, 48, 0, 0, 0, -1, -1]]
    assert pool.pool[32:52].tolist() == [2.0] * 20
    assert (adapter.digest, adapter.max_rank, adapter.size_bytes) == ("b", 1, 80)
    assert adapter.has_vectors
    assert not adapter.touches_head


def test_the_least_recently_used_without_lease_goes():
    """A lease counts as use, and its end makes the adapter evictable."""
    pool = make_pool(3)
    for digest in "abc":
        load(pool, digest, UNIT)
    pool.lease("a")
    assert load(pool, "d", UNIT) is not None
    assert names(pool) == ["c", "a", "d"]
    pool.release("a")
    assert load(pool, "e", 3 * UNIT) == 0
    assert (pool.loads, pool.evictions) == (5, 4)


def test_nothing_is_evicted_where_that_would_not_help():
    """Between two leased adapters the hole stays too small, so the one in it is kept."""
    pool = make_pool(3)
    for digest in "abc":
        load(pool, digest, UNIT)
    pool.lease("a")
    pool.lease("c")
    assert pool.allocate("d", 2 * UNIT) is None
    assert set(names(pool)) == {"a", "b", "c"}


def test_what_is_worth_least_goes_first_and_what_is_to_be_kept_stays():
    """Among equals the least recently used goes; with nothing else to evict there is no room."""
    pool = make_pool(4)
    for digest in "abcd":
        load(pool, digest, UNIT)
    worth = {"a": 3, "b": 1, "c": 1, "d": 0}.__getitem__
    assert pool.allocate("e", UNIT, keep={"d"}, worth=worth) == UNIT
    assert names(pool) == ["a", "c", "d", "e"]
    assert pool.allocate("f", 2 * UNIT, keep={"d", "a"}) is None
    assert names(pool) == ["a", "c", "d", "e"]
    assert pool.allocate("f", UNIT, keep={"d"}, worth=worth) == 2 * UNIT
    assert names(pool) == ["a", "d", "e", "f"]


def test_an_adapter_larger_than_the_pool_names_the_setting():
    """It could never fit, so it is refused rather than left to wait."""
    with pytest.raises(AdapterUnavailable, match="--adapter-device-bytes"):
        make_pool(2).allocate("a", 2 * UNIT + 1)


def test_a_load_that_failed_gives_its_range_back():
    """A range under way is not evicted, and a discarded one is free."""
    pool = make_pool(2)
    pool.allocate("a", 2 * UNIT)
    assert pool.allocate("b", 1) is None
    assert not pool.evict("a")
    pool.discard("a")
    assert load(pool, "b", 2 * UNIT) == 0


def test_adapters_that_lie_in_the_way_are_moved_to_the_end():
    """With their bytes, also where the old place and the new one overlap; what lies in their way is evicted."""
    pool = make_pool(8)
    for digest, units in (("a", 1), ("b", 3), ("c", 1), ("d", 2)):
        load(pool, digest, units * UNIT, float(units))
    pool.lease("d")
    for digest in "ac":
        pool.evict(digest)
    assert pool.allocate("e", 3 * UNIT, keep={"b"}) is None
    assert not pool.gather(5 * UNIT, {"b"}), "d is leased: that much room there cannot be"
    assert names(pool) == ["b", "d"]

    assert pool.gather(2 * UNIT, {"b"})

    moved = pool.lease("b")
    assert moved.table[0].tolist() == [32, 48, 1, 0, 0, -1, 40]
    assert pool.pool[32:80].tolist() == [3.0] * 48
    assert not pool.gather(2 * UNIT, {"b"}), "it is leased now"
    pool.release("b")
    pool.release("d")
    assert pool.gather(3 * UNIT, {"b", "d"})
    assert load(pool, "e", 3 * UNIT) == 0
    assert pool.pool[48:128].tolist() == [3.0] * 48 + [2.0] * 32


def test_a_pool_made_in_inference_mode_is_written_by_other_threads():
    """Inference mode belongs to a thread; loads run on others."""
    with torch.inference_mode():
        pool = make_pool(2)
    assert load(pool, "a", 20, 3.0) == 0
    assert pool.pool[:20].tolist() == [3.0] * 20


class PoolMachine(RuleBasedStateMachine):
    """Any order of loads, leases, releases, moves and evictions."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = make_pool(12)
        self.leased: dict[str, list[torch.Tensor]] = {}
        self.loading: dict[str, PackedAdapter] = {}
        self.values: dict[str, float] = {}
        self.counter = 0

    @rule(elements=st.integers(1, 7 * UNIT), keep_odd=st.booleans(), newest_first=st.booleans())
    def allocate(self, elements: int, keep_odd: bool, newest_first: bool) -> None:
        self.counter += 1
        digest = str(self.counter)
        before = names(self.pool)
        keep = {name for name in before if keep_odd and int(name) % 2}
        worth = (lambda name: -float(name)) if newest_first else float
        start = self.pool.allocate(digest, elements, keep=keep, worth=worth)
        assert keep <= set(names(self.pool)), "evicted what was to be kept"
        if start is None:
            assert names(self.pool) == before, "evicted in vain"
        else:
            self.loading[digest] = packed(elements, float(self.counter))

    @precondition(lambda self: self.loading)
    @rule(data=st.data(), succeeds=st.booleans())
    def finish(self, data: st.DataObject, succeeds: bool) -> None:
        digest = data.draw(st.sampled_from(sorted(self.loading)))
        weights = self.loading.pop(digest)
        if succeeds:
            self.pool.begin_copy(digest, weights)()
            self.pool.publish(digest, weights)
            self.values[digest] = float(digest)
        else:
            self.pool.discard(digest)

    @rule(data=st.data())
    def lease(self, data: st.DataObject) -> None:
        ready = [digest for digest in names(self.pool) if self.pool.is_ready(digest)]
        if ready:
            digest = data.draw(st.sampled_from(ready))
            adapter = self.pool.lease(digest)
            start = int(adapter.table[0, 0])
            view = self.pool.pool[start : start + adapter.size_bytes // 4]
            self.leased.setdefault(digest, []).append(view)

    @precondition(lambda self: self.leased)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from(sorted(self.leased)))
        self.leased[digest].pop()
        if not self.leased[digest]:
            del self.leased[digest]
        self.pool.release(digest)

    @rule(data=st.data())
    def evict(self, data: st.DataObject) -> None:
        if residents := names(self.pool):
            digest = data.draw(st.sampled_from(residents))
            assert self.pool.evict(digest) == (digest not in self.leased and digest not in self.loading)

    @rule(elements=st.integers(0, 7 * UNIT), move_odd=st.booleans())
    def gather(self, elements: int, move_odd: bool) -> None:
        before = names(self.pool)
        movable = {name for name in before if int(name) % 2 == move_odd}
        if not self.pool.gather(elements, movable):
            assert names(self.pool) == before
            return
        assert movable <= set(names(self.pool)), "evicted what was to be moved"
        assert self.pool.allocate("hole", elements, keep=movable) is not None
        self.pool.discard("hole")

    @invariant()
    def holds(self) -> None:
        self.pool.check_integrity()
        for digest in filter(self.pool.is_ready, names(self.pool)):
            adapter = self.pool.lease(digest)
            start = int(adapter.table[0, 0])
            assert (self.pool.pool[start : start + adapter.size_bytes // 4] == self.values[digest]).all()
            self.pool.release(digest)
        residents = {resident.digest: resident for resident in self.pool.residents()}
        assert {d: r.leases for d, r in residents.items() if r.leases} == {d: len(v) for d, v in self.leased.items()}
        assert {d for d, r in residents.items() if r.is_loading} == set(self.loading)
        assert self.pool.used_bytes == sum(r.size_bytes for r in residents.values()) <= self.pool.capacity_bytes
        for digest, views in self.leased.items():
            assert all((view == self.values[digest]).all() for view in views), "a leased adapter's bytes changed"


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = PoolMachine.TestCase

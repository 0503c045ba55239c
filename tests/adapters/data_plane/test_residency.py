"""Adapters reach the device beside the step loop, and the loop never waits for them."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from clock import Clock

from loraplex.adapters.device_pool import DevicePool
from loraplex.adapters.errors import AdapterUnavailable
from loraplex.adapters.host_cache import HostCache
from loraplex.adapters.loads import MAX_LOADS
from loraplex.adapters.residency import AdapterResidency
from loraplex.adapters.weights import load_packed

DEADLINE_SECONDS = 20
PACKED_BYTES = 128  # of an adapter of `make_stored`, in fp32: A [2, 8] and B [2, 8]


class GatedBlobs:
    """The real store behind a gate, so that a test decides when a read may go on; it counts reads, too."""

    def __init__(self, blobs) -> None:
        self._blobs = blobs
        self.gate = threading.Event()
        self.gate.set()
        self.opened: list[str] = []

    def open(self, digest: str):
        self.opened.append(digest)
        assert self.gate.wait(DEADLINE_SECONDS)
        return self._blobs.open(digest)


@pytest.fixture
def gated(blobs):
    return GatedBlobs(blobs)


@pytest.fixture
def make_residency(gated, base_shape):
    made = []

    def make(*, device_bytes: int = 4096, host_bytes: int = 4096, **options) -> AdapterResidency:
        pool = DevicePool(device_bytes, torch.device("cpu"), torch.float32)
        residency = AdapterResidency(gated, base_shape, pool, HostCache(host_bytes), **options)
        residency.test_pool = pool
        made.append(residency)
        return residency

    yield make
    gated.gate.set()
    for residency in made:
        residency.close()


def lease(residency: AdapterResidency, digest: str):
    """Ask as the engine does, sleeping in `wait` between."""
    end = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < end:
        adapter = residency.try_lease(digest)
        if adapter is not None:
            residency.test_pool.check_integrity()
            return adapter
        residency.wait(0.1)
    raise AssertionError("the adapter did not arrive")


def load_ahead_until_idle(residency: AdapterResidency) -> None:
    """As many steps as it takes until no job ends any more."""
    residency.load_ahead(is_busy=False)
    while residency.wait(0.2):
        residency.load_ahead(is_busy=False)
    residency.test_pool.check_integrity()


def failure(residency: AdapterResidency, digest: str) -> str:
    with pytest.raises(AdapterUnavailable) as failed:
        lease(residency, digest)
    return str(failed.value)


def assert_holds(residency, blobs, base_shape, adapter) -> None:
    """The bytes at the leased offsets are those of the blob."""
    packed = load_packed(blobs.open(adapter.digest), base_shape, torch.float32)
    offset = int((adapter.table - packed.table)[0, 0])
    assert torch.equal(residency.test_pool.pool[offset : offset + packed.weights.numel()], packed.weights)
    assert adapter.size_bytes == packed.size_bytes == PACKED_BYTES


def test_an_adapter_arrives_with_its_own_bytes(make_residency, make_stored, blobs, base_shape):
    """From files to a lease whose offsets hold exactly the packed weights."""
    residency = make_residency()
    digests = [make_stored(seed=seed) for seed in range(4)]
    for digest in digests:
        residency.warm(digest)
    for digest in digests:
        assert_holds(residency, blobs, base_shape, lease(residency, digest))
    assert residency.loads == 4
    assert residency.device_bytes_used == residency.host_bytes_used == 4 * PACKED_BYTES
    assert residency.device_residents() == [(digest, PACKED_BYTES, 1) for digest in digests]
    assert residency.host_residents() == [(digest, PACKED_BYTES, 0) for digest in digests]


def test_asking_does_not_wait_for_the_disk(make_residency, make_stored, gated):
    """While a read hangs, every call returns, and another adapter that is there is leased."""
    residency = make_residency()
    there, hanging = make_stored(seed=1), make_stored(seed=2)
    lease(residency, there)
    gated.gate.clear()

    assert residency.try_lease(hanging) is None
    assert residency.try_lease(hanging) is None
    assert residency.try_lease(there) is not None

    gated.gate.set()
    assert lease(residency, hanging).digest == hanging


def test_a_digest_is_loaded_once_at_a_time(make_residency, make_stored, gated):
    """However often it is asked for while it loads."""
    residency = make_residency(workers=2)
    digest = make_stored()
    gated.gate.clear()
    for _ in range(10):
        residency.warm(digest)
        assert residency.try_lease(digest) is None
    gated.gate.set()
    lease(residency, digest)
    lease(residency, digest)
    assert gated.opened == [digest]
    assert residency.loads == 1


def test_several_loads_are_under_way_at_once(make_residency, make_stored, gated, jobs):
    """MAX_LOADS and no more: the worker goes from one to the next without the engine's step between them."""
    residency = make_residency()
    digests = [make_stored(seed=seed) for seed in range(MAX_LOADS + 2)]
    for digest in digests:
        residency.want(digest)
    while jobs.waiting:
        jobs.run_one()
    assert gated.opened == digests[:MAX_LOADS]

    for digest in digests:
        while (adapter := residency.try_lease(digest)) is None:
            jobs.run_one()
        assert adapter.digest == digest
    assert gated.opened == digests


def test_a_leased_adapter_waits_out_others(make_residency, make_stored, blobs, base_shape):
    """With room for one: the second waits until the first is released, and the first is not touched till then."""
    residency = make_residency(device_bytes=PACKED_BYTES)
    first, second = make_stored(seed=1), make_stored(seed=2)
    adapter = lease(residency, first)
    residency.warm(second)
    residency.wait(DEADLINE_SECONDS)
    for _ in range(5):
        assert residency.try_lease(second) is None
    assert_holds(residency, blobs, base_shape, adapter)

    residency.release(first)

    assert_holds(residency, blobs, base_shape, lease(residency, second))
    assert residency.evictions == 1


def test_the_host_cache_saves_the_second_read(make_residency, make_stored, gated):
    """An adapter that was evicted from the device comes back without the disk."""
    residency = make_residency(device_bytes=PACKED_BYTES)
    first, second = make_stored(seed=1), make_stored(seed=2)
    for digest in (first, second, first):
        lease(residency, digest)
        residency.release(digest)
    assert gated.opened == [first, second]
    assert residency.loads == 3


def test_a_host_cache_that_holds_nothing_is_only_slower(make_residency, make_stored, gated):
    """Every load then reads the file, and still ends."""
    residency = make_residency(device_bytes=PACKED_BYTES, host_bytes=0)
    first, second = make_stored(seed=1), make_stored(seed=2)
    for digest in (first, second, first):
        lease(residency, digest)
        residency.release(digest)
    assert gated.opened == [first, second, first]


def test_a_failed_load_is_told_and_not_repeated_at_once(make_residency, gated):
    """For some seconds the failure is remembered; after that the load is tried again."""
    clock = Clock()
    residency = make_residency(retry_after_seconds=5, clock=clock)
    missing = "0" * 64
    message = failure(residency, missing)
    assert "upload it again" in message
    residency.warm(missing)
    assert failure(residency, missing) == message
    assert len(gated.opened) == 1

    clock.now = 6.0

    failure(residency, missing)
    assert len(gated.opened) == 2


def test_a_version_that_comes_back_is_served_after_eviction(make_residency, make_stored, gated, blobs):
    """Evicting ends the memory of a failure."""
    residency = make_residency(clock=Clock())
    digest = make_stored()
    spec_path = blobs.open(digest).weights_path.with_name("adapter.json")
    hidden = spec_path.with_name("hidden")
    spec_path.rename(hidden)
    failure(residency, digest)
    hidden.rename(spec_path)
    assert residency.evict(digest) is None
    assert lease(residency, digest).digest == digest


def test_an_unexpected_error_is_a_failure_without_inner_details(make_residency, gated, monkeypatch):
    """What the user is told holds no path and no traceback; the log has it."""
    residency = make_residency()

    def broken(digest: str):
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(gated, "open", broken)
    assert failure(residency, "0" * 64) == "the adapter could not be loaded; try again later"


def test_an_adapter_that_can_never_fit_fails(make_residency, make_stored):
    """It does not wait for room that cannot come."""
    residency = make_residency(device_bytes=64)
    assert "--adapter-device-bytes" in failure(residency, make_stored())


def test_a_failed_copy_gives_its_room_back(make_residency, make_stored, monkeypatch):
    """The next adapter gets the range."""
    residency = make_residency(device_bytes=PACKED_BYTES)
    first, second = make_stored(seed=1), make_stored(seed=2)

    def fail() -> None:
        raise RuntimeError("device lost")

    with monkeypatch.context() as patch:
        patch.setattr(residency.test_pool, "begin_copy", lambda digest, packed: fail)
        failure(residency, first)
    assert lease(residency, second).digest == second


def test_loads_that_nobody_came_back_for_do_not_block(make_residency, make_stored):
    """Requests that vanish while their adapters load leave slots and memory to those who still ask."""
    residency = make_residency(device_bytes=2 * PACKED_BYTES)
    abandoned = [make_stored(seed=seed) for seed in range(4)]
    for digest in abandoned:
        residency.try_lease(digest)
    assert lease(residency, make_stored(seed=99)) is not None


def test_two_that_need_the_same_room_are_both_served(make_residency, make_stored):
    """Asked for in turn at every step, one gets the room and keeps it while leased, then the other has it."""
    residency = make_residency(device_bytes=PACKED_BYTES, workers=2)
    waiting = {make_stored(seed=1), make_stored(seed=2)}
    end = time.monotonic() + DEADLINE_SECONDS
    while waiting and time.monotonic() < end:
        served = [digest for digest in sorted(waiting) if residency.try_lease(digest)]
        assert len(served) <= 1
        for digest in served:
            waiting.remove(digest)
            residency.release(digest)
        residency.wait(0.01)
    assert not waiting
    assert residency.loads <= 3


def test_what_the_queue_wants_is_loaded_ahead_and_kept(make_residency, make_stored):
    """Loads ahead of their turn stop where they would cost a wanted adapter its place; all get theirs in order."""
    residency = make_residency(device_bytes=2 * PACKED_BYTES)
    digests = [make_stored(seed=seed) for seed in range(5)]
    for digest in digests:
        residency.want(digest)
    load_ahead_until_idle(residency)
    assert {entry[0] for entry in residency.device_residents()} == set(digests[:2])

    for digest in digests:
        lease(residency, digest)
        residency.unwant(digest)
        residency.release(digest)
        load_ahead_until_idle(residency)
    assert residency.loads == 5


def test_warmed_adapters_are_there_before_anyone_asks(make_residency, make_stored):
    """More of them than there is room for go round; one that is wanted keeps its place."""
    residency = make_residency(device_bytes=3 * PACKED_BYTES)
    digests = [make_stored(seed=seed) for seed in range(8)]
    for digest in digests:
        residency.warm(digest)
    residency.want(wanted := make_stored(seed=99))
    load_ahead_until_idle(residency)

    on_device = {entry[0] for entry in residency.device_residents()}
    assert wanted in on_device
    assert len(on_device) == 3
    assert residency.loads == len(digests) + 1


def test_what_is_wanted_goes_before_what_is_warmed(make_residency, make_stored, gated, monkeypatch):
    """Whatever came first."""
    monkeypatch.setattr("loraplex.adapters.loads.MAX_LOADS", 1)
    residency = make_residency()
    gated.gate.clear()
    first, second = make_stored(seed=1), make_stored(seed=2)
    residency.warm(first)
    residency.warm(second)
    residency.want(wanted := make_stored(seed=3))
    gated.gate.set()
    load_ahead_until_idle(residency)
    assert gated.opened == [first, wanted, second]


def test_warming_what_cannot_be_loaded_ends(make_residency, make_stored, gated):
    """Because it is not there, or too large: that is told to whoever asks, and it is not tried for ever."""
    residency = make_residency(device_bytes=PACKED_BYTES, host_bytes=0, clock=Clock())
    missing, large = "0" * 64, make_stored(rank=4)
    for digest in (missing, large):
        residency.warm(digest)
        load_ahead_until_idle(residency)
    assert gated.opened == [missing, large]
    assert "upload it again" in failure(residency, missing)
    assert "--adapter-device-bytes" in failure(residency, large)


def test_a_popular_adapter_outlasts_rare_ones(make_residency, make_stored):
    """However many rare ones pass by after it."""
    residency = make_residency(device_bytes=3 * PACKED_BYTES)
    popular, *rare = [make_stored(seed=seed) for seed in range(8)]
    for digest in [popular, popular, popular, *rare]:
        residency.want(digest)
        lease(residency, digest)
        residency.unwant(digest)
        residency.release(digest)
    assert popular in [entry[0] for entry in residency.device_residents()]
    assert residency.loads == 8


def test_whoever_lacks_room_goes_before_loads_ahead(make_residency, make_stored):
    """Room that comes free is not taken by the adapter of a younger sequence."""
    residency = make_residency(device_bytes=2 * PACKED_BYTES)
    held, other, large = make_stored(seed=1), make_stored(seed=2), make_stored(seed=3, rank=4)
    for digest in (held, other):
        lease(residency, digest)
    residency.want(large)
    while not residency.lacks_room(large):
        assert residency.try_lease(large) is None
        residency.wait(0.1)
    residency.release(other)
    assert residency.evict(other) is None

    residency.want(younger := make_stored(seed=4))
    load_ahead_until_idle(residency)

    assert younger not in [entry[0] for entry in residency.device_residents()]
    residency.release(held)
    assert lease(residency, large).digest == large
    assert not residency.lacks_room(large)


def test_a_sequence_that_left_lacks_no_room(make_residency, make_stored):
    """An aborted request does not hold the room that it waited for."""
    residency = make_residency(device_bytes=PACKED_BYTES)
    lease(residency, make_stored(seed=1))
    residency.want(gone := make_stored(seed=2))
    while not residency.lacks_room(gone):
        residency.try_lease(gone)
        residency.wait(0.1)
    residency.unwant(gone)
    assert not residency.lacks_room(gone)


def test_eviction_frees_both_tiers_of_what_nothing_uses(make_residency, make_stored, gated):
    """What a sequence has, waits for, or what is on its way stays in both, and the reason is told."""
    residency = make_residency()
    digest = make_stored()
    lease(residency, digest)
    assert residency.evict(digest).code == "adapter_in_use"
    assert [entry[0] for entry in residency.device_residents() + residency.host_residents()] == [digest, digest]
    residency.release(digest)
    residency.want(digest)
    assert residency.evict(digest).code == "adapter_in_use"
    residency.unwant(digest)
    assert residency.evict(digest) is None
    assert residency.device_residents() == residency.host_residents() == []

    gated.gate.clear()
    residency.warm(digest)
    assert residency.evict(digest).code == "adapter_in_use"
    gated.gate.set()
    load_ahead_until_idle(residency)
    assert residency.evict(digest) is None


def test_the_engine_is_woken_when_a_job_ends(make_residency, make_stored):
    """By `wait`, and by the callback for one that sleeps elsewhere."""
    woken = threading.Event()
    residency = make_residency(on_loaded=woken.set)
    assert not residency.wait(0)
    residency.warm(make_stored())
    assert woken.wait(DEADLINE_SECONDS)
    assert residency.wait(DEADLINE_SECONDS)


def test_churn_never_mixes_weights(make_residency, make_stored, blobs, base_shape):
    """Twelve adapters through room for three, two workers: every lease holds its own bytes for as long as it lasts."""
    residency = make_residency(device_bytes=3 * PACKED_BYTES, host_bytes=5 * PACKED_BYTES, workers=2)
    digests = [make_stored(seed=seed) for seed in range(12)]
    with ThreadPoolExecutor(1) as engine:  # any one thread may be the engine's

        def run() -> None:
            held = []
            for step in range(60):
                digest = digests[step * 5 % 12]
                adapter = lease(residency, digest)
                held.append(adapter)
                for other in held:
                    assert_holds(residency, blobs, base_shape, other)
                if len(held) == 3:
                    residency.release(held.pop(0).digest)

        engine.submit(run).result()
    assert residency.evictions > 12

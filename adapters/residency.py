"""Which adapters are on the device, and the loads that bring them there beside the step loop.

What the scheduler asks. One thread, the engine's, calls every method and owns all bookkeeping; workers only read, pack
and copy. What is loaded for whom, how, and in whose place: `demand`, `loads`, `device_room`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import chain, islice
from typing import Protocol

from loraplex.adapters.blobs import StoredAdapter
from loraplex.adapters.demand import Demand
from loraplex.adapters.device_adapter import DeviceAdapter
from loraplex.adapters.device_pool import DevicePool
from loraplex.adapters.device_room import DeviceRoom
from loraplex.adapters.factors import BaseWeights
from loraplex.adapters.host_cache import HostCache
from loraplex.adapters.load_failures import LoadFailures
from loraplex.adapters.load_jobs import LoadJobs
from loraplex.adapters.loads import Loads
from loraplex.adapters.packed_files import PackedFiles
from loraplex.adapters.pins import PinLimits, Pins
from loraplex.adapters.types import BaseShape
from loraplex.adapters.whereabouts import LoadTimes, Movement, Refusal, UseHistory, Whereabouts


class OpensAdapters(Protocol):
    """Where adapters are kept: `BlobStore`, or a remote store."""

    def open(self, digest: str) -> StoredAdapter:
        """Raises AdapterNotFound or AdapterUnavailable."""


class AdapterResidency:
    """Adapters in the tiers below the blob store: the host cache and the device pool."""

    def __init__(
        self,
        blobs: OpensAdapters,
        shape: BaseShape,
        pool: DevicePool,
        host_cache: HostCache,
        *,
        base: BaseWeights | None = None,
        workers: int = 1,
        retry_after_seconds: float = 5.0,
        pin_limits: PinLimits | None = None,
        on_loaded: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """base: as in `packed_files`. retry_after_seconds: how long a load that failed is not tried again. on_loaded:
        called from a worker thread when a job ends, for an engine that sleeps elsewhere than in `wait`; it must not
        call back in here."""
        self._pool = pool
        self._host_cache = host_cache
        self._is_busy = False
        self._files = PackedFiles(
            shape,
            pool.pool.dtype,
            base=base,
            pin_memory=pool.pool.device.type == "cuda",
            is_busy=lambda: self._is_busy,
        )
        self._jobs = LoadJobs(workers, on_loaded, clock)
        self._failures = LoadFailures(retry_after_seconds, clock)
        self._history = UseHistory()
        self._pins = Pins(pool.capacity_bytes, pin_limits or PinLimits(), clock)
        self._demand = Demand(self._pins)
        self._room = DeviceRoom(pool, self._pins, self._demand)
        self._loads = Loads(
            lambda digest: self._files.load(digest, blobs.open(digest)),
            host_cache,
            pool,
            self._room,
            self._demand,
            self._pins,
            jobs=self._jobs,
            failures=self._failures,
            history=self._history,
            clock=clock,
        )

    def try_lease(self, digest: str) -> DeviceAdapter | None:
        """The adapter, leased until `release`; or None while it is loading or there is no room: ask again next step.

        Starts or carries on the load; never blocks. Raises AdapterUnavailable if the load failed.
        """
        self._expire_pins()
        if not self._loads.advance(digest):
            return None
        self._history.record_use(digest, time.time())
        return self._pool.lease(digest)

    def want(self, digest: str) -> None:
        """A sequence that needs the adapter has begun to wait: load it ahead, and keep it until as many `unwant`."""
        self._demand.want(digest)
        self._loads.prefetch(digest)

    def unwant(self, digest: str) -> None:
        """One of the sequences has its lease, or waits no longer."""
        self._demand.unwant(digest)
        if digest not in self._demand.wanted:
            self._room.unwanted(digest)
        self._room.changed()

    def warm(self, digest: str) -> None:
        """Bring the adapter to the device before anyone asks, after those that sequences want and at no cost to them.

        A failure is told to whoever leases.
        """
        if not self._pool.is_ready(digest):
            self._demand.warm(digest)
            self._loads.prefetch(digest)

    def pin(self, ticket: int, digest: str, owner: str, seconds: float) -> None:
        """Bring the adapter to the device as `warm` does and keep it there for so long, at the wish of `owner`.

        Asked again by the same owner, it lasts for so long from now. Once it is known what the adapter takes, or that
        it cannot be loaded, `take_pin_answers` has the answer.
        """
        self._pins.ask(ticket, digest, owner, seconds)
        if self._pool.is_ready(digest):
            self._pins.decide(digest, self._pool.size_bytes(digest))
        else:
            self._demand.pin(digest)
            self._room.changed()
            self._loads.prefetch(digest)

    def unpin(self, digest: str, owner: str) -> None:
        """Nothing happens if the owner does not pin it."""
        self._pins.end(digest, owner)
        self._room.changed()

    def take_pin_answers(self) -> list[tuple[int, Refusal | None]]:
        """(ticket, why not) of pins decided since the last call; None: it is pinned."""
        return self._pins.take_answers()

    def load_ahead(self, *, is_busy: bool) -> None:
        """Start and carry on loads for the head of the queue, then of `pin` and of `warm`; to be called once a step.

        is_busy: the step runs something, so that loads go slowly beside it.
        """
        self._is_busy = is_busy
        self._loads.settle_all()
        self._expire_pins()
        for digest in self._demand.ahead() if self._room.may_be_claimed_ahead else self._demand.undecided_pins():
            self._loads.prefetch(digest)

    def is_ready(self, digest: str) -> bool:
        """Whether the adapter is on the device."""
        return self._pool.is_ready(digest)

    def lacks_room(self, digest: str) -> bool:
        """Whether the adapter, which a sequence wants, waits for leases of others to end."""
        return self._room.lacks(digest)

    def make_room_beside(self, leases: tuple[DeviceAdapter, ...], digest: str) -> tuple[DeviceAdapter, ...]:
        """Where an adapter, wanted beside these, lacks room though nothing else is leased or on its way, move them
        together and begin its load. The same leases, of adapters that may lie elsewhere then.

        Raises AdapterUnavailable if all of them together are larger than what pins leave of the pool.
        """
        if self._jobs.are_under_way or not self._room.lacks(digest) or self._pool.num_leases > len(leases):
            return leases
        gathered = self._room.gather_beside(leases, digest)
        self._loads.advance(digest)
        return gathered

    def release(self, digest: str) -> None:
        """End one lease."""
        self._pool.release(digest)
        self._room.changed()

    def evict(self, digest: str) -> Refusal | None:
        """Free what the adapter takes on the device and in the host's memory, and forget that it failed to load.

        Nothing happens while a sequence runs with it or waits for it, while it is pinned, or on its way: told is why.
        """
        self._loads.settle(digest)
        resident = self._pool.find(digest)
        if self._pins.is_asked(digest):
            return Refusal("adapter_pinned", "this version is pinned; end its pin first")
        if digest in self._demand.wanted or (resident is not None and resident.leases):
            return Refusal("adapter_in_use", "requests run with this version or wait for it; try again later")
        if digest in self._jobs:
            return Refusal("adapter_in_use", "this version is being loaded; try again shortly")
        self._demand.stop_warming(digest)
        self._failures.forget(digest)
        self._host_cache.evict(digest)
        self._pool.evict(digest)
        self._room.changed()
        return None

    def wait(self, timeout_seconds: float) -> bool:
        """Sleep until a job ended since the last call, or the time is over (False)."""
        return self._jobs.wait(timeout_seconds)

    @property
    def loads(self) -> int:
        """Adapters brought to the device since the start."""
        return self._pool.loads

    @property
    def evictions(self) -> int:
        """Adapters that lost their place on the device since the start."""
        return self._pool.evictions

    @property
    def pinned_bytes(self) -> int:
        """What pins keep, or will keep, of the device."""
        return self._pins.device_bytes

    @property
    def device_bytes_used(self) -> int:
        return self._pool.used_bytes

    @property
    def host_bytes_used(self) -> int:
        return self._host_cache.used_bytes

    def device_residents(self) -> list[tuple[str, int, int]]:
        """(digest, bytes, leases) of what is on the device, least recently used first."""
        return [(entry.digest, entry.size_bytes, entry.leases) for entry in self._pool.residents()]

    def host_residents(self) -> list[tuple[str, int, int]]:
        """The same of the host cache, where nothing needs a lease."""
        return [(digest, size_bytes, 0) for digest, size_bytes in self._host_cache.residents().items()]

    def load_since(self, digest: str, moment: float) -> tuple[float, LoadTimes] | None:
        """When the adapter's last load ended, and what it took, if that was after a moment on the residency's clock."""
        return self._history.load_since(digest, moment)

    def locate(self, digests: Iterable[str] | None = None) -> list[Whereabouts]:
        """Where these adapters are; None: all that are on the device, in the host's memory, or on their way."""
        if digests is None:
            on_device = (resident.digest for resident in self._pool.residents())
            digests = dict.fromkeys(chain(on_device, self._host_cache.residents(), self._jobs))
        return [self._locate(digest) for digest in digests]

    def used_last(self, most: int) -> list[Whereabouts]:
        """Where so many adapters are: those on their way, then on the device, then in the host's memory alone; in each
        those that were used last first."""
        on_device = (resident.digest for resident in reversed(self._pool.residents()))
        digests = dict.fromkeys(chain(self._jobs, on_device, reversed(self._host_cache.residents())))
        return [self._locate(digest) for digest in islice(digests, most)]

    @property
    def movements(self) -> Iterable[Movement]:
        """The last loads and evictions, oldest first."""
        return self._pool.movements

    def check_integrity(self) -> None:
        """Assert what must hold after every operation."""
        self._pool.check_integrity()
        self._pins.check_integrity()

    def close(self) -> None:
        """Wait for the jobs that run and drop those that do not."""
        self._jobs.close()
        self._files.close()

    def _expire_pins(self) -> None:
        if self._pins.expire():
            self._room.changed()

    def _locate(self, digest: str) -> Whereabouts:
        resident = self._pool.find(digest)
        pins, pinned_seconds = self._pins.of(digest)
        found = Whereabouts(
            digest,
            device_bytes=resident.size_bytes if resident is not None and not resident.is_loading else 0,
            host_bytes=self._host_cache.size_bytes(digest),
            leases=resident.leases if resident is not None else 0,
            is_loading=digest in self._jobs,
            pins=pins,
            pinned_seconds=pinned_seconds,
        )
        return self._history.told(found)

"""Which adapters are on the device, and the loads that bring them there beside the step loop.

What the scheduler asks. One thread, the engine's, calls every method and owns all bookkeeping; workers only read, pack
and copy. A load is two jobs: blob to host (read), host to device (copy); at most one per digest is under way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import chain, islice
from typing import Protocol

from loraplex.adapters.blobs import StoredAdapter
from loraplex.adapters.device_pool import DeviceAdapter, DevicePool
from loraplex.adapters.errors import AdapterUnavailable
from loraplex.adapters.factors import BaseWeights
from loraplex.adapters.host_cache import HostCache
from loraplex.adapters.load_failures import LoadFailures
from loraplex.adapters.load_jobs import Copying, LoadJobs, Read, Reading
from loraplex.adapters.packed_files import PackedFiles
from loraplex.adapters.pins import PinLimits, Pins
from loraplex.adapters.popularity import Popularity
from loraplex.adapters.types import BaseShape
from loraplex.adapters.whereabouts import LoadTimes, Refusal, UseHistory, Whereabouts

__all__ = ["AdapterResidency", "DeviceAdapter"]

MAX_LOADS = 4
"""Under way at once. Each takes up its next job between two steps: with one alone the worker would mostly wait."""

LOOK_AHEAD = 64
"""Adapters at the head of the queue that are loaded before their turn."""

MAX_WARMING = 64
"""Adapters that are to be warmed and have not come to the device yet; beyond them the oldest is given up."""


class OpensAdapters(Protocol):
    """Where adapters are kept: `BlobStore`, or a remote store."""

    def open(self, digest: str) -> StoredAdapter:
        """Raises AdapterNotFound or AdapterUnavailable."""


class AdapterResidency:
    """Blob store -> host cache -> device pool.

    A finished load becomes evictable at the end of a step, or when another lacks room, and then not before the next
    call: so of two that need the same room and ask at every step, the one that asks first is served and the other
    waits for it; they never evict each other unused for ever.

    Room is made by evicting what was asked for least, lately. What the queue wants is kept from loads ahead of their
    turn, but not from a sequence whose turn it is: those that wanted it and came first have their lease by then. What
    is pinned is never evicted; where pins lie in the way of one whose turn it is, they are moved together.
    """

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
        self._blobs = blobs
        self._clock = clock
        self._is_busy = False
        self._files = PackedFiles(
            shape,
            pool.pool.dtype,
            base=base,
            pin_memory=pool.pool.device.type == "cuda",
            is_busy=lambda: self._is_busy,
        )
        self._jobs = LoadJobs(workers, on_loaded, clock)
        self._loads: dict[str, Reading | Copying] = {}
        self._popularity = Popularity()
        self._history = UseHistory()
        self._pins = Pins(pool.capacity_bytes, pin_limits or PinLimits(), clock)
        self._wanted: dict[str, int] = {}  # digest -> waiting sequences, in the order in which they came
        self._pinning: dict[str, None] = {}  # pinned, or to be, and not on the device yet
        self._warming: dict[str, None] = {}  # digests in the order in which they came
        self._lacking_room: dict[str, int] = {}  # those wanted, and their bytes
        self._full_of_wanted = False  # no use in looking ahead until something changes
        self._failures = LoadFailures(retry_after_seconds, clock)

    def try_lease(self, digest: str) -> DeviceAdapter | None:
        """The adapter, leased until `release`; or None while it is loading or there is no room: ask again next step.

        Starts or carries on the load; never blocks. Raises AdapterUnavailable if the load failed.
        """
        if not self._advance(digest):
            return None
        self._history.record_use(digest, time.time())
        return self._pool.lease(digest)

    def want(self, digest: str) -> None:
        """A sequence that needs the adapter has begun to wait: load it ahead, and keep it until as many `unwant`."""
        self._wanted[digest] = self._wanted.get(digest, 0) + 1
        self._popularity.record(digest)
        self._prefetch(digest)

    def unwant(self, digest: str) -> None:
        """One of the sequences has its lease, or waits no longer."""
        self._wanted[digest] -= 1
        if self._wanted[digest] == 0:
            del self._wanted[digest]
            self._lacking_room.pop(digest, None)
        self._full_of_wanted = False

    def warm(self, digest: str) -> None:
        """Bring the adapter to the device before anyone asks, after those that sequences want and at no cost to them.

        A failure is told to whoever leases.
        """
        if self._pool.is_ready(digest):
            return
        self._warming[digest] = None
        if len(self._warming) > MAX_WARMING:
            del self._warming[next(iter(self._warming))]
        self._prefetch(digest)

    def pin(self, ticket: int, digest: str, owner: str, seconds: float) -> None:
        """Bring the adapter to the device as `warm` does and keep it there for so long, at the wish of `owner`.

        Asked again by the same owner, it lasts for so long from now. Once it is known what the adapter takes, or that
        it cannot be loaded, `take_pin_answers` has the answer.
        """
        self._pins.ask(ticket, digest, owner, seconds)
        if self._pool.is_ready(digest):
            self._pins.decide(digest, self._pool.size_bytes(digest))
        else:
            self._pinning[digest] = None
            self._full_of_wanted = False
            self._prefetch(digest)

    def unpin(self, digest: str, owner: str) -> None:
        """Nothing happens if the owner does not pin it."""
        self._pins.end(digest, owner)
        self._full_of_wanted = False

    def take_pin_answers(self) -> list[tuple[int, Refusal | None]]:
        """(ticket, why not) of pins decided since the last call; None: it is pinned."""
        return self._pins.take_answers()

    def load_ahead(self, *, is_busy: bool) -> None:
        """Start and carry on loads for the head of the queue, then of `pin` and of `warm`; to be called once a step.

        is_busy: the step runs something, so that loads go slowly beside it.
        """
        self._is_busy = is_busy
        self._settle_all()
        if self._pins.expire():
            self._full_of_wanted = False
        if not self._full_of_wanted and not self._lacking_room:
            for digest in list(islice(chain(self._wanted, self._pinning, self._warming), LOOK_AHEAD)):
                self._prefetch(digest)

    def is_ready(self, digest: str) -> bool:
        """Whether the adapter is on the device."""
        return self._pool.is_ready(digest)

    def lacks_room(self, digest: str) -> bool:
        """Whether the adapter, which a sequence wants, waits for leases of others to end."""
        return digest in self._lacking_room

    def make_room_beside(self, leases: tuple[DeviceAdapter, ...], digest: str) -> tuple[DeviceAdapter, ...]:
        """Where an adapter, wanted beside these, lacks room though nothing else is leased or on its way, move them
        together and begin its load. The same leases, of adapters that may lie elsewhere then.

        Raises AdapterUnavailable if all of them together are larger than what pins leave of the pool.
        """
        is_loading = any(isinstance(load, Copying) or not load.job.done() for load in self._loads.values())
        if digest not in self._lacking_room or is_loading or self._pool.num_leases > len(leases):
            return leases
        unpinned = {lease.digest: lease.size_bytes for lease in leases if lease.digest not in self._pins}
        if sum(unpinned.values()) + self._lacking_room[digest] > self._unpinned_bytes:
            raise AdapterUnavailable(
                f"these adapters together take more than the {self._unpinned_bytes} bytes for adapters on the device "
                "that are not pinned; combine fewer or smaller ones, or raise --adapter-device-bytes"
            )
        for lease in leases:
            self._pool.release(lease.digest)
        self._pool.gather(0, self._pins.digests() | unpinned.keys())
        leased = tuple(self._pool.lease(lease.digest) for lease in leases)
        self._advance(digest)
        return leased

    def release(self, digest: str) -> None:
        """End one lease."""
        self._pool.release(digest)
        self._full_of_wanted = False

    def evict(self, digest: str) -> Refusal | None:
        """Free what the adapter takes on the device and in the host's memory, and forget that it failed to load.

        Nothing happens while a sequence runs with it or waits for it, while it is pinned, or on its way: told is why.
        """
        self._settle(digest)
        resident = self._pool.find(digest)
        if self._pins.is_asked(digest):
            return Refusal("adapter_pinned", "this version is pinned; end its pin first")
        if digest in self._wanted or (resident is not None and resident.leases):
            return Refusal("adapter_in_use", "requests run with this version or wait for it; try again later")
        if digest in self._loads:
            return Refusal("adapter_in_use", "this version is being loaded; try again shortly")
        self._warming.pop(digest, None)
        self._failures.forget(digest)
        self._host_cache.evict(digest)
        self._pool.evict(digest)
        self._full_of_wanted = False
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
            digests = dict.fromkeys(chain(on_device, self._host_cache.residents(), self._loads))
        return [self._locate(digest) for digest in digests]

    def check_integrity(self) -> None:
        """Assert what must hold after every operation."""
        self._pool.check_integrity()
        self._pins.check_integrity()

    def close(self) -> None:
        """Wait for the jobs that run and drop those that do not."""
        self._jobs.close()
        self._files.close()

    @property
    def _unpinned_bytes(self) -> int:
        return self._pool.capacity_bytes - self._pins.device_bytes

    def _locate(self, digest: str) -> Whereabouts:
        resident = self._pool.find(digest)
        pins, pinned_seconds = self._pins.of(digest)
        found = Whereabouts(
            digest,
            device_bytes=resident.size_bytes if resident is not None and not resident.is_loading else 0,
            host_bytes=self._host_cache.size_bytes(digest),
            leases=resident.leases if resident is not None else 0,
            is_loading=digest in self._loads,
            pins=pins,
            pinned_seconds=pinned_seconds,
        )
        return self._history.told(found)

    def _prefetch(self, digest: str) -> None:
        """Start or carry on a load without needing its result. A failure is told to whoever leases or pins."""
        try:
            self._advance(digest, ahead=True)
        except AdapterUnavailable as error:
            self._warming.pop(digest, None)
            self._pins.fail(digest, str(error))
        if not self._pins.is_asked(digest):
            self._pinning.pop(digest, None)

    def _advance(self, digest: str, *, ahead: bool = False) -> bool:
        """Take the load of an adapter as far as it goes without waiting. True: it is on the device."""
        read = self._settle(digest)
        self._failures.check(digest)
        if self._pool.is_ready(digest):
            return True
        if digest not in self._loads:
            if read is None and (packed := self._host_cache.get(digest)) is not None:
                read = Read(packed, self._clock(), 0.0)
            if read is not None:
                self._pins.decide(digest, self._pool.bytes_for(read.packed.weights.numel()))
            if not ahead or self._is_called_for(digest):
                self._start(digest, read, ahead)
        return False

    def _is_called_for(self, digest: str) -> bool:
        return digest in self._wanted or digest in self._warming or self._pins.is_asked(digest)

    def _start(self, digest: str, read: Read | None, ahead: bool) -> None:
        """The next job of a load, or none while there is no room for it."""
        if len(self._loads) >= MAX_LOADS and not ahead:
            self._end_one_read()
        if len(self._loads) >= MAX_LOADS:
            self._settle_all()
        elif read is None:
            self._loads[digest] = self._jobs.read(lambda: self._files.load(digest, self._blobs.open(digest)))
        elif self._make_room(digest, read.packed.weights.numel(), ahead):
            self._loads[digest] = self._jobs.copy(self._pool.begin_copy(digest, read.packed), read)
        else:
            self._settle_all()

    def _make_room(self, digest: str, elements: int, ahead: bool) -> bool:
        """A range of the device for the adapter. ahead: only where that is at nobody's cost."""
        if ahead and self._lacking_room:
            return False
        self._require_room_beside_pins(digest, elements)
        pinned, worth = self._pins.digests(), self._popularity.of
        start = self._pool.allocate(digest, elements, keep=pinned | self._wanted.keys(), worth=worth)
        if start is None and ahead:
            self._full_of_wanted = True
        elif start is None:
            start = self._pool.allocate(digest, elements, keep=pinned, worth=worth)
            if start is None and self._pool.gather(elements, pinned):
                start = self._pool.allocate(digest, elements, keep=pinned, worth=worth)
            if start is None and digest in self._wanted:
                self._lacking_room[digest] = self._pool.bytes_for(elements)
        if start is not None:
            self._lacking_room.pop(digest, None)
        return start is not None

    def _require_room_beside_pins(self, digest: str, elements: int) -> None:
        """Raises AdapterUnavailable if there can be none for as long as what is pinned stays."""
        size_bytes = self._pool.bytes_for(elements)
        if digest not in self._pins and self._unpinned_bytes < size_bytes <= self._pool.capacity_bytes:
            raise AdapterUnavailable(
                f"this adapter takes {size_bytes} bytes of device memory, and pinned ones leave "
                f"{self._unpinned_bytes}; try again when pins have ended, or raise --adapter-device-bytes"
            )

    def _end_one_read(self) -> None:
        """The last that was read ahead, and waits for room, gives its slot to one whose turn it is."""
        done = [digest for digest, load in self._loads.items() if isinstance(load, Reading) and load.job.done()]
        if done:
            self._settle(done[-1])

    def _settle_all(self) -> None:
        """What was copied becomes evictable, and reads that nobody wants any more give up their slot."""
        for digest, load in list(self._loads.items()):
            if isinstance(load, Copying) or not self._is_called_for(digest):
                self._settle(digest)

    def _settle(self, digest: str) -> Read | None:
        """Take over the result of a job, if there is one and it ended: what was packed. A failure is remembered."""
        load = self._loads.get(digest)
        if load is None or not load.job.done():
            return None
        del self._loads[digest]
        error = load.job.exception()
        if error is not None:
            self._failures.remember(digest, error)
        if isinstance(load, Copying):
            self._settle_copy(digest, load.read, load.seconds() if error is None else None)
        elif error is None:
            read = load.result()
            self._host_cache.put(digest, read.packed)
            return read
        return None

    def _settle_copy(self, digest: str, read: Read, seconds: float | None) -> None:
        """The copy ended after so many seconds; None: it failed."""
        self._full_of_wanted = False
        self._warming.pop(digest, None)
        if seconds is None:
            self._pool.discard(digest)
            return
        self._pinning.pop(digest, None)
        self._pool.publish(digest, read.packed)
        self._pins.decide(digest, self._pool.size_bytes(digest))
        now = self._clock()
        self._history.record_load(digest, LoadTimes(read.seconds, seconds, now - read.began), now)

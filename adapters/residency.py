"""Which adapters are on the device, and the loads that bring them there beside the step loop.

What the scheduler asks. One thread, the engine's, calls every method and owns all bookkeeping; workers only read, pack
and copy. A load is two jobs: blob to host (read), host to device (copy); at most one per digest is under way.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain, islice
from typing import Protocol, TypeVar

from loraplex.adapters.blobs import StoredAdapter
from loraplex.adapters.device_pool import DeviceAdapter, DevicePool
from loraplex.adapters.errors import AdapterError, AdapterUnavailable
from loraplex.adapters.factors import BaseWeights
from loraplex.adapters.host_cache import HostCache
from loraplex.adapters.loader_threads import loader_threads
from loraplex.adapters.packed_files import PackedFiles
from loraplex.adapters.popularity import Popularity
from loraplex.adapters.types import BaseShape
from loraplex.adapters.weights import PackedAdapter

__all__ = ["AdapterResidency", "DeviceAdapter"]

_logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")

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


@dataclass(frozen=True, slots=True)
class _Reading:
    job: Future[PackedAdapter]


@dataclass(frozen=True, slots=True)
class _Copying:
    job: Future[None]
    packed: PackedAdapter


class AdapterResidency:
    """Blob store -> host cache -> device pool.

    A finished load becomes evictable at the end of a step, or when another lacks room, and then not before the next
    call: so of two that need the same room and ask at every step, the one that asks first is served and the other
    waits for it; they never evict each other unused for ever.

    Room is made by evicting what was asked for least, lately. What the queue wants is kept from loads ahead of their
    turn, but not from a sequence whose turn it is: those that wanted it and came first have their lease by then.
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
        on_loaded: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """base: as in `packed_files`. retry_after_seconds: how long a load that failed is not tried again. on_loaded:
        called from a worker thread when a job ends, for an engine that sleeps elsewhere than in `wait`; it must not
        call back in here."""
        self._pool = pool
        self._host_cache = host_cache
        self._blobs = blobs
        self._retry_after_seconds = retry_after_seconds
        self._on_loaded = on_loaded
        self._clock = clock
        self._is_busy = False
        self._files = PackedFiles(
            shape,
            pool.pool.dtype,
            base=base,
            pin_memory=pool.pool.device.type == "cuda",
            is_busy=lambda: self._is_busy,
        )
        self._workers = loader_threads(workers, "adapter-load")
        self._loads: dict[str, _Reading | _Copying] = {}
        self._popularity = Popularity()
        self._wanted: dict[str, int] = {}  # digest -> waiting sequences, in the order in which they came
        self._warming: dict[str, None] = {}  # digests in the order in which they came
        self._lacking_room: dict[str, int] = {}  # those wanted, and their bytes
        self._full_of_wanted = False  # no use in looking ahead until something changes
        self._failures: dict[str, tuple[float, str]] = {}  # digest -> (when to try again, message)
        self._progress = threading.Event()

    def try_lease(self, digest: str) -> DeviceAdapter | None:
        """The adapter, leased until `release`; or None while it is loading or there is no room: ask again next step.

        Starts or carries on the load; never blocks. Raises AdapterUnavailable if the load failed.
        """
        return self._pool.lease(digest) if self._advance(digest) else None

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

    def load_ahead(self, *, is_busy: bool) -> None:
        """Start and carry on loads for the head of the queue, and then of `warm`; to be called once a step.

        is_busy: the step runs something, so that loads go slowly beside it.
        """
        self._is_busy = is_busy
        self._settle_all()
        if not self._full_of_wanted and not self._lacking_room:
            for digest in list(islice(chain(self._wanted, self._warming), LOOK_AHEAD)):
                self._prefetch(digest)

    def is_ready(self, digest: str) -> bool:
        """Whether the adapter is on the device."""
        return self._pool.is_ready(digest)

    def lacks_room(self, digest: str) -> bool:
        """Whether the adapter, which a sequence wants, waits for leases of others to end."""
        return digest in self._lacking_room

    def is_blocked_by(self, leases: Collection[DeviceAdapter], digest: str) -> bool:
        """Whether an adapter, wanted beside these, lacks room though nothing else is leased or on its way.

        Raises AdapterUnavailable if all of them together are larger than the pool.
        """
        is_loading = any(isinstance(load, _Copying) or not load.job.done() for load in self._loads.values())
        if not leases or digest not in self._lacking_room or is_loading or self._pool.num_leases > len(leases):
            return False
        if sum(lease.size_bytes for lease in leases) + self._lacking_room[digest] > self._pool.capacity_bytes:
            raise AdapterUnavailable(
                f"these adapters together take more than the {self._pool.capacity_bytes} bytes for adapters on the "
                "device; combine fewer or smaller ones, or raise --adapter-device-bytes"
            )
        return True

    def evict_all(self) -> None:
        """Empty the device of all that is not leased."""
        for resident in self._pool.residents():
            self._pool.evict(resident.digest)
        self._full_of_wanted = False

    def release(self, digest: str) -> None:
        """End one lease."""
        self._pool.release(digest)
        self._full_of_wanted = False

    def forget(self, digest: str) -> None:
        """The version was deleted: free its memory, now where nothing uses it and by ageing where something does."""
        self._warming.pop(digest, None)
        self._failures.pop(digest, None)
        self._host_cache.evict(digest)
        self._pool.evict(digest)

    def wait(self, timeout_seconds: float) -> bool:
        """Sleep until a job ended since the last call, or the time is over (False)."""
        ended = self._progress.wait(timeout_seconds)
        self._progress.clear()
        return ended

    @property
    def loads(self) -> int:
        """Adapters brought to the device since the start."""
        return self._pool.loads

    @property
    def evictions(self) -> int:
        """Adapters that lost their place on the device since the start."""
        return self._pool.evictions

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

    def close(self) -> None:
        """Wait for the jobs that run and drop those that do not."""
        self._workers.shutdown(wait=True, cancel_futures=True)
        self._files.close()

    def _prefetch(self, digest: str) -> None:
        """Start or carry on a load without needing its result. A failure is told to whoever leases."""
        try:
            self._advance(digest, ahead=True)
        except AdapterUnavailable:
            self._warming.pop(digest, None)

    def _advance(self, digest: str, *, ahead: bool = False) -> bool:
        """Take the load of an adapter as far as it goes without waiting. True: it is on the device."""
        packed = self._settle(digest)
        self._raise_remembered(digest)
        if self._pool.is_ready(digest):
            return True
        if digest not in self._loads:
            self._start(digest, packed or self._host_cache.get(digest), ahead)
        return False

    def _start(self, digest: str, packed: PackedAdapter | None, ahead: bool) -> None:
        """The next job of a load, or none while there is no room for it."""
        if len(self._loads) >= MAX_LOADS and not ahead:
            self._end_one_read()
        if len(self._loads) >= MAX_LOADS:
            self._settle_all()
        elif packed is None:
            self._loads[digest] = _Reading(self._submit(lambda: self._read(digest)))
        elif self._make_room(digest, packed.weights.numel(), ahead):
            self._loads[digest] = _Copying(self._submit(self._pool.begin_copy(digest, packed)), packed)
        else:
            self._settle_all()

    def _make_room(self, digest: str, elements: int, ahead: bool) -> bool:
        """A range of the device for the adapter. ahead: only where that is at nobody's cost."""
        if ahead and self._lacking_room:
            return False
        worth = self._popularity.of
        start = self._pool.allocate(digest, elements, keep=self._wanted, worth=worth)
        if start is None and ahead:
            self._full_of_wanted = True
        elif start is None:
            start = self._pool.allocate(digest, elements, worth=worth)
            if start is None and digest in self._wanted:
                self._lacking_room[digest] = elements * self._pool.pool.itemsize
        if start is not None:
            self._lacking_room.pop(digest, None)
        return start is not None

    def _end_one_read(self) -> None:
        """The last that was read ahead, and waits for room, gives its slot to one whose turn it is."""
        done = [digest for digest, load in self._loads.items() if isinstance(load, _Reading) and load.job.done()]
        if done:
            self._settle(done[-1])

    def _settle_all(self) -> None:
        """What was copied becomes evictable, and reads that nobody wants any more give up their slot."""
        for digest, load in list(self._loads.items()):
            if isinstance(load, _Copying) or not (digest in self._wanted or digest in self._warming):
                self._settle(digest)

    def _settle(self, digest: str) -> PackedAdapter | None:
        """Take over the result of a job, if there is one and it ended: what was packed. A failure is remembered."""
        load = self._loads.get(digest)
        if load is None or not load.job.done():
            return None
        del self._loads[digest]
        error = load.job.exception()
        if isinstance(load, _Copying):
            self._settle_copy(digest, load.packed, error)
        elif error is None:
            packed = load.job.result()
            self._host_cache.put(digest, packed)
            return packed
        if error is not None:
            self._remember(digest, error)
        return None

    def _settle_copy(self, digest: str, packed: PackedAdapter, error: BaseException | None) -> None:
        self._full_of_wanted = False
        self._warming.pop(digest, None)
        if error is None:
            self._pool.publish(digest, packed)
        else:
            self._pool.discard(digest)

    def _remember(self, digest: str, error: BaseException) -> None:
        if isinstance(error, AdapterError):
            message = str(error)
        else:
            _logger.error("loading adapter %s failed", digest, exc_info=error)
            message = "the adapter could not be loaded; try again later"
        now = self._clock()
        self._failures = {key: entry for key, entry in self._failures.items() if entry[0] > now}
        self._failures[digest] = (now + self._retry_after_seconds, message)

    def _raise_remembered(self, digest: str) -> None:
        failure = self._failures.get(digest)
        if failure is None:
            return
        try_again_at, message = failure
        if self._clock() < try_again_at:
            raise AdapterUnavailable(message)
        del self._failures[digest]

    def _read(self, digest: str) -> PackedAdapter:
        return self._files.load(digest, self._blobs.open(digest))

    def _submit(self, job: Callable[[], _Result]) -> Future[_Result]:
        future = self._workers.submit(job)
        future.add_done_callback(self._tell_progress)
        return future

    def _tell_progress(self, _: Future[_Result]) -> None:
        self._progress.set()
        self._on_loaded()

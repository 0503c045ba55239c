"""Which adapters are on the device, and the loads that bring them there beside the step loop.

What the scheduler asks. One thread, the engine's, calls every method and owns all bookkeeping; workers only read, pack
and copy. A load is two jobs: blob to host (read), host to device (copy); at most one per digest is under way.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeVar

import torch

from loraplex.adapters.blobs import StoredAdapter
from loraplex.adapters.device_pool import DeviceAdapter, DevicePool
from loraplex.adapters.errors import AdapterError, AdapterUnavailable
from loraplex.adapters.host_cache import HostCache
from loraplex.adapters.packed_files import PackedFiles
from loraplex.adapters.popularity import Popularity
from loraplex.adapters.types import BaseShape
from loraplex.adapters.weights import PackedAdapter

__all__ = ["AdapterResidency", "DeviceAdapter"]

_logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")

PAUSE_SECONDS = 0.002
"""After each site that is packed while steps run: a load then takes about a tenth of a core for a while, and not all of
one at once, for which every operation of a step would have to wait."""

WORKER_NICENESS = 10
"""How far below the step loop's threads the workers stand where they compete for a core. Not SCHED_IDLE, under which
nothing is loaded while the machine is busy."""

KEEP_INTERVAL_SECONDS = 1.0
"""Between two packed files that are written, and between an adapter's load and its file."""

MAX_UNKEPT = 64
"""Packed adapters that wait to be written: a bound on the host memory they hold."""

LOOK_AHEAD = 64
"""Adapters at the head of the queue that are loaded before their turn."""


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

    A finished load keeps its place until its sequence asks again. Only when another lacks room does it become
    evictable, and then not before the next call: so of two that need the same room and ask at every step, one is
    served and the other waits for it; they never evict each other unused for ever.

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
        workers: int = 1,
        retry_after_seconds: float = 5.0,
        on_loaded: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """retry_after_seconds: how long a load that failed is not tried again. on_loaded: called from a worker thread
        when a job ends, for an engine that sleeps elsewhere than in `wait`; it must not call back in here."""
        self._pool = pool
        self._host_cache = host_cache
        self._blobs = blobs
        self._retry_after_seconds = retry_after_seconds
        self._on_loaded = on_loaded
        self._clock = clock
        self._files = PackedFiles(shape, pool.pool.dtype, pin_memory=pool.pool.device.type == "cuda", pause=self._pause)
        self._workers = ThreadPoolExecutor(workers, "adapter-load", initializer=_stand_back)
        self._max_loads = workers  # one job of each between two steps: their disturbance is spread
        self._keeper = _Keeper(self._files)
        self._loads: dict[str, _Reading | _Copying] = {}
        self._popularity = Popularity()
        self._wanted: dict[str, int] = {}  # digest -> waiting sequences, in the order in which they came
        self._lacking_room: set[str] = set()  # of those wanted
        self._full_of_wanted = False  # no use in looking ahead until something changes
        self._is_busy = False
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
        self.prefetch(digest)

    def unwant(self, digest: str) -> None:
        """One of the sequences has its lease, or waits no longer."""
        self._wanted[digest] -= 1
        if self._wanted[digest] == 0:
            del self._wanted[digest]
            self._lacking_room.discard(digest)
        self._full_of_wanted = False

    def load_ahead(self, *, is_busy: bool) -> None:
        """Start and carry on loads for the head of the queue; to be called once a step.

        is_busy: the step runs something, so that loads go slowly beside it.
        """
        self._is_busy = is_busy
        if not self._full_of_wanted and not self._lacking_room:
            for digest in islice(self._wanted, LOOK_AHEAD):
                self.prefetch(digest)

    def lacks_room(self, digest: str) -> bool:
        """Whether the adapter, which a sequence wants, waits for leases of others to end."""
        return digest in self._lacking_room

    def prefetch(self, digest: str) -> None:
        """Start or carry on a load without needing its result. A failure is told to whoever leases."""
        try:
            self._advance(digest, ahead=True)
        except AdapterUnavailable:
            return

    def release(self, digest: str) -> None:
        """End one lease."""
        self._pool.release(digest)
        self._full_of_wanted = False

    def forget(self, digest: str) -> None:
        """The version was deleted: free its memory, now where nothing uses it and by ageing where something does."""
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
        self._keeper.close()

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
        if len(self._loads) >= self._max_loads:
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
                self._lacking_room.add(digest)
        if start is not None:
            self._lacking_room.discard(digest)
        return start is not None

    def _settle_all(self) -> None:
        """Loads whose sequence did not come back give up their slot, and their memory becomes evictable."""
        for digest in list(self._loads):
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
        if error is None:
            self._pool.publish(digest, packed)
            self._keeper.add(digest, packed)
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

    def _pause(self) -> None:
        if self._is_busy:
            time.sleep(PAUSE_SECONDS)

    def _submit(self, job: Callable[[], _Result]) -> Future[_Result]:
        future = self._workers.submit(job)
        future.add_done_callback(self._tell_progress)
        return future

    def _tell_progress(self, _: Future[_Result]) -> None:
        self._progress.set()
        self._on_loaded()


class _Keeper:
    """Writes packed files one a while: nobody waits for them, and writing slows down what runs beside it."""

    def __init__(self, files: PackedFiles) -> None:
        self._files = files
        self._worker = ThreadPoolExecutor(1, "adapter-keep", initializer=_stand_back)
        self._closing = threading.Event()
        self._pending = 0

    def add(self, digest: str, packed: PackedAdapter) -> None:
        """Have the file written if there is none; in a rush the adapter is left to its next load."""
        if self._pending < MAX_UNKEPT and not self._files.is_kept(digest):
            self._pending += 1
            self._worker.submit(self._keep, digest, packed)

    def close(self) -> None:
        self._closing.set()
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _keep(self, digest: str, packed: PackedAdapter) -> None:
        if not self._closing.wait(KEEP_INTERVAL_SECONDS):
            self._files.keep(digest, packed)
        self._pending -= 1


def _stand_back() -> None:
    """Make the calling thread one that the step loop does not notice."""
    # One thread each: while a worker with an OpenMP team of its own lives there are more threads than cores, and
    # OpenMP then puts the step loop's threads to sleep between any two operations.
    torch.set_num_threads(1)
    if sys.platform == "linux":  # where niceness belongs to a thread
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + WORKER_NICENESS)

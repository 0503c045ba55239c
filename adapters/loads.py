"""The way of an adapter from the blob store to the host's memory and from there to the device, step by step.

A load is two jobs: blob to host (read), host to device (copy). Knows what is done when one ends; `demand` knows for
whom, `device_room` in whose place. One thread, the engine's, calls every method.
"""

from __future__ import annotations

from collections.abc import Callable

from loraplex.adapters.demand import Demand
from loraplex.adapters.device_pool import DevicePool
from loraplex.adapters.device_room import DeviceRoom
from loraplex.adapters.errors import AdapterUnavailable
from loraplex.adapters.host_cache import HostCache
from loraplex.adapters.load_failures import LoadFailures
from loraplex.adapters.load_jobs import Copied, Failed, LoadJobs, Read
from loraplex.adapters.pins import Pins
from loraplex.adapters.weights import PackedAdapter
from loraplex.adapters.whereabouts import LoadTimes, UseHistory

MAX_LOADS = 4
"""Under way at once. Each takes up its next job between two steps: with one alone the worker would mostly wait."""


class Loads:
    """A finished load becomes evictable at the end of a step, unless it is asked for before. So what has just come for
    one sequence cannot be taken by a younger one, which asks later in the same step; of two that need the same room the
    one that asks first is served and the other waits for it; they never evict each other unused for ever.
    """

    def __init__(
        self,
        read: Callable[[str], PackedAdapter],
        host_cache: HostCache,
        pool: DevicePool,
        room: DeviceRoom,
        demand: Demand,
        pins: Pins,
        *,
        jobs: LoadJobs,
        failures: LoadFailures,
        history: UseHistory,
        clock: Callable[[], float],
    ) -> None:
        """read: the job on a worker's thread that has the adapter in the host's memory when it returns."""
        self._read = read
        self._host_cache = host_cache
        self._pool = pool
        self._room = room
        self._demand = demand
        self._pins = pins
        self._jobs = jobs
        self._failures = failures
        self._history = history
        self._clock = clock

    def prefetch(self, digest: str) -> None:
        """Start or carry on a load without needing its result. A failure is told to whoever leases or pins."""
        try:
            self.advance(digest, ahead=True)
        except AdapterUnavailable as error:
            self._demand.stop_warming(digest)
            self._pins.fail(digest, str(error))

    def advance(self, digest: str, *, ahead: bool = False) -> bool:
        """Take the load of an adapter as far as it goes without waiting. True: it is on the device."""
        read = self.settle(digest)
        self._failures.check(digest)
        if self._pool.is_ready(digest):
            return True
        if digest not in self._jobs:
            if read is None and (packed := self._host_cache.get(digest)) is not None:
                read = Read(packed, self._clock(), 0.0)
            if read is not None:
                self._pins.decide(digest, self._pool.bytes_for(read.packed.weights.numel()))
            if not ahead or self._demand.is_there(digest):
                self._start(digest, read, ahead=ahead)
        return False

    def settle_all(self) -> None:
        """What was copied becomes evictable, and reads that nobody wants any more give up their slot."""
        for digest in list(self._jobs):
            if self._jobs.is_copying(digest) or not self._demand.is_there(digest):
                self.settle(digest)

    def settle(self, digest: str) -> Read | None:
        """Take over how a job ended, if there is one and it did: what was packed. A failure is remembered."""
        match self._jobs.take(digest):
            case Read() as read:
                self._host_cache.put(digest, read.packed)
                return read
            case Copied(read, seconds):
                self._publish(digest, read, seconds)
            case Failed(error, was_copying):
                self._failures.remember(digest, error)
                if was_copying:
                    self._pool.discard(digest)
                    self._room.changed()
        return None

    def _start(self, digest: str, read: Read | None, *, ahead: bool) -> None:
        """The next job of a load, or none while there is no room for it."""
        if not ahead and len(self._jobs) >= MAX_LOADS and (read_ahead := self._jobs.last_read()) is not None:
            self.settle(read_ahead)  # which gives its slot to one whose turn it is
        if len(self._jobs) >= MAX_LOADS:
            return
        if read is None:
            self._jobs.read(digest, lambda: self._read(digest))
        elif self._room.claim(digest, read.packed.weights.numel(), ahead=ahead):
            self._jobs.copy(digest, self._pool.begin_copy(digest, read.packed), read)

    def _publish(self, digest: str, read: Read, copy_seconds: float) -> None:
        now = self._clock()
        times = LoadTimes(read.seconds, copy_seconds, now - read.began)
        self._pool.publish(digest, read.packed, times)
        self._demand.arrived(digest)
        self._pins.decide(digest, self._pool.size_bytes(digest))
        self._history.record_load(digest, times, now)
        self._room.changed()

"""The two jobs of a load beside the engine's thread: from the disk to the host's memory, and from there to the device.

Knows threads and times. Knows no tier's bookkeeping: what follows from a job's end is `residency`'s.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from loraplex.adapters.loader_threads import loader_threads
from loraplex.adapters.weights import PackedAdapter

_Result = TypeVar("_Result")


class Read(NamedTuple):
    """An adapter in the host's memory, when its load began, and the seconds that reading took."""

    packed: PackedAdapter
    began: float
    seconds: float


class Copied(NamedTuple):
    """An adapter on the device, and the seconds that copying took."""

    read: Read
    seconds: float


class Failed(NamedTuple):
    """was_copying: it has a range of the device."""

    error: BaseException
    was_copying: bool


@dataclass(frozen=True, slots=True)
class _Reading:
    job: Future[tuple[PackedAdapter, float]]
    began: float


@dataclass(frozen=True, slots=True)
class _Copying:
    job: Future[tuple[None, float]]
    read: Read


class LoadJobs:
    """By digest, at most one each, from its start until its end is taken. Wakes whoever waits for one to end."""

    def __init__(self, workers: int, on_ended: Callable[[], None], clock: Callable[[], float]) -> None:
        """on_ended: called from a worker thread when a job ends."""
        self._workers = loader_threads(workers, "adapter-load")
        self._on_ended = on_ended
        self._clock = clock
        self._progress = threading.Event()
        self._jobs: dict[str, _Reading | _Copying] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._jobs)

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, digest: object) -> bool:
        return digest in self._jobs

    @property
    def are_under_way(self) -> bool:
        """Whether anything is being read, or has a range of the device that is not published yet."""
        return any(isinstance(load, _Copying) or not load.job.done() for load in self._jobs.values())

    def is_copying(self, digest: str) -> bool:
        return isinstance(self._jobs.get(digest), _Copying)

    def last_read(self) -> str | None:
        """The youngest that has been read and is not being copied yet."""
        done = [digest for digest, load in self._jobs.items() if isinstance(load, _Reading) and load.job.done()]
        return done[-1] if done else None

    def read(self, digest: str, job: Callable[[], PackedAdapter]) -> None:
        began = self._clock()
        self._jobs[digest] = _Reading(self._submit(job), began)

    def copy(self, digest: str, job: Callable[[], None], read: Read) -> None:
        self._jobs[digest] = _Copying(self._submit(job), read)

    def take(self, digest: str) -> Read | Copied | Failed | None:
        """How the adapter's job ended; None: there is none that has. A second job may follow then."""
        load = self._jobs.get(digest)
        if load is None or not load.job.done():
            return None
        del self._jobs[digest]
        if error := load.job.exception():
            return Failed(error, isinstance(load, _Copying))
        if isinstance(load, _Copying):
            return Copied(load.read, load.job.result()[1])
        packed, seconds = load.job.result()
        return Read(packed, load.began, seconds)

    def wait(self, timeout_seconds: float) -> bool:
        """Sleep until a job ended since the last call, or the time is over (False)."""
        ended = self._progress.wait(timeout_seconds)
        self._progress.clear()
        return ended

    def close(self) -> None:
        """Wait for the jobs that run and drop those that do not."""
        self._workers.shutdown(wait=True, cancel_futures=True)

    def _submit(self, job: Callable[[], _Result]) -> Future[tuple[_Result, float]]:
        future = self._workers.submit(_timed, job)
        future.add_done_callback(self._tell_progress)
        return future

    def _tell_progress(self, _: Future[Any]) -> None:
        self._progress.set()
        self._on_ended()


def _timed(job: Callable[[], _Result]) -> tuple[_Result, float]:
    """Its result, and the seconds that it ran."""
    began = time.perf_counter()
    return job(), time.perf_counter() - began

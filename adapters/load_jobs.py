"""The two jobs of a load beside the engine's thread: from the disk to the host's memory, and from there to the device.

Knows threads and times. Knows no tier's bookkeeping: what a job was for is `residency`'s.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
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


@dataclass(frozen=True, slots=True)
class Reading:
    job: Future[tuple[PackedAdapter, float]]
    began: float

    def result(self) -> Read:
        """Once the job is done, and did not fail."""
        packed, seconds = self.job.result()
        return Read(packed, self.began, seconds)


@dataclass(frozen=True, slots=True)
class Copying:
    job: Future[tuple[None, float]]
    read: Read

    def seconds(self) -> float:
        """That the copy took, once it is done, and did not fail."""
        return self.job.result()[1]


class LoadJobs:
    """Runs them, and wakes whoever waits for one to end."""

    def __init__(self, workers: int, on_ended: Callable[[], None], clock: Callable[[], float]) -> None:
        """on_ended: called from a worker thread when a job ends."""
        self._workers = loader_threads(workers, "adapter-load")
        self._on_ended = on_ended
        self._clock = clock
        self._progress = threading.Event()

    def read(self, job: Callable[[], PackedAdapter]) -> Reading:
        began = self._clock()
        return Reading(self._submit(job), began)

    def copy(self, job: Callable[[], None], read: Read) -> Copying:
        return Copying(self._submit(job), read)

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

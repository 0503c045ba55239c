"""Where an adapter is, how it came there and when it was used: plain data, as the residency tells it.

Knows no tensor, so that the API process may read it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal, NamedTuple

MAX_REMEMBERED = 16_384
"""Adapters whose loads and uses are remembered; of more, the least recently seen are forgotten."""


class LoadTimes(NamedTuple):
    """Seconds that a load took. `read`: from the disk, 0 where the host's memory had it. `copy`: to the device.

    `total`: both and the waits between them, to the moment from which the adapter can be leased.
    """

    read: float
    copy: float
    total: float


class Whereabouts(NamedTuple):
    """One adapter: the bytes that it takes in each tier, 0 where it is not; `pins`: tenants that keep it there.

    `leases`: running sequences that hold it. `pinned_seconds`: until the last pin ends. `loads`: times that it came to
    the device; `last_used_at`: Unix time at which a sequence last got it, both as far as they are remembered.
    """

    digest: str
    device_bytes: int = 0
    host_bytes: int = 0
    leases: int = 0
    is_loading: bool = False
    pins: int = 0
    pinned_seconds: float = 0.0
    loads: int = 0
    last_load: LoadTimes | None = None
    last_used_at: float | None = None


class Movement(NamedTuple):
    """An adapter came to the device, and what that took, or lost its place there. `number`: how many there were before
    it and itself; `at`: Unix time."""

    number: int
    at: float
    kind: Literal["load", "eviction"]
    digest: str
    load: LoadTimes | None = None


class Refusal(NamedTuple):
    """Why something that was asked about an adapter is not done: a stable code, and a message for whoever asked."""

    code: str
    message: str


@dataclass(slots=True)
class _Memory:
    loads: int = 0
    last_load: LoadTimes | None = None
    loaded_at: float = float("-inf")
    last_used_at: float | None = None


class UseHistory:
    """Loads and uses by digest."""

    def __init__(self) -> None:
        self._memories: OrderedDict[str, _Memory] = OrderedDict()

    def record_load(self, digest: str, times: LoadTimes, loaded_at: float) -> None:
        memory = self._of(digest)
        memory.loads += 1
        memory.last_load, memory.loaded_at = times, loaded_at

    def record_use(self, digest: str, used_at: float) -> None:
        self._of(digest).last_used_at = used_at

    def load_since(self, digest: str, moment: float) -> tuple[float, LoadTimes] | None:
        """When its last load ended, and what it took, if that was after the moment."""
        memory = self._memories.get(digest)
        if memory is None or memory.last_load is None or memory.loaded_at <= moment:
            return None
        return memory.loaded_at, memory.last_load

    def told(self, whereabouts: Whereabouts) -> Whereabouts:
        """With what is remembered of the adapter."""
        memory = self._memories.get(whereabouts.digest, _Memory())
        return whereabouts._replace(loads=memory.loads, last_load=memory.last_load, last_used_at=memory.last_used_at)

    def _of(self, digest: str) -> _Memory:
        memory = self._memories.setdefault(digest, _Memory())
        self._memories.move_to_end(digest)
        if len(self._memories) > MAX_REMEMBERED:
            self._memories.popitem(last=False)
        return memory

"""Adapters in device memory: one flat tensor, handed out by true size, to whoever leases.

Knows offsets, leases and recency; knows no file and no layout inside an adapter. Bookkeeping is the engine thread's;
only the closure that `begin_copy` returns runs elsewhere, and it touches only a range that nobody else may read yet.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from loraplex.adapters.device_adapter import DeviceAdapter
from loraplex.adapters.errors import AdapterUnavailable
from loraplex.adapters.layout import ALIGN_BYTES
from loraplex.adapters.weights import PackedAdapter
from loraplex.adapters.whereabouts import LoadTimes, Movement

RECENT_MOVEMENTS = 256


@dataclass(frozen=True, slots=True)
class Resident:
    """One adapter in the pool, for inspection."""

    digest: str
    size_bytes: int
    leases: int
    is_loading: bool


@dataclass(slots=True)
class _Block:
    """adapter, packed: once it is loaded; packed with the weights where they lie in the pool."""

    start: int  # elements
    length: int
    leases: int = 0
    adapter: DeviceAdapter | None = None
    packed: PackedAdapter | None = None

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def is_ready(self) -> bool:
        return self.adapter is not None

    @property
    def is_evictable(self) -> bool:
        return self.is_ready and self.leases == 0


class DevicePool:
    """The pool. An adapter that is leased or being loaded is never evicted, and never moved."""

    def __init__(self, capacity_bytes: int, device: torch.device, dtype: torch.dtype) -> None:
        self._align = ALIGN_BYTES // dtype.itemsize
        self._capacity = capacity_bytes // ALIGN_BYTES * self._align
        # zeros: on a CPU this has the system hand the memory out now, and not a page at a time in the first copies
        self.pool = torch.zeros(self._capacity, dtype=dtype, device=device)
        """[elements] flat: `LoraBatch.pool`"""
        self.loads = 0
        self.evictions = 0
        self.movements: deque[Movement] = deque(maxlen=RECENT_MOVEMENTS)
        self._blocks: OrderedDict[str, _Block] = OrderedDict()  # least recently used first
        self._copy_stream = _new_stream(device) if device.type == "cuda" else None

    @property
    def capacity_bytes(self) -> int:
        return self.pool.nbytes

    @property
    def used_bytes(self) -> int:
        return sum(block.length for block in self._blocks.values()) * self.pool.itemsize

    @property
    def num_leases(self) -> int:
        return sum(block.leases for block in self._blocks.values())

    def allocate(
        self,
        digest: str,
        elements: int,
        *,
        keep: Container[str] = (),
        worth: Callable[[str], float] = lambda digest: 0.0,
    ) -> int | None:
        """A range for an adapter that is about to be loaded: its offset, in elements.

        Evicts adapters without leases until a hole is large enough, those of least worth first and among equals the
        least recently used; never one of `keep`, and none if that would not help: then None, until leases end. Raises
        AdapterUnavailable if the adapter is larger than the pool.
        """
        assert digest not in self._blocks
        length = -(-elements // self._align) * self._align
        if length > self._capacity:
            raise AdapterUnavailable(
                f"this adapter takes {self.bytes_for(elements)} bytes of device memory and all adapters together have "
                f"{self.capacity_bytes}; raise --adapter-device-bytes or upload one of a smaller rank"
            )
        victims = [name for name, block in self._blocks.items() if block.is_evictable and name not in keep]
        staying = self._blocks.keys() - victims
        if self._first_hole(length, [self._blocks[name] for name in staying]) is None:
            return None
        leaving = iter(sorted(victims, key=worth))
        while (start := self._first_hole(length, self._blocks.values())) is None:
            self.evict(next(leaving))
        self._blocks[digest] = _Block(start, length)
        return start

    def begin_copy(self, digest: str, packed: PackedAdapter) -> Callable[[], None]:
        """The copy into a range allocated before, to be run on any thread; when it returns, the weights are there."""
        block = self._blocks[digest]
        assert not block.is_ready
        target = slice(block.start, block.start + packed.weights.numel())
        if self._copy_stream is None:
            return lambda: self._copy_on_cpu(target, packed.weights)
        # a step that was launched before may still read the range's last adapter
        free_to_write = _new_event()
        free_to_write.record(torch.cuda.current_stream(self.pool.device))
        return lambda: self._copy_on_stream(target, packed.weights, free_to_write)

    def publish(self, digest: str, packed: PackedAdapter, times: LoadTimes | None = None) -> None:
        """The copy is complete: the adapter can be leased. times: what the load took."""
        block = self._blocks[digest]
        assert not block.is_ready
        self._place(digest, block, packed)
        self._blocks.move_to_end(digest)
        self.loads += 1
        self.movements.append(Movement(self.loads + self.evictions, time.time(), "load", digest, times))

    def discard(self, digest: str) -> None:
        """The load failed: its range is free again."""
        assert not self._blocks[digest].is_ready
        del self._blocks[digest]

    def is_ready(self, digest: str) -> bool:
        return digest in self._blocks and self._blocks[digest].is_ready

    def lease(self, digest: str) -> DeviceAdapter:
        """Keep a ready adapter where it is until as many releases follow as there were leases."""
        block = self._blocks[digest]
        assert block.adapter is not None, "leased before it was loaded"
        block.leases += 1
        self._blocks.move_to_end(digest)
        return block.adapter

    def release(self, digest: str) -> None:
        block = self._blocks[digest]
        assert block.leases > 0, "released more often than leased"
        block.leases -= 1

    def evict(self, digest: str) -> bool:
        """Give an adapter's range back at once. False if it is not there, leased, or being loaded."""
        block = self._blocks.get(digest)
        if block is None or not block.is_evictable:
            return False
        del self._blocks[digest]
        self.evictions += 1
        self.movements.append(Movement(self.loads + self.evictions, time.time(), "eviction", digest))
        return True

    def gather(self, elements: int, movable: Container[str]) -> bool:
        """Move those of `movable` that nobody leases to the end, evicting what is in the way, where a hole for so many
        elements could then be had by evictions. False: it could not, or they lie there already, and nothing happened.

        On the thread and, on a GPU, in the stream of the steps: what was launched before still reads the old place.
        """
        moves: dict[str, int] = {}  # from the end down, so that none is written over another that stays
        staying: list[_Block] = []
        end = self._capacity
        blocks = sorted(self._blocks.items(), key=lambda item: item[1].start, reverse=True)
        for digest, block in blocks:
            if block.is_evictable and digest not in movable:
                continue
            start = end - block.length if block.is_evictable else block.start
            if start != block.start:
                moves[digest] = start
            staying.append(_Block(start, block.length))
            end = start
        if not moves or self._first_hole(elements, staying) is None:
            return False
        for digest, start in moves.items():
            self._move(digest, start)
        return True

    def find(self, digest: str) -> Resident | None:
        block = self._blocks.get(digest)
        return None if block is None else self._resident(digest, block)

    def residents(self) -> tuple[Resident, ...]:
        """Least recently used first."""
        return tuple(self._resident(digest, block) for digest, block in self._blocks.items())

    def size_bytes(self, digest: str) -> int:
        """What an adapter that is here takes."""
        return self._blocks[digest].length * self.pool.itemsize

    def bytes_for(self, elements: int) -> int:
        """What an adapter of so many elements takes."""
        return -(-elements // self._align) * self._align * self.pool.itemsize

    def check_integrity(self) -> None:
        """Assert what must hold after every operation."""
        end = 0
        for block in sorted(self._blocks.values(), key=lambda block: block.start):
            assert block.start >= end, "two adapters overlap"
            assert block.start % self._align == 0
            assert block.leases == 0 or block.is_ready
            end = block.end
        assert end <= self._capacity, "an adapter ends beyond the pool"

    def _resident(self, digest: str, block: _Block) -> Resident:
        return Resident(digest, self.size_bytes(digest), block.leases, not block.is_ready)

    def _place(self, digest: str, block: _Block, packed: PackedAdapter) -> None:
        """The adapter's weights lie in the block."""
        block.adapter = DeviceAdapter.of(digest, packed, block.start, self.pool)
        block.packed = replace(packed, weights=self.pool[block.start : block.start + packed.weights.numel()])

    def _move(self, digest: str, start: int) -> None:
        block = self._blocks[digest]
        assert block.is_evictable
        assert block.packed is not None
        for other, between in list(self._blocks.items()):
            if other != digest and between.start < start + block.length and start < between.end:
                self.evict(other)
        weights = block.packed.weights
        if start < block.end:  # to where it lies partly itself
            weights = weights.clone()
        with torch.inference_mode():
            self.pool[start : start + weights.numel()].copy_(weights)
        block.start = start
        self._place(digest, block, block.packed)

    def _holes(self, blocks: Iterable[_Block]) -> Iterator[tuple[int, int]]:
        """(start, length) of what lies free between the given blocks. Free neighbours are one hole by construction."""
        start = 0
        for block in sorted(blocks, key=lambda block: block.start):
            yield start, block.start - start
            start = block.end
        yield start, self._capacity - start

    def _first_hole(self, length: int, blocks: Iterable[_Block]) -> int | None:
        return next((start for start, free in self._holes(blocks) if free >= length), None)

    def _copy_on_cpu(self, target: slice, weights: Tensor) -> None:
        with torch.inference_mode():  # the pool may have been made in it, and then refuses writes from outside
            self.pool[target].copy_(weights)

    def _copy_on_stream(self, target: slice, weights: Tensor, free_to_write: torch.cuda.Event) -> None:
        assert self._copy_stream is not None
        with torch.inference_mode(), torch.cuda.stream(self._copy_stream):
            self._copy_stream.wait_event(free_to_write)
            self.pool[target].copy_(weights, non_blocking=True)
            copied = _new_event()
            copied.record(self._copy_stream)
        copied.synchronize()


def _new_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no annotations here


def _new_event() -> torch.cuda.Event:
    """One whose `synchronize` sleeps instead of spinning beside the step loop."""
    return torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # torch has no annotations here

"""Adapters in device memory: one flat tensor, handed out by true size, to whoever leases.

Knows offsets, leases and recency; knows no file and no layout inside an adapter. Bookkeeping is the engine thread's;
only the closure that `begin_copy` returns runs elsewhere, and it touches only a range that nobody else may read yet.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

import torch
from torch import Tensor

from loraplex.adapters.errors import AdapterUnavailable
from loraplex.adapters.layout import ALIGN_BYTES, MAX_SLICES, NOWHERE, Vocabulary, views
from loraplex.adapters.weights import PackedAdapter


@dataclass(frozen=True, slots=True)
class DeviceAdapter:
    """An adapter that kernels may read.

    table      [num_sites + 1, TABLE_COLUMNS] int64 on the CPU: LoraBatch's rows, offsets into the pool
    max_rank   the largest sum of a row's ranks, of the layers' sites; head_rank: that of the head
    has_vectors, head_has_vectors: whether a site of the layers, or the head, has a gain or a shift
    vocabulary: what it has of its own at the ends of the model
    is_additive: see `types.AdapterSpec.is_additive`
    """

    digest: str
    table: Tensor
    max_rank: int
    size_bytes: int
    head_rank: int = 0
    has_vectors: bool = False
    head_has_vectors: bool = False
    vocabulary: Vocabulary | None = None
    is_additive: bool = True

    @property
    def touches_head(self) -> bool:
        return self.head_rank > 0 or self.head_has_vectors

    @property
    def is_lora_of_layers(self) -> bool:
        """Whether A and B at the sites of the layers are all there is to it."""
        return not (self.has_vectors or self.touches_head or self.vocabulary)


@dataclass(frozen=True, slots=True)
class Resident:
    """One adapter in the pool, for inspection."""

    digest: str
    size_bytes: int
    leases: int
    is_loading: bool


class _State(Enum):
    LOADING = auto()
    READY = auto()


@dataclass(slots=True)
class _Block:
    start: int  # elements
    length: int
    state: _State = _State.LOADING
    leases: int = 0
    adapter: DeviceAdapter | None = None

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def is_evictable(self) -> bool:
        return self.state is _State.READY and self.leases == 0


class DevicePool:
    """The pool. An adapter that is leased or being loaded is never evicted, and none is ever moved."""

    def __init__(self, capacity_bytes: int, device: torch.device, dtype: torch.dtype) -> None:
        self._align = ALIGN_BYTES // dtype.itemsize
        self._capacity = capacity_bytes // ALIGN_BYTES * self._align
        # zeros: on a CPU this has the system hand the memory out now, and not a page at a time in the first copies
        self.pool = torch.zeros(self._capacity, dtype=dtype, device=device)
        """[elements] flat: `LoraBatch.pool`"""
        self.loads = 0
        self.evictions = 0
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
            itemsize = self.pool.itemsize
            raise AdapterUnavailable(
                f"this adapter takes {length * itemsize} bytes of device memory and all adapters together have "
                f"{self._capacity * itemsize}; raise --adapter-device-bytes or upload one of a smaller rank"
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
        assert block.state is _State.LOADING
        target = slice(block.start, block.start + packed.weights.numel())
        if self._copy_stream is None:
            return lambda: self._copy_on_cpu(target, packed.weights)
        # a step that was launched before may still read the range's last adapter
        free_to_write = _new_event()
        free_to_write.record(torch.cuda.current_stream(self.pool.device))
        return lambda: self._copy_on_stream(target, packed.weights, free_to_write)

    def publish(self, digest: str, packed: PackedAdapter) -> None:
        """The copy is complete: the adapter can be leased."""
        block = self._blocks[digest]
        assert block.state is _State.LOADING
        weights = self.pool[block.start : block.start + packed.weights.numel()]
        vocabulary = views(packed.vocabulary, packed.shares_rows, weights)
        block.adapter = _device_adapter(digest, packed, block.start, vocabulary)
        block.state = _State.READY
        self._blocks.move_to_end(digest)
        self.loads += 1

    def discard(self, digest: str) -> None:
        """The load failed: its range is free again."""
        assert self._blocks[digest].state is _State.LOADING
        del self._blocks[digest]

    def is_ready(self, digest: str) -> bool:
        return digest in self._blocks and self._blocks[digest].state is _State.READY

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
        return True

    def residents(self) -> tuple[Resident, ...]:
        """Least recently used first."""
        return tuple(
            Resident(digest, block.length * self.pool.itemsize, block.leases, block.state is _State.LOADING)
            for digest, block in self._blocks.items()
        )

    def check_integrity(self) -> None:
        """Assert what must hold after every operation."""
        end = 0
        for block in sorted(self._blocks.values(), key=lambda block: block.start):
            assert block.start >= end, "two adapters overlap"
            assert block.start % self._align == 0
            assert block.leases == 0 or block.state is _State.READY
            assert (block.adapter is not None) == (block.state is _State.READY)
            end = block.end
        assert end <= self._capacity, "an adapter ends beyond the pool"

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


def _device_adapter(digest: str, packed: PackedAdapter, start: int, vocabulary: Vocabulary | None) -> DeviceAdapter:
    ranks = packed.table[:, 2 : 2 + MAX_SLICES].sum(1).tolist()
    is_there = packed.table[:, 2 + MAX_SLICES :] != NOWHERE
    has_vectors, has_gain = is_there.any(1).tolist(), bool(is_there[:, 0].any())
    table = packed.table.clone()
    table[:, :2] += start
    vectors = table[:, 2 + MAX_SLICES :]
    vectors += (vectors != NOWHERE) * start
    return DeviceAdapter(
        digest,
        table,
        max_rank=max(ranks[:-1]),
        size_bytes=packed.size_bytes,
        head_rank=ranks[-1],
        has_vectors=any(has_vectors[:-1]),
        head_has_vectors=has_vectors[-1],
        vocabulary=vocabulary,
        is_additive=not has_gain and (vocabulary is None or vocabulary.is_additive),
    )


def _new_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no annotations here


def _new_event() -> torch.cuda.Event:
    """One whose `synchronize` sleeps instead of spinning beside the step loop."""
    return torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # torch has no annotations here

"""Which rows of a step use which adapter: runs of neighbours, and the work lists that kernels read.

Knows sequences and their leases; knows no tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from loraplex.adapters.device_pool import DeviceAdapter
from loraplex.engine.scheduler import Chunk
from loraplex.engine.sequence import Sequence as EngineSequence
from loraplex.kernels.ops import LONG_WORK_TOKENS, WORK_TOKENS, scale_bits

Entry = tuple[int, int, int, int]
"""An entry of `ops.LoraBatch.work`."""

PADDING: Entry = (0, 0, 0, 0)


class Span(NamedTuple):
    """Rows first .. end - 1, of tokens or of logits, are one sequence's, the first of them at this position of it."""

    sequence: EngineSequence
    position: int
    first: int
    end: int


def token_spans(chunks: Sequence[Chunk], starts: Sequence[int]) -> list[Span]:
    """Of the step's tokens. starts: the first token of each chunk, and where the last one ends."""
    return [
        Span(chunk.sequence, chunk.start, first, end)
        for chunk, first, end in zip(chunks, starts, starts[1:], strict=False)
    ]


def logit_spans(chunks: Sequence[Chunk]) -> list[Span]:
    """Of the rows of logits, one for every chunk that samples."""
    sampling = (chunk for chunk in chunks if chunk.samples)
    return [Span(chunk.sequence, chunk.start + chunk.count - 1, row, row + 1) for row, chunk in enumerate(sampling)]


@dataclass(slots=True)
class Run:
    """Rows first .. end - 1 of the step, all with one adapter at one scale."""

    adapter: DeviceAdapter
    scale: float
    first: int
    end: int

    def entries(self, row: int, most_tokens: int) -> Iterator[Entry]:
        bits = scale_bits(self.scale)
        for start in range(self.first, self.end, most_tokens):
            yield row, start, min(most_tokens, self.end - start), bits


def runs_of(place: int, spans: Sequence[Span], concerns: Callable[[DeviceAdapter], bool]) -> list[Run]:
    """The runs of those adapters at this place of their sequences that are concerned, in the order of rows."""
    runs: list[Run] = []
    for sequence, position, first, end in spans:
        if len(sequence.leases) <= place:
            continue
        adapter, use = sequence.leases[place], sequence.adapters[place]
        if use.start > position:
            first += use.start - position
            if first >= end:
                continue
        last = runs[-1] if runs else None
        if last is not None and last.adapter is adapter and (last.scale, last.end) == (use.scale, first):
            last.end = end
        elif concerns(adapter):
            runs.append(Run(adapter, use.scale, first, end))
    return runs


@dataclass(frozen=True, slots=True)
class WorkLists:
    """Entries of short runs, of long ones, and of these again as long work."""

    short: list[Entry]
    rest: list[Entry]
    long_work: list[Entry]


def work_lists(runs: Sequence[Run], row_of: Callable[[DeviceAdapter], int], *, only_short: bool) -> WorkLists:
    """row_of: an adapter's row in the table."""
    lists = WorkLists([], [], [])
    for run in runs:
        row = row_of(run.adapter)
        if run.end - run.first < LONG_WORK_TOKENS or only_short:
            lists.short.extend(run.entries(row, WORK_TOKENS))
        else:
            lists.rest.extend(run.entries(row, WORK_TOKENS))
            lists.long_work.extend(run.entries(row, LONG_WORK_TOKENS))
    return lists

"""Which rows of a step use which adapter: runs of neighbours, and the work lists that kernels read.

Knows sequences and their leases; knows no tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from loraplex.adapters.device_adapter import DeviceAdapter
from loraplex.engine.sequence import Sequence as EngineSequence
from loraplex.engine.step_plan import Chunk
from loraplex.kernels.ops import LONG_WORK_TOKENS, WORK_TOKENS, scale_bits

Entry = tuple[int, int, int, int]
"""An entry of `ops.LoraBatch.work`."""

PADDING: Entry = (0, 0, 0, 0)

Span = tuple[EngineSequence, int, int, int]
"""(sequence, position, first, end): rows first .. end - 1, of tokens or of logits, are those of a sequence that has
adapters, and the first of them is at this position of it."""

_scale_bits = lru_cache(maxsize=256)(scale_bits)


def token_spans(chunks: Sequence[Chunk], starts: Sequence[int]) -> list[Span]:
    """Of the step's tokens. starts: the first token of each chunk, and where the last one ends."""
    rows = zip(chunks, starts, starts[1:], strict=False)
    return [(chunk.sequence, chunk.start, first, end) for chunk, first, end in rows if chunk.sequence.leases]


def logit_spans(chunks: Sequence[Chunk]) -> list[Span]:
    """Of the rows of logits, one for every chunk that samples."""
    rows = enumerate(chunk for chunk in chunks if chunk.samples)
    return [(c.sequence, c.start + c.count - 1, row, row + 1) for row, c in rows if c.sequence.leases]


@dataclass(slots=True)
class Run:
    """Rows first .. end - 1 of the step, all with one adapter at one scale."""

    adapter: DeviceAdapter
    scale: float
    first: int
    end: int

    def entries(self, row: int, most_tokens: int) -> list[Entry]:
        bits, end = _scale_bits(self.scale), self.end
        return [(row, start, min(most_tokens, end - start), bits) for start in range(self.first, end, most_tokens)]


def runs_by_place(spans: Sequence[Span]) -> list[list[Run]]:
    """The runs of the first adapters of their sequences, of the second ones, and so on, each in the order of rows."""
    runs: list[list[Run]] = []
    while spans:
        runs.append(_runs_of(len(runs), spans))
        spans = [span for span in spans if len(span[0].leases) > len(runs)]
    return runs


def _runs_of(place: int, spans: Sequence[Span]) -> list[Run]:
    """Every span's sequence has an adapter at this place."""
    runs: list[Run] = []
    last: Run | None = None
    for sequence, position, first, end in spans:
        adapter, (_, scale, start) = sequence.leases[place], sequence.adapters[place]
        if start > position:
            first += start - position
            if first >= end:
                continue
        if last is not None and last.adapter is adapter and last.end == first and last.scale == scale:
            last.end = end
        else:
            last = Run(adapter, scale, first, end)
            runs.append(last)
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

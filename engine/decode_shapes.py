"""The few shapes that decode steps are padded to, so that a recorded step serves many of them.

Knows step plans; knows no tensors.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from loraplex.engine.step_plan import StepPlan

FIRST_PAGES = 64
PAGES_GROWTH = 4
FIRST_LORA_RANK = 48  # rank 16 on three slices that share an input


@dataclass(frozen=True, slots=True)
class DecodeShape:
    """Sizes of a padded decode step: sequences of one token each, the page table's width, and the largest sum of ranks
    at one site, 0 for a step without adapters."""

    rows: int
    pages: int
    lora_rank: int


class DecodeShapes:
    """Rows 1, 2, 4, then multiples of 8; widths that grow by four; ranks that double."""

    def __init__(self, max_num_seqs: int, max_pages: int) -> None:
        self.max_rows = max_num_seqs
        sizes = [1, 2, 4, *range(8, max_num_seqs, 8)]
        self._rows = [size for size in sizes if size < max_num_seqs] + [max_num_seqs]
        self._pages = [max_pages]
        while (pages := FIRST_PAGES * PAGES_GROWTH ** (len(self._pages) - 1)) < max_pages:
            self._pages.insert(-1, pages)

    def shape_of(self, plan: StepPlan) -> DecodeShape | None:
        """The smallest shape that holds the step; None when it is not one new token for every sequence, of one adapter
        at most, which has nothing but A and B."""
        if not all(chunk.count == 1 and chunk.samples and len(chunk.sequence.leases) < 2 for chunk in plan.chunks):
            return None
        leases = [lease for chunk in plan.chunks for lease in chunk.sequence.leases]
        if not all(lease.is_lora_of_layers for lease in leases):
            return None
        pages = max(len(chunk.sequence.pages) for chunk in plan.chunks)
        rank = max((lease.max_rank for lease in leases), default=0)
        return DecodeShape(
            self._rows[bisect_left(self._rows, len(plan.chunks))],
            self._pages[bisect_left(self._pages, pages)],
            _padded_rank(rank),
        )


def _padded_rank(rank: int) -> int:
    if rank == 0:
        return 0
    padded = FIRST_LORA_RANK
    while padded < rank:
        padded *= 2
    return padded

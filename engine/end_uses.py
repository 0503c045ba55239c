"""What the adapters of a step do at the two ends of the model: before its first layer and after its last.

Knows runs of rows; knows no arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from loraplex.adapters.vocabulary import Vocabulary
from loraplex.engine.lora_work import Run
from loraplex.kernels.ops import LoraBatch


class VocabularyUse(NamedTuple):
    """Rows first .. end - 1, of tokens or of logits, use an adapter's part of the embedding or the head, at a scale."""

    vocabulary: Vocabulary
    scale: float
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class EndUses:
    """At the two ends of the model. head_lora: as BatchInputs.lora, over rows of logits."""

    embedding: tuple[VocabularyUse, ...] = ()
    head_lora: tuple[LoraBatch, ...] = ()
    head: tuple[VocabularyUse, ...] = ()


def vocabulary_uses(runs: Iterable[Iterable[Run]], has: Callable[[Vocabulary], bool]) -> tuple[VocabularyUse, ...]:
    """runs: as `runs_by_place` gives them."""
    return tuple(
        VocabularyUse(vocabulary, run.scale, run.first, run.end)
        for run in chain.from_iterable(runs)
        if (vocabulary := run.adapter.vocabulary) is not None and has(vocabulary)
    )

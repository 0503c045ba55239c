"""An adapter on the device, as the engine knows it while it holds a lease.

Knows the table and what can be read off it; knows no pool's bookkeeping and no sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from loraplex.adapters.layout import MAX_SLICES, NOWHERE
from loraplex.adapters.vocabulary import Vocabulary
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

    @classmethod
    def of(cls, digest: str, packed: PackedAdapter, start: int, pool: Tensor) -> DeviceAdapter:
        """start: where in the pool its weights begin."""
        table = packed.table.clone()
        ranks = table[:, 2 : 2 + MAX_SLICES].sum(1).tolist()
        vectors = table[:, 2 + MAX_SLICES :]
        is_there = vectors != NOWHERE
        has_vectors, has_gain = is_there.any(1).tolist(), bool(is_there[:, 0].any())
        table[:, :2] += start
        vectors += is_there * start
        weights = pool[start : start + packed.weights.numel()]
        vocabulary = None if packed.vocabulary is None else packed.vocabulary.views(weights)
        return cls(
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

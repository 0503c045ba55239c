"""A step plan as flat tensors: token ids, positions, page tables, LoRA work list, sampling parameters.

Knows sequences and tensors; knows no model. Everything is put together in numpy and copied to the device once.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from loraplex.adapters.device_pool import DeviceAdapter
from loraplex.engine.scheduler import Chunk, StepPlan
from loraplex.engine.sequence import Sequence
from loraplex.kernels.ops import WORK_TOKENS, AttentionBatch, LoraBatch, SamplingBatch


@dataclass(frozen=True, slots=True)
class BatchInputs:
    """All that a forward pass needs to know about the step.

    token_ids, positions  [tokens] int64
    sample_rows           [rows] int64: the tokens whose logits are wanted, one per chunk that samples
    lora                  None when no row has an adapter
    """

    token_ids: Tensor
    positions: Tensor
    attention: AttentionBatch
    lora: LoraBatch | None
    sample_rows: Tensor
    sampling: SamplingBatch


class BatchBuilder:
    """Builds the inputs of a step on one device."""

    def __init__(self, device: torch.device, page_tokens: int, adapter_pool: Tensor) -> None:
        self._device = device
        self._page_tokens = page_tokens
        self._adapter_pool = adapter_pool
        self._last_table: tuple[list[DeviceAdapter], Tensor] = ([], torch.empty(0))

    def build(self, plan: StepPlan) -> BatchInputs:
        chunks = plan.chunks
        counts = np.array([chunk.count for chunk in chunks], dtype=np.int32)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        positions = np.concatenate([np.arange(c.start, c.start + c.count, dtype=np.int64) for c in chunks])
        token_ids = np.concatenate([c.sequence.tokens[c.start : c.start + c.count] for c in chunks]).astype(np.int64)
        samplers = [(chunk.sequence, row) for chunk, row in zip(chunks, starts[1:] - 1, strict=True) if chunk.samples]
        return BatchInputs(
            token_ids=self._copy(token_ids),
            positions=self._copy(positions),
            attention=self._attention(chunks, counts, starts, positions),
            lora=self._lora(chunks, starts),
            sample_rows=self._copy(np.array([row for _, row in samplers], dtype=np.int64)),
            sampling=self._sampling([sequence for sequence, _ in samplers]),
        )

    def _attention(
        self, chunks: tuple[Chunk, ...], counts: np.ndarray, starts: np.ndarray, positions: np.ndarray
    ) -> AttentionBatch:
        context_lens = np.array([chunk.start + chunk.count for chunk in chunks], dtype=np.int32)
        width = max(len(chunk.sequence.pages) for chunk in chunks)
        page_tables = np.zeros((len(chunks), width), dtype=np.int32)
        for row, chunk in enumerate(chunks):
            page_tables[row, : len(chunk.sequence.pages)] = chunk.sequence.pages
        pages = page_tables[np.repeat(np.arange(len(chunks)), counts), positions // self._page_tokens]
        slots = pages.astype(np.int64) * self._page_tokens + positions % self._page_tokens
        return AttentionBatch(
            query_starts=self._copy(starts),
            context_lens=self._copy(context_lens),
            page_tables=self._copy(page_tables),
            slots=self._copy(slots),
            max_query_len=int(counts.max()),
            max_context_len=int(context_lens.max()),
        )

    def _lora(self, chunks: tuple[Chunk, ...], starts: np.ndarray) -> LoraBatch | None:
        """Chunks of one adapter are neighbours, so each adapter owns one run of tokens, cut into work entries."""
        adapters: list[DeviceAdapter] = []
        work: list[tuple[int, int, int]] = []
        rows = zip(chunks, starts[:-1].tolist(), starts[1:].tolist(), strict=True)
        for lease, group in groupby(rows, key=lambda row: row[0].sequence.lease):
            members = list(group)
            if lease is None:
                continue
            first, end = members[0][1], members[-1][2]
            work.extend(
                (len(adapters), start, min(WORK_TOKENS, end - start)) for start in range(first, end, WORK_TOKENS)
            )
            adapters.append(lease)
        if not adapters:
            return None
        return LoraBatch(
            pool=self._adapter_pool,
            table=self._table(adapters),
            work=self._copy(np.array(work, dtype=np.int32)),
            max_rank=max(adapter.max_rank for adapter in adapters),
        )

    def _table(self, adapters: list[DeviceAdapter]) -> Tensor:
        """The adapters' offsets and ranks; decode steps repeat the same adapters, so the last table is kept."""
        kept, table = self._last_table
        if len(kept) != len(adapters) or any(a is not b for a, b in zip(kept, adapters, strict=True)):
            table = torch.stack([adapter.table for adapter in adapters]).to(self._device)
            self._last_table = (adapters, table)
        return table

    def _sampling(self, sequences: list[Sequence]) -> SamplingBatch:
        params = [sequence.sampling for sequence in sequences]
        return SamplingBatch(
            temperature=self._copy(np.array([p.temperature for p in params], dtype=np.float32)),
            top_k=self._copy(np.array([p.top_k for p in params], dtype=np.int32)),
            top_p=self._copy(np.array([p.top_p for p in params], dtype=np.float32)),
            min_p=self._copy(np.array([p.min_p for p in params], dtype=np.float32)),
            uniform=self._copy(np.array([uniform(s.seed, s.generated) for s in sequences], dtype=np.float32)),
            all_greedy=all(p.temperature == 0 for p in params),
        )

    def _copy(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)


def uniform(seed: int, index: int) -> float:
    """The random draw in [0, 1) of a request's index-th token: a hash of the two, so that nothing else has a say.

    splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014), 24 bits kept so that the
    value is exact in fp32 and below 1.
    """
    mask = (1 << 64) - 1
    state = (seed * 0x9E3779B97F4A7C15 + (index + 1) * 0xD1B54A32D192ED03) & mask
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = ((state ^ (state >> shift)) * factor) & mask
    return ((state ^ (state >> 31)) >> 40) / (1 << 24)

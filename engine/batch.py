"""A step plan as flat tensors: token ids, positions, page tables, LoRA work list, sampling parameters.

Knows sequences and tensors; knows no model. Everything is put together in one buffer and copied to the device once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from operator import attrgetter

import numpy as np
import torch
from torch import Tensor

from loraplex.adapters.device_adapter import DeviceAdapter
from loraplex.engine.adapter_table import AdapterTable
from loraplex.engine.decode_shapes import DecodeShape
from loraplex.engine.end_uses import EndUses, vocabulary_uses
from loraplex.engine.events import MAX_ADAPTERS
from loraplex.engine.lora_work import PADDING, Run, Span, logit_spans, runs_by_place, token_spans, work_lists
from loraplex.engine.page_tables import PageTables
from loraplex.engine.prompt_scores import MAX_ROWS, ScoredTokens, scored_spans, scored_tokens
from loraplex.engine.step_buffer import StepBuffer
from loraplex.engine.step_plan import Chunk, StepPlan
from loraplex.kernels.ops import TABLE_COLUMNS, WORK_NUMBERS, WORK_TOKENS, AttentionBatch, LoraBatch, SamplingBatch


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """Tokens of prompts whose logits are wanted for the tokens after them.

    rows         [rows] int64: of the step's tokens        next_tokens  [rows] int64
    ends         what adapters do to the head, over these rows
    """

    tokens: list[ScoredTokens]
    rows: Tensor
    next_tokens: Tensor
    ends: EndUses


@dataclass(frozen=True, slots=True)
class BatchInputs:
    """All that a forward pass needs to know about the step. Valid until the next step is built.

    token_ids, positions  [tokens] int64
    sample_rows           [rows] int64: the tokens whose logits are wanted, one per chunk that samples; in a padded
                          step the padding's follow
    lora                  one for the first adapters of all rows, one for the second ones, and so on; none when no row
                          has an adapter
    ends                  what adapters do before the first layer and after the last one
    sampling, logprob_rows, edited_rows [rows that want it] int64: of the rows of logits that belong to the plan, in its
                          order
    scored                nearly always nothing
    """

    token_ids: Tensor
    positions: Tensor
    attention: AttentionBatch
    lora: tuple[LoraBatch, ...]
    ends: EndUses
    sample_rows: Tensor
    sampling: SamplingBatch
    logprob_rows: Tensor
    edited_rows: Tensor
    scored: tuple[ScoredRows, ...]


@dataclass(frozen=True, slots=True)
class StepLimits:
    """The largest step: chunks, tokens, pages of one sequence."""

    max_chunks: int
    max_step_tokens: int
    max_pages: int


class BatchBuilder:
    """Builds the inputs of a step on one device, always in the same memory.

    spare_page: a page that no sequence ever has, which takes what padding rows write.
    """

    def __init__(
        self,
        device: torch.device,
        page_tokens: int,
        spare_page: int,
        adapter_pool: Tensor,
        num_sites: int,
        limits: StepLimits,
    ) -> None:
        self._page_tokens = page_tokens
        self._spare_page = spare_page
        self._adapter_pool = adapter_pool
        self._buffer = StepBuffer(_capacity_bytes(limits, num_sites), device)
        self._page_tables = PageTables(limits.max_chunks, limits.max_pages)
        self._adapters = AdapterTable(limits.max_chunks * MAX_ADAPTERS, num_sites, TABLE_COLUMNS, device)

    @property
    def copies(self) -> int:
        """Copies from host to device so far: one per step on a GPU, none on a CPU."""
        return self._buffer.copies

    def build(self, plan: StepPlan, shape: DecodeShape | None = None) -> BatchInputs:
        """shape: pad to it; then every tensor but those for sampling lies where the last step of that shape had it.

        A padding row is a sequence of one token on the base whose only page is the spare one.
        """
        self._buffer.clear()
        chunks = plan.chunks
        padding = 0 if shape is None else shape.rows - len(chunks)
        counts = np.array([chunk.count for chunk in chunks] + [1] * padding, dtype=np.int32)
        starts = np.zeros(len(counts) + 1, dtype=np.int32)
        np.cumsum(counts, out=starts[1:])
        token_ids, positions, attention = self._tokens(chunks, counts, starts, None if shape is None else shape.pages)
        sampling_chunks = [row for row, chunk in enumerate(chunks) if chunk.samples]
        sample_rows = self._filled("int64", starts[1:][[*sampling_chunks, *range(len(chunks), len(counts))]] - 1)
        runs = runs_by_place(token_spans(chunks, starts.tolist()))
        lora = self._passes(runs, _LAYERS, shape)
        ends = self._ends(chunks, runs)
        sampling = self._sampling([chunks[row] for row in sampling_chunks])
        sequences = [chunks[row].sequence for row in sampling_chunks]
        logprob_rows = self._rows(s.sampling.logprobs for s in sequences)
        edited_rows = self._rows(s.edits is not None for s in sequences)
        scored = tuple(self._scored(portion) for portion in scored_tokens(chunks, starts.tolist()))
        arrivals = self._adapters.stage(self._buffer)
        self._buffer.copy()
        self._adapters.store(arrivals)
        return BatchInputs(
            token_ids, positions, attention, lora, ends, sample_rows, sampling, logprob_rows, edited_rows, scored
        )

    def _ends(self, chunks: tuple[Chunk, ...], runs: list[list[Run]]) -> EndUses:
        """What adapters change at the ends of the model: nothing, but for few kinds of them."""
        if not any(any(_ENDS(run.adapter)) for of_place in runs for run in of_place):
            return EndUses()
        embedding = vocabulary_uses(runs, lambda vocabulary: vocabulary.changes_embedding)
        return replace(self._head(logit_spans(chunks)), embedding=embedding)

    def _head(self, spans: list[Span]) -> EndUses:
        """What the adapters of rows of logits change at the head."""
        rows = runs_by_place(spans)
        return EndUses(
            head_lora=self._passes(rows, _HEAD),
            head=vocabulary_uses(rows, lambda vocabulary: vocabulary.changes_head),
        )

    def _scored(self, tokens: list[ScoredTokens]) -> ScoredRows:
        rows = np.concatenate([np.arange(part.row, part.row + part.size) for part in tokens])
        next_tokens = np.concatenate([part.next_tokens for part in tokens])
        ends = self._head(scored_spans(tokens))
        return ScoredRows(tokens, self._filled("int64", rows), self._filled("int64", next_tokens), ends)

    def _rows(self, wants: Iterable[bool]) -> Tensor:
        """The rows that want it."""
        return self._filled("int64", np.array([row for row, wanted in enumerate(wants) if wanted], dtype=np.int64))

    def _tokens(
        self, chunks: tuple[Chunk, ...], counts: np.ndarray, starts: np.ndarray, table_width: int | None
    ) -> tuple[Tensor, Tensor, AttentionBatch]:
        """Token ids, positions, and where keys and values lie."""
        num_tokens, num_rows, num_chunks = int(starts[-1]), len(counts), len(chunks)
        first_positions = np.zeros(num_rows, dtype=np.int64)
        first_positions[:num_chunks] = [chunk.start for chunk in chunks]
        ids, token_ids = self._buffer.take("int64", num_tokens)
        ids[: starts[num_chunks]] = [token for chunk in chunks for token in chunk.tokens]
        ids[starts[num_chunks] :] = 0
        places, positions = self._buffer.take("int64", num_tokens)
        row_of_token = np.repeat(np.arange(num_rows), counts)
        places[:] = np.arange(num_tokens) + (first_positions - starts[:-1])[row_of_token]
        slots, device_slots = self._buffer.take("int64", num_tokens)
        query_starts = self._filled("int32", starts)
        contexts, context_lens = self._buffer.take("int32", num_rows)
        contexts[:] = first_positions + counts
        width = table_width or max(len(chunk.sequence.pages) for chunk in chunks)
        table, page_tables = self._buffer.take("int32", num_rows, width)
        table[:num_chunks] = self._page_tables.update(chunk.sequence.pages for chunk in chunks)[:num_chunks, :width]
        table[num_chunks:] = 0
        table[num_chunks:, 0] = self._spare_page
        slots[:] = table[row_of_token, places // self._page_tokens]
        slots *= self._page_tokens
        slots += places % self._page_tokens
        max_context_len = int(contexts.max()) if table_width is None else table_width * self._page_tokens
        batch = AttentionBatch(
            query_starts, context_lens, page_tables, device_slots, int(counts.max()), max_context_len
        )
        return token_ids, positions, batch

    def _passes(self, runs: list[list[Run]], part: _PartOf, shape: DecodeShape | None = None) -> tuple[LoraBatch, ...]:
        """What adapters do to a part of the model: one batch for every place that has work."""
        batches = (self._lora(of_place, part, shape) for of_place in runs)
        return tuple(batch for batch in batches if batch is not None)

    def _lora(self, runs: list[Run], part: _PartOf, shape: DecodeShape | None) -> LoraBatch | None:
        """Chunks of one adapter are neighbours, so that each adapter owns one run of rows, or few, cut into work."""
        parts = [part(run.adapter) for run in runs]
        max_rank = max((rank for rank, _ in parts), default=0)
        has_vectors = any(has for _, has in parts)
        if not (max_rank or has_vectors):
            return None
        at_work = [run for run, has in zip(runs, parts, strict=True) if any(has)]
        lists = work_lists(at_work, self._adapters.row_of, only_short=shape is not None)
        if shape is not None:
            max_rank = shape.lora_rank
            lists.short.extend([PADDING] * (shape.rows - len(lists.short)))
        work = self._filled("int32", np.array(lists.short + lists.rest, dtype=np.int32))
        long_work = self._filled("int32", np.array(lists.long_work, dtype=np.int32)) if lists.long_work else None
        table = self._adapters.tensor
        return LoraBatch(self._adapter_pool, table, work, max_rank, long_work, len(lists.short), has_vectors)

    def _sampling(self, chunks: list[Chunk]) -> SamplingBatch:
        params = [chunk.sequence.sampling for chunk in chunks]
        draws = [
            uniform(c.sequence.seed, c.index) if p.temperature > 0 else 0.0 for c, p in zip(chunks, params, strict=True)
        ]
        return SamplingBatch(
            temperature=self._filled("float32", np.array([p.temperature for p in params], dtype=np.float32)),
            top_k=self._filled("int32", np.array([p.top_k for p in params], dtype=np.int32)),
            top_p=self._filled("float32", np.array([p.top_p for p in params], dtype=np.float32)),
            min_p=self._filled("float32", np.array([p.min_p for p in params], dtype=np.float32)),
            uniform=self._filled("float32", np.array(draws, dtype=np.float32)),
            all_greedy=all(p.temperature == 0 for p in params),
        )

    def _filled(self, dtype: str, values: np.ndarray) -> Tensor:
        array, tensor = self._buffer.take(dtype, *values.shape)
        array[...] = values
        return tensor


_PartOf = Callable[[DeviceAdapter], tuple[int, bool]]
"""What an adapter has at a part of the model: the largest rank, and whether there are gains or shifts."""

_LAYERS: _PartOf = attrgetter("max_rank", "has_vectors")
_HEAD: _PartOf = attrgetter("head_rank", "head_has_vectors")
_ENDS = attrgetter("vocabulary", "head_rank", "head_has_vectors")


def _capacity_bytes(limits: StepLimits, num_sites: int) -> int:
    """The buffer of the largest step, every sequence of it with all the adapters it may have, none seen before."""
    rows = limits.max_chunks
    tokens = max(limits.max_step_tokens, rows)
    entries = rows + tokens // WORK_TOKENS
    per_token = [("int64", (tokens,))] * 3
    portions = tokens // MAX_ROWS + 1  # of tokens that are scored; an array of each takes up to an entry for its place
    per_token += [("int64", (tokens + 2 * portions,))] * 2
    per_row = [("int64", (rows,))] * 3 + [("int32", (rows + 1,))] * 2 + [("float32", (rows,))] * 5
    tables = [("int32", (rows, limits.max_pages))] + [("int64", (num_sites, TABLE_COLUMNS))] * (rows * MAX_ADAPTERS)
    work = [("int32", (entries, WORK_NUMBERS))] * (3 * MAX_ADAPTERS)  # layers, long work, head
    work += [("int32", (entries + 4 * portions, WORK_NUMBERS))] * (2 * MAX_ADAPTERS)  # head of scored rows
    return StepBuffer.bytes_for(*per_token, *per_row, *tables, *work)


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

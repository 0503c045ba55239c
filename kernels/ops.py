"""The tensor operations of one decoder step: their mathematics, shapes, and the facts they need about the batch.

`Kernels` is the contract. Three classes fulfil it: `reference.ReferenceKernels` (plain torch, which defines the result
and is the fallback on any device), `native.NativeKernels` (one C++ file, CPUs) and `triton_backend.TritonKernels`
(GPUs). `select.choose_kernels` picks one, once, at start. Knows tensors; knows no model, sequence or adapter name.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

WORK_TOKENS = 16
"""Most tokens in one entry of a LoRA work list: the row tile of a tensor-core product."""

WORK_NUMBERS = 4
"""Numbers in such an entry."""

LONG_WORK_TOKENS = 128
"""Most tokens in an entry of `LoraBatch.long_work`, and the fewest that an adapter must own to stand there."""

MAX_SLICES = 3
"""Most output slices that share one input (q, k and v)."""

TABLE_COLUMNS = 4 + MAX_SLICES
"""Numbers in a row of `LoraBatch.table`."""


def scale_bits(scale: float) -> int:
    """The scale of a work entry as the int32 that stands in it."""
    bits: int = struct.unpack("<i", struct.pack("<f", scale))[0]
    return bits


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """Which tokens of the step belong to which sequence, and where their keys and values lie.

    query_starts   [num_seqs + 1] int32: sequence s owns the step's tokens query_starts[s] .. query_starts[s+1]
    context_lens   [num_seqs] int32: tokens of the sequence in the cache, this step's included
    page_tables    [num_seqs, max_pages] int32: the pages of a sequence in order; entries past its context are 0
    slots          [tokens] int64: page * page_tokens + offset, where each token's key and value are written
    max_query_len, max_context_len: the largest over the batch
    """

    query_starts: Tensor
    context_lens: Tensor
    page_tables: Tensor
    slots: Tensor
    max_query_len: int
    max_context_len: int


@dataclass(frozen=True, slots=True)
class LoraBatch:
    """Which tokens of the step use which adapter, and where its weights lie. Tokens of base requests stand in no entry.

    pool    [elements] flat, the model's dtype: all adapters' weights
    table   [adapters, sites, TABLE_COLUMNS] int64: offset of A, offset of B, the rank of each slice (0: the adapter
            does not touch it), offset of gain, offset of shift (-1: it has none). With R = the sum of a row's ranks, A
            is [R, in_features] row-major, slice 0's rows first; B is one block per slice, [rank, slice_width] row-major
            (transposed, scaling folded in), one after the other; gain and shift are [sum of slice_widths].
    work    [entries, 4] int32: (row of table, first token, number of tokens 0..WORK_TOKENS, scale), the scale being the
            bits of an fp32. Entries do not overlap; one with 0 tokens is padding and does nothing.
    max_rank: at least the largest R of a row of the table that is in the work list
    long_work  [entries, 4] int32 or None: the tokens of work[num_short:] once more, in entries of up to
            LONG_WORK_TOKENS, for kernels that multiply larger tiles faster. Others read `work` alone.
    has_vectors: whether a row of the table that is in the work list may have a gain or a shift
    """

    pool: Tensor
    table: Tensor
    work: Tensor
    max_rank: int
    long_work: Tensor | None = None
    num_short: int = 0
    has_vectors: bool = False


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """How each row of logits becomes a token.

    temperature  [rows] fp32, 0: greedy          top_k  [rows] int32, 0: off
    top_p        [rows] fp32, 1: off             min_p  [rows] fp32, 0: off
    uniform      [rows] fp32 in [0, 1): the row's random draw
    all_greedy: every temperature is 0, so that arg-max is all there is to do
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    uniform: Tensor
    all_greedy: bool

    def of(self, rows: Tensor) -> SamplingBatch:
        """That of some of its rows, [rows] int64."""
        return SamplingBatch(
            temperature=self.temperature[rows],
            top_k=self.top_k[rows],
            top_p=self.top_p[rows],
            min_p=self.min_p[rows],
            uniform=self.uniform[rows],
            all_greedy=self.all_greedy,
        )


class Linear(Protocol):
    """y = x @ weight.T + bias, with the weight in whatever form is fastest on the device."""

    def __call__(self, x: Tensor) -> Tensor:
        """x [tokens, in_features] -> [tokens, out_features], x's dtype."""


class Kernels(Protocol):
    """All operations work on bf16, fp16 or fp32 and accumulate in fp32. `out` and other arguments said to be written
    are changed in place; no other argument is. Every op accepts 0 tokens."""

    name: str

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """Prepare weight [out_features, in_features] and bias [out_features] once; called at model load.

        Kernels that also take int8 and int4 weights fulfil `quantization.QuantizedKernels`.
        """

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x^2, -1) + eps) * weight.  x [..., width], any row stride; weight [width] -> contiguous."""

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """residual += x (written), then rms_norm(residual).  x, residual [tokens, width] contiguous."""

    def rotary(self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> None:
        """Rotate query [tokens, heads, head_dim] and key [tokens, kv_heads, head_dim] in place (both written).

        With d = rotary width / 2 and h split in halves (h1 = h[:d], h2 = h[d:2d]):
        h1' = h1 cos - h2 sin,  h2' = h2 cos + h1 sin.   cos, sin [max_positions, d] fp32; positions [tokens] int64.
        query and key may be views with a larger token stride (slices of one fused projection); the last two
        dimensions are contiguous.
        """

    def write_kv(self, key: Tensor, value: Tensor, key_pages: Tensor, value_pages: Tensor, slots: Tensor) -> None:
        """key_pages[slot // P, :, slot % P] = key[t] for every token t, and the same for values (pages written).

        key, value [tokens, kv_heads, head_dim], token stride free; pages [num_pages, kv_heads, P, head_dim] contiguous.
        """

    def paged_attention(
        self,
        query: Tensor,
        key_pages: Tensor,
        value_pages: Tensor,
        batch: AttentionBatch,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """Causal attention of every token over its own sequence's pages; prefill chunks and decodes in one call.

        Token i (0-based) of a sequence's q new tokens stands at position p = context_len - q + i and sees the positions
        max(0, p - window + 1) .. p (window None: 0 .. p): out[t] = softmax(scale * query[t] . K) V, query head h using
        KV head h // (heads / kv_heads).  query [tokens, heads, head_dim], token stride free -> same shape, contiguous.
        """

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up.  gate_up [tokens, 2 * width], gate first -> [tokens, width]."""

    def add_lora(self, out: Tensor, x: Tensor, lora: LoraBatch, site: int, slice_widths: tuple[int, ...]) -> None:
        """out[t, slice s] += scale (x[t] @ A_s.T) @ B_s for every token t in the work list (out written in place).

        A_s, B_s: the slice's blocks at `table[row, site]`; scale: of t's entry.  x [tokens, in_features] and
        out [tokens, sum(slice_widths)] contiguous rows, the pool's dtype. The product with A stays in fp32 in between.
        """

    def scale_and_shift(self, out: Tensor, lora: LoraBatch, site: int) -> None:
        """out[t] += scale (out[t] * gain + shift) for every token t in the work list (out written in place).

        gain, shift: at `table[row, site]`, 0 where the adapter has none; scale: of t's entry.  out [tokens, width]
        contiguous, the pool's dtype. Called before `add_lora`, and only where `lora.has_vectors`.
        """

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        """logits [rows, vocab] -> token ids [rows] int64.

        Temperature 0: the first index of the largest logit. Else, with w_i = exp((l_i - max l) / temperature):
        K1 = {i : fewer than top_k logits are strictly larger than l_i};
        K2 = {i in K1 : the w of K1's strictly larger logits sum to less than top_p * sum of w over K1};
        K3 = {i in K2 : w_i >= min_p};
        the id is the first i in vocabulary order at which the running sum of w over K3 exceeds uniform * the whole sum.
        Order of filters: as in Transformers' logits warpers. Ties at a border are all kept.
        """

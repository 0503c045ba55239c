"""The specification of every operation in plain torch: any device, any floating dtype, loops where loops are clearest.

Computes in fp32, or in fp64 for fp64 inputs, which makes it the exact answer that other kernels are tested against.
Also the fallback where no compiler exists. Knows no layout but that of `ops`.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from loraplex.kernels.ops import MAX_SLICES, AttentionBatch, Linear, LoraBatch, SamplingBatch
from loraplex.kernels.quantization import QuantizedWeight


class ReferenceKernels:
    """`ops.Kernels` in plain torch."""

    name = "reference"

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        return partial(functional.linear, weight=weight, bias=bias)

    def quantized_linear(self, weight: QuantizedWeight, bias: Tensor | None) -> Linear:
        return lambda x: functional.linear(x, weight.dequantized(x.dtype), bias)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = _wide(x)
        mean_square = wide.pow(2).mean(-1, keepdim=True)
        return (wide * torch.rsqrt(mean_square + eps) * weight).to(x.dtype).contiguous()

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        residual += x
        return self.rms_norm(residual, weight, eps)

    def rotary(self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> None:
        half_width = cos.shape[1]
        token_cos = cos[positions, None]  # [tokens, 1, half_width]: the same for every head
        token_sin = sin[positions, None]
        for heads in (query, key):
            first = _wide(heads[..., :half_width])
            second = _wide(heads[..., half_width : 2 * half_width])
            rotated = torch.cat((first * token_cos - second * token_sin, second * token_cos + first * token_sin), -1)
            heads[..., : 2 * half_width] = rotated.to(heads.dtype)

    def write_kv(self, key: Tensor, value: Tensor, key_pages: Tensor, value_pages: Tensor, slots: Tensor) -> None:
        page_tokens = key_pages.shape[2]
        page, offset = slots // page_tokens, slots % page_tokens
        key_pages[page, :, offset] = key
        value_pages[page, :, offset] = value

    def paged_attention(
        self,
        query: Tensor,
        key_pages: Tensor,
        value_pages: Tensor,
        batch: AttentionBatch,
        scale: float,
        window: int | None,
    ) -> Tensor:
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        starts = batch.query_starts.tolist()
        for sequence, context_len in enumerate(batch.context_lens.tolist()):
            tokens = slice(starts[sequence], starts[sequence + 1])
            if tokens.start == tokens.stop:
                continue
            page_table = batch.page_tables[sequence]
            keys = _context(key_pages, page_table, context_len)
            values = _context(value_pages, page_table, context_len)
            out[tokens] = _causal_attention(query[tokens], keys, values, scale, window)
        return out

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return (functional.silu(_wide(gate)) * up).to(gate_up.dtype)

    def add_lora(self, out: Tensor, x: Tensor, lora: LoraBatch, site: int, slice_widths: tuple[int, ...]) -> None:
        table = lora.table[:, site].tolist()
        scales = lora.work[:, 3].view(torch.float32).tolist()
        for (row, first_token, num_tokens, _), scale in zip(lora.work.tolist(), scales, strict=True):
            tokens = slice(first_token, first_token + num_tokens)
            a_offset, b_offset, *ranks = table[row][: 2 + MAX_SLICES]
            column = 0
            for rank, width in zip(ranks, slice_widths, strict=False):
                a = lora.pool[a_offset : a_offset + rank * x.shape[1]].view(rank, x.shape[1])
                b = lora.pool[b_offset : b_offset + rank * width].view(rank, width)
                columns = slice(column, column + width)
                delta = scale * (_wide(x[tokens]) @ _wide(a).T @ _wide(b))
                out[tokens, columns] = (out[tokens, columns] + delta).to(out.dtype)
                a_offset, b_offset, column = a_offset + a.numel(), b_offset + b.numel(), column + width

    def scale_and_shift(self, out: Tensor, lora: LoraBatch, site: int) -> None:
        vectors = lora.table[:, site, 2 + MAX_SLICES :].tolist()
        scales = lora.work[:, 3].view(torch.float32).tolist()
        for (row, first_token, num_tokens, _), scale in zip(lora.work.tolist(), scales, strict=True):
            tokens = slice(first_token, first_token + num_tokens)
            before = _wide(out[tokens])
            gain, shift = (_wide(lora.pool[at : at + out.shape[1]]) if at >= 0 else 0 for at in vectors[row])
            out[tokens] = (before + scale * (before * gain + shift)).to(out.dtype)

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        chosen = logits.argmax(dim=-1)
        if batch.all_greedy:
            return chosen
        settings = zip(
            batch.temperature.tolist(),
            batch.top_k.tolist(),
            batch.top_p.tolist(),
            batch.min_p.tolist(),
            batch.uniform.tolist(),
            strict=True,
        )
        for row, (temperature, top_k, top_p, min_p, uniform) in enumerate(settings):
            if temperature > 0:
                weights = _filtered_weights(_wide(logits[row]), temperature, top_k, top_p, min_p)
                chosen[row] = _first_above(weights, uniform)
        return chosen


def _wide(x: Tensor) -> Tensor:
    """x in the dtype of the computation: fp64 stays, all else becomes fp32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _context(pages: Tensor, page_table: Tensor, context_len: int) -> Tensor:
    """The keys or values of one sequence: [context_len, kv_heads, head_dim]."""
    page_tokens = pages.shape[2]
    num_pages = -(-context_len // page_tokens)
    return _wide(pages[page_table[:num_pages].long()]).transpose(1, 2).flatten(0, 1)[:context_len]


def _causal_attention(query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None) -> Tensor:
    """query [q, heads, head_dim], the last q positions of keys and values [context, kv_heads, head_dim]."""
    num_queries, context_len = query.shape[0], keys.shape[0]
    grouped = _wide(query).view(num_queries, keys.shape[1], -1, keys.shape[2])  # [q, kv_heads, group, head_dim]
    scores = scale * torch.einsum("qhgd,chd->hgqc", grouped, keys)
    seen_position = torch.arange(context_len, device=query.device)
    own_position = seen_position[context_len - num_queries :, None]
    hidden = seen_position > own_position
    if window is not None:
        hidden |= seen_position <= own_position - window
    probabilities = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
    return torch.einsum("hgqc,chd->qhgd", probabilities, values).flatten(1, 2).to(query.dtype)


def _filtered_weights(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """w of `Kernels.sample` over K3, and 0 outside it. logits [vocab]; top_p 0 keeps the largest logit, not nothing."""
    logits = logits.masked_fill(logits.isnan(), float("-inf"))
    ranked = logits.sort(descending=True).values
    num_larger = torch.searchsorted(-ranked, -logits)  # logits strictly larger than each
    weights = ((logits - ranked[0]) / temperature).exp()
    if top_k > 0:
        weights = torch.where(num_larger < top_k, weights, 0)
    if top_p < 1:
        # The filters so far kept a top of the ranking, so every larger logit of a kept one is kept.
        sum_larger = weights.sort(descending=True).values.cumsum(0).roll(1)
        sum_larger[0] = 0
        in_nucleus = sum_larger[num_larger] < top_p * weights.sum()
        weights = torch.where(in_nucleus | (num_larger == 0), weights, 0)
    return torch.where(weights >= min_p, weights, 0)


def _first_above(weights: Tensor, uniform: float) -> Tensor:
    """The first index at which the running sum exceeds uniform * the whole sum."""
    running = weights.cumsum(0)
    # Rounding may lift the bound to the whole sum itself: then the last index of weight > 0 is meant.
    below_all = torch.nextafter(running[-1], torch.zeros_like(running[-1]))
    first = torch.searchsorted(running, torch.minimum(uniform * running[-1], below_all), right=True)
    return first.clamp(max=len(weights) - 1)  # NaN weights must not give a token outside the vocabulary

"""Sampling without a sort: one program per row finds each filter's border by bisection over the order of the floats.

Knows logits and settings of `ops.SamplingBatch`; knows no tokenizer and no request.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# A @triton.jit function is a program for the device in Python's syntax: its types are the compiler's.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from loraplex.kernels.ops import SamplingBatch

MAX_BLOCK = 4096

# Low bits of the fp32 pattern that are 0 in every number widened from dtype: the bisection need not look at them.
_IDLE_BITS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}
_KEY_OF_MINUS_INFINITY = tl.constexpr(-0x7F800001)


@triton.jit
def _load_logits(row_ptr, start, vocab, BLOCK: tl.constexpr):
    """A block of logits as fp32; -inf past the end."""
    index = start + tl.arange(0, BLOCK)
    return tl.load(row_ptr + index, mask=index < vocab, other=float("-inf")).to(tl.float32)


@triton.jit
def _order_keys(logits, IDLE_BITS: tl.constexpr):
    """int32 numbers in the order of the logits, equal where they are equal."""
    bits = tl.where(logits == 0.0, 0.0, logits).to(tl.int32, bitcast=True)  # -0.0 equals 0.0
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> IDLE_BITS


@triton.jit
def _largest(row_ptr, vocab, BLOCK: tl.constexpr):
    """(largest logit, its first index)"""
    best = tl.full((), float("-inf"), dtype=tl.float32)
    best_index = tl.full((), 0, dtype=tl.int32)
    for start in range(0, vocab, BLOCK):
        logits = _load_logits(row_ptr, start, vocab, BLOCK)
        block_best = tl.max(logits, axis=0)
        block_index = start + tl.min(tl.where(logits == block_best, tl.arange(0, BLOCK), BLOCK), axis=0)
        best_index = tl.where(block_best > best, block_index, best_index)
        best = tl.maximum(best, block_best)
    return best, best_index


@triton.jit
def _weight_above(row_ptr, vocab, best, temperature, border, BLOCK: tl.constexpr, IDLE_BITS: tl.constexpr):
    """The sum of w over the logits whose key is above border."""
    total = tl.full((), 0.0, dtype=tl.float32)
    for start in range(0, vocab, BLOCK):
        logits = _load_logits(row_ptr, start, vocab, BLOCK)
        weights = tl.exp((logits - best) / temperature)
        total += tl.sum(tl.where(_order_keys(logits, IDLE_BITS) > border, weights, 0.0), axis=0)
    return total


@triton.jit
def _top_k_border(row_ptr, vocab, high, top_k, BLOCK: tl.constexpr, IDLE_BITS: tl.constexpr):
    """A key such that K1 holds the logits whose key is at least that. high: the largest key."""
    low = tl.full((), _KEY_OF_MINUS_INFINITY >> IDLE_BITS, dtype=tl.int32)
    while low < high:
        middle = (low | high) - ((low ^ high) >> 1)  # their mean, rounded up, without overflow
        count = tl.full((), 0, dtype=tl.int32)
        for start in range(0, vocab, BLOCK):
            keys = _order_keys(_load_logits(row_ptr, start, vocab, BLOCK), IDLE_BITS)
            count += tl.sum((keys >= middle).to(tl.int32), axis=0)
        low = tl.where(count >= top_k, middle, low)
        # Exactly top_k: this border will do, wherever the top_k-th key itself lies.
        high = tl.where(count > top_k, high, tl.where(count == top_k, middle, middle - 1))
    return low


@triton.jit
def _top_p_border(row_ptr, vocab, best, temperature, low, high, top_p, BLOCK: tl.constexpr, IDLE_BITS: tl.constexpr):
    """The smallest key above which less than top_p of K1's weight lies. low: K1's border; high: the largest key."""
    limit = top_p * _weight_above(row_ptr, vocab, best, temperature, low - 1, BLOCK, IDLE_BITS)
    while low < high:
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, rounded down, without overflow
        inside = _weight_above(row_ptr, vocab, best, temperature, middle, BLOCK, IDLE_BITS) < limit
        high = tl.where(inside, middle, high)
        low = tl.where(inside, low, middle + 1)
    return low


@triton.jit
def _kept_weights(logits, best, temperature, border, min_p, IDLE_BITS: tl.constexpr):
    """w over K3, 0 outside."""
    weights = tl.exp((logits - best) / temperature)
    return tl.where((_order_keys(logits, IDLE_BITS) >= border) & (weights >= min_p), weights, 0.0)


@triton.jit
def _first_above(
    row_ptr, vocab, best, temperature, border, min_p, uniform, BLOCK: tl.constexpr, IDLE_BITS: tl.constexpr
):
    """The first index at which the running sum of w over K3 exceeds uniform * the whole sum."""
    total = tl.full((), 0.0, dtype=tl.float32)
    for start in range(0, vocab, BLOCK):
        logits = _load_logits(row_ptr, start, vocab, BLOCK)
        total += tl.sum(_kept_weights(logits, best, temperature, border, min_p, IDLE_BITS), axis=0)
    limit = uniform * total
    running = tl.full((), 0.0, dtype=tl.float32)
    first = tl.full((), 0x7FFFFFFF, dtype=tl.int32)
    last = tl.full((), 0, dtype=tl.int32)
    for start in range(0, vocab, BLOCK):
        logits = _load_logits(row_ptr, start, vocab, BLOCK)
        weights = _kept_weights(logits, best, temperature, border, min_p, IDLE_BITS)
        index = start + tl.arange(0, BLOCK)
        # Only what is kept can be chosen, however the sums are rounded.
        above = (running + tl.cumsum(weights, axis=0) > limit) & (weights > 0.0)
        first = tl.minimum(first, tl.min(tl.where(above, index, 0x7FFFFFFF), axis=0))
        last = tl.maximum(last, tl.max(tl.where(weights > 0.0, index, 0), axis=0))
        running += tl.sum(weights, axis=0)
    return tl.minimum(first, last)


@triton.jit
def _sample_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    uniform_ptr,
    out_ptr,
    row_stride,
    vocab,
    BLOCK: tl.constexpr,
    IDLE_BITS: tl.constexpr,
):
    """Grid: rows."""
    row = tl.program_id(0)
    row_ptr = logits_ptr + row.to(tl.int64) * row_stride
    temperature = tl.load(temperature_ptr + row)
    best, chosen = _largest(row_ptr, vocab, BLOCK)
    if temperature > 0.0:
        top_k = tl.load(top_k_ptr + row)
        top_p = tl.load(top_p_ptr + row)
        border = tl.full((), _KEY_OF_MINUS_INFINITY >> IDLE_BITS, dtype=tl.int32)
        high = _order_keys(best, IDLE_BITS)
        if top_k > 0:
            border = _top_k_border(row_ptr, vocab, high, top_k, BLOCK, IDLE_BITS)
        if top_p < 1.0:
            border = _top_p_border(row_ptr, vocab, best, temperature, border, high, top_p, BLOCK, IDLE_BITS)
        min_p = tl.load(min_p_ptr + row)
        uniform = tl.load(uniform_ptr + row)
        chosen = _first_above(row_ptr, vocab, best, temperature, border, min_p, uniform, BLOCK, IDLE_BITS)
    tl.store(out_ptr + row, chosen.to(tl.int64))


def sample(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """`ops.Kernels.sample`. Rows of logits may have any stride."""
    if batch.all_greedy:
        return logits.argmax(dim=-1)  # the first of equals, on CUDA as on the CPU
    num_rows, vocab = logits.shape
    out = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if num_rows:
        _sample_kernel[(num_rows,)](
            logits,
            batch.temperature,
            batch.top_k,
            batch.top_p,
            batch.min_p,
            batch.uniform,
            out,
            logits.stride(0),
            vocab,
            BLOCK=min(MAX_BLOCK, triton.next_power_of_2(vocab)),
            IDLE_BITS=_IDLE_BITS[logits.dtype],
            num_warps=8,
        )
    return out

"""Batched LoRA in two launches, shrink and expand, over the work list of (adapter, first token, tokens) entries.

Cost follows the true ranks: rank tiles and slices that an adapter does not have are skipped, nothing is zeroed first,
nothing is added atomically. How a sum is split depends on the layer's widths alone, so a token's result does not depend
on what it is batched with. Knows the pool and the table of `ops.LoraBatch`; knows no adapter by name.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# A @triton.jit function is a program for the device in Python's syntax: its types are the compiler's.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from loraplex.kernels.ops import MAX_SLICES, WORK_TOKENS, LoraBatch
from loraplex.kernels.triton_dot import dot, dot_mode

RANK_TILE = 16
MAX_SPLITS = 8
MIN_SPLIT_FEATURES = 512
BLOCK_FEATURES = 128
MAX_BLOCK_COLUMNS = 256

_TOKENS = tl.constexpr(WORK_TOKENS)
_RANKS = tl.constexpr(RANK_TILE)
_SLICES = tl.constexpr(MAX_SLICES)
# 16 bytes of bf16, what one thread loads at once where the compiler knows the address to be a multiple of it. Of an
# offset read from the table it knows nothing, so each kernel has a branch in which it does.
_ALIGNED = tl.constexpr(8)


@triton.jit
def _sum_over_features(
    x_rows, x_mask, a_rows, a_mask, start, end, K: tl.constexpr, BLOCK_K: tl.constexpr, MODE: tl.constexpr
):
    """Sum over features start .. end - 1 of x times A: [tokens, ranks]. The rows are pointers to their feature 0."""
    total = tl.zeros((_TOKENS, _RANKS), dtype=tl.float32)
    for first in range(start, end, BLOCK_K):
        feature = first + tl.arange(0, BLOCK_K)
        # Compared with K, not with end: that keeps the mask's alignment known, and loads wide.
        x = tl.load(x_rows + feature[None, :], mask=x_mask & (feature < K)[None, :], other=0.0)
        a = tl.load(a_rows + feature[:, None], mask=a_mask & (feature < K)[:, None], other=0.0)
        total += dot(x, a, MODE)
    return total


@triton.jit(do_not_specialize=["site"])
def _shrink_kernel(
    x_ptr,
    pool_ptr,
    table_ptr,
    work_ptr,
    partial_ptr,
    site,
    x_stride,
    table_stride,
    max_rank,
    NUM_SPLITS: tl.constexpr,
    SPLIT_K: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    MODE: tl.constexpr,
):
    """partial[t, split, r] = sum over the split's features k of x[t, k] A[r, k]. Grid: entries, rank tiles, splits."""
    entry = work_ptr + tl.program_id(0) * 3
    num_tokens = tl.load(entry + 2)
    if num_tokens == 0:
        return
    site_ptr = table_ptr + tl.load(entry).to(tl.int64) * table_stride + site * (2 + _SLICES)
    total_rank = tl.load(site_ptr + 2)
    for s in tl.static_range(1, _SLICES):
        total_rank += tl.load(site_ptr + 2 + s)
    rank_start = tl.program_id(1) * _RANKS
    if rank_start >= total_rank:
        return

    row = tl.arange(0, _TOKENS)
    token = tl.load(entry + 1).to(tl.int64) + row
    token_mask = (row < num_tokens)[:, None]
    x_rows = x_ptr + token[:, None] * x_stride
    rank = rank_start + tl.arange(0, _RANKS)
    rank_mask = (rank < total_rank)[None, :]
    rank_offset = rank.to(tl.int64)[None, :] * K
    split = tl.program_id(2)
    start = split * SPLIT_K
    end = tl.minimum(start + SPLIT_K, K)
    a = tl.load(site_ptr)
    if a % _ALIGNED == 0:
        a_rows = pool_ptr + a // _ALIGNED * _ALIGNED + rank_offset
        total = _sum_over_features(x_rows, token_mask, a_rows, rank_mask, start, end, K, BLOCK_K, MODE)
    else:
        a_rows = pool_ptr + a + rank_offset
        total = _sum_over_features(x_rows, token_mask, a_rows, rank_mask, start, end, K, BLOCK_K, MODE)
    partial = partial_ptr + (token[:, None] * NUM_SPLITS + split) * max_rank + rank[None, :]
    tl.store(partial, total, mask=token_mask)


@triton.jit
def _sum_over_ranks(
    partial_rows,
    token_mask,
    b_ptr,
    rank,
    width,
    column,
    column_mask,
    max_rank,
    NUM_SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MODE: tl.constexpr,
):
    """Sum over the slice's ranks of the shrunk input times B: [tokens, columns]."""
    total = tl.zeros((_TOKENS, BLOCK_N), dtype=tl.float32)
    for first in range(0, rank, _RANKS):
        r = first + tl.arange(0, _RANKS)
        shrunk = tl.zeros((_TOKENS, _RANKS), dtype=tl.float32)
        for split in tl.static_range(NUM_SPLITS):
            place = partial_rows + split * max_rank + r[None, :]
            shrunk += tl.load(place, mask=token_mask & (r < rank)[None, :], other=0.0)
        b_mask = (r < rank)[:, None] & column_mask
        b = tl.load(b_ptr + r.to(tl.int64)[:, None] * width + column, mask=b_mask, other=0.0)
        total += dot(shrunk, b.to(tl.float32), MODE)
    return total


@triton.jit(do_not_specialize=["site"])
def _expand_kernel(
    out_ptr,
    pool_ptr,
    table_ptr,
    work_ptr,
    partial_ptr,
    site,
    out_stride,
    table_stride,
    max_rank,
    WIDTH_0: tl.constexpr,
    WIDTH_1: tl.constexpr,
    WIDTH_2: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MODE: tl.constexpr,
):
    """out[t, slice s] += (sum over splits of partial[t, split]) @ B_s. Grid: entries, column tiles of all slices."""
    entry = work_ptr + tl.program_id(0) * 3
    num_tokens = tl.load(entry + 2)
    if num_tokens == 0:
        return
    tile = tl.program_id(1)
    tiles_0: tl.constexpr = (WIDTH_0 + BLOCK_N - 1) // BLOCK_N
    tiles_1: tl.constexpr = (WIDTH_1 + BLOCK_N - 1) // BLOCK_N
    past_0 = (tile >= tiles_0).to(tl.int32)
    past_1 = (tile >= tiles_0 + tiles_1).to(tl.int32)
    site_ptr = table_ptr + tl.load(entry).to(tl.int64) * table_stride + site * (2 + _SLICES)
    rank = tl.load(site_ptr + 2 + past_0 + past_1).to(tl.int32)
    if rank == 0:
        return

    # Products instead of branches: from them the compiler still learns what every width is a multiple of.
    width = WIDTH_0 + past_0 * (WIDTH_1 - WIDTH_0) + past_1 * (WIDTH_2 - WIDTH_1)
    slice_start = past_0 * WIDTH_0 + past_1 * WIDTH_1
    rank_0 = tl.load(site_ptr + 2) * past_0
    rank_1 = tl.load(site_ptr + 3) * past_1
    b = tl.load(site_ptr + 1) + rank_0 * WIDTH_0 + rank_1 * WIDTH_1
    column = ((tile - past_0 * tiles_0 - past_1 * tiles_1) * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    column_mask = column < width
    row = tl.arange(0, _TOKENS)
    token = (tl.load(entry + 1).to(tl.int64) + row)[:, None]
    token_mask = (row < num_tokens)[:, None]
    partial_rows = partial_ptr + token * (NUM_SPLITS * max_rank) + rank_0 + rank_1
    if b % _ALIGNED == 0:
        total = _sum_over_ranks(
            partial_rows,
            token_mask,
            pool_ptr + b // _ALIGNED * _ALIGNED,
            rank,
            width,
            column,
            column_mask,
            max_rank,
            NUM_SPLITS,
            BLOCK_N,
            MODE,
        )
    else:
        total = _sum_over_ranks(
            partial_rows,
            token_mask,
            pool_ptr + b,
            rank,
            width,
            column,
            column_mask,
            max_rank,
            NUM_SPLITS,
            BLOCK_N,
            MODE,
        )
    out = out_ptr + token * out_stride + slice_start + column
    mask = token_mask & column_mask
    total += tl.load(out, mask=mask, other=0.0).to(tl.float32)
    tl.store(out, total.to(out_ptr.dtype.element_ty), mask=mask)


def add_lora(out: Tensor, x: Tensor, lora: LoraBatch, site: int, slice_widths: tuple[int, ...]) -> None:
    """`ops.Kernels.add_lora`."""
    num_entries, (num_tokens, in_features) = lora.work.shape[0], x.shape
    if num_entries == 0 or num_tokens == 0 or lora.max_rank == 0:
        return
    max_rank = triton.cdiv(lora.max_rank, RANK_TILE) * RANK_TILE
    block_k = max(16, min(BLOCK_FEATURES, triton.next_power_of_2(in_features)))
    split_k = triton.cdiv(max(MIN_SPLIT_FEATURES, triton.cdiv(in_features, MAX_SPLITS)), block_k) * block_k
    num_splits = triton.cdiv(in_features, split_k)
    block_n = max(16, min(MAX_BLOCK_COLUMNS, triton.next_power_of_2(max(slice_widths))))
    num_column_tiles = sum(triton.cdiv(width, block_n) for width in slice_widths)
    widths = dict(zip(("WIDTH_0", "WIDTH_1", "WIDTH_2"), (*slice_widths, 0, 0), strict=False))
    partial = torch.empty((num_tokens, num_splits, max_rank), dtype=torch.float32, device=x.device)
    _shrink_kernel[(num_entries, max_rank // RANK_TILE, num_splits)](
        x,
        lora.pool,
        lora.table,
        lora.work,
        partial,
        site,
        x.stride(0),
        lora.table.stride(0),
        max_rank,
        NUM_SPLITS=num_splits,
        SPLIT_K=split_k,
        K=in_features,
        BLOCK_K=block_k,
        MODE=dot_mode(x),
    )
    _expand_kernel[(num_entries, num_column_tiles)](
        out,
        lora.pool,
        lora.table,
        lora.work,
        partial,
        site,
        out.stride(0),
        lora.table.stride(0),
        max_rank,
        **widths,
        NUM_SPLITS=num_splits,
        BLOCK_N=block_n,
        MODE=dot_mode(x),
    )

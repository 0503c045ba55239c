"""The LoRA kernels: shrink and expand, and both in one, over entries of (adapter, first token, tokens, scale).

Rank tiles and slices that an adapter does not have are skipped, nothing is zeroed first, nothing is added atomically.
Knows the pool and the table of `ops.LoraBatch`; what is launched when is `triton_lora`'s.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# A @triton.jit function is a program for the device in Python's syntax: its types are the compiler's.

from __future__ import annotations

import triton
import triton.language as tl

from loraplex.kernels.ops import MAX_SLICES, TABLE_COLUMNS, WORK_NUMBERS
from loraplex.kernels.triton_dot import dot

_SLICES = tl.constexpr(MAX_SLICES)
_COLUMNS = tl.constexpr(TABLE_COLUMNS)
_ENTRY = tl.constexpr(WORK_NUMBERS)
# Ranks that are multiplied with B at once: the least that a tensor-core product takes.
_RANKS = tl.constexpr(16)
# 16 bytes of bf16, what one thread loads at once where the compiler knows the address to be a multiple of it. Of an
# offset read from the table it knows nothing, so each kernel has a branch in which it does.
_ALIGNED = tl.constexpr(8)


@triton.jit
def _sum_over_features(
    x_rows,
    x_mask,
    a_rows,
    a_mask,
    start,
    end,
    K: tl.constexpr,
    TOKENS: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    MODE: tl.constexpr,
):
    """Sum over features start .. end - 1 of x times A: [tokens, ranks]. The rows are pointers to their feature 0."""
    total = tl.zeros((TOKENS, RANKS), dtype=tl.float32)
    for first in range(start, end, BLOCK_K):
        feature = first + tl.arange(0, BLOCK_K)
        # Compared with K, not with end: that keeps the mask's alignment known, and loads wide.
        x = tl.load(x_rows + feature[None, :], mask=x_mask & (feature < K)[None, :], other=0.0)
        a = tl.load(a_rows + feature[:, None], mask=a_mask & (feature < K)[:, None], other=0.0)
        total += dot(x, a, MODE)
    return total


@triton.jit(do_not_specialize=["site"])
def shrink_kernel(
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
    TOKENS: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    MODE: tl.constexpr,
):
    """partial[t, split, r] = sum over the split's features k of x[t, k] A[r, k]. Grid: entries, rank tiles, splits."""
    entry = work_ptr + tl.program_id(0) * _ENTRY
    num_tokens = tl.load(entry + 2)
    if num_tokens == 0:
        return
    site_ptr = table_ptr + tl.load(entry).to(tl.int64) * table_stride + site * _COLUMNS
    total_rank = tl.load(site_ptr + 2)
    for s in tl.static_range(1, _SLICES):
        total_rank += tl.load(site_ptr + 2 + s)
    rank_start = tl.program_id(1) * RANKS
    if rank_start >= total_rank:
        return

    row = tl.arange(0, TOKENS)
    token = tl.load(entry + 1).to(tl.int64) + row
    token_mask = (row < num_tokens)[:, None]
    x_rows = x_ptr + token[:, None] * x_stride
    rank = rank_start + tl.arange(0, RANKS)
    rank_mask = (rank < total_rank)[None, :]
    rank_offset = rank.to(tl.int64)[None, :] * K
    split = tl.program_id(2)
    start = split * SPLIT_K
    end = tl.minimum(start + SPLIT_K, K)
    a = tl.load(site_ptr)
    if a % _ALIGNED == 0:
        a_rows = pool_ptr + a // _ALIGNED * _ALIGNED + rank_offset
        total = _sum_over_features(x_rows, token_mask, a_rows, rank_mask, start, end, K, TOKENS, RANKS, BLOCK_K, MODE)
    else:
        a_rows = pool_ptr + a + rank_offset
        total = _sum_over_features(x_rows, token_mask, a_rows, rank_mask, start, end, K, TOKENS, RANKS, BLOCK_K, MODE)
    partial = partial_ptr + (token[:, None] * NUM_SPLITS + split) * max_rank + rank[None, :]
    tl.store(partial, total, mask=token_mask & rank_mask)


@triton.jit
def _slice_of_tile(
    tile,
    site_ptr,
    WIDTH_0: tl.constexpr,
    WIDTH_1: tl.constexpr,
    WIDTH_2: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Where a tile of columns stands, the tiles of all slices being counted on: (rank of its slice, ranks before it,
    width of the slice, its first column in out, offset of its B, column of the tile in the slice)."""
    tiles_0: tl.constexpr = (WIDTH_0 + BLOCK_N - 1) // BLOCK_N
    tiles_1: tl.constexpr = (WIDTH_1 + BLOCK_N - 1) // BLOCK_N
    past_0 = (tile >= tiles_0).to(tl.int32)
    past_1 = (tile >= tiles_0 + tiles_1).to(tl.int32)
    rank = tl.load(site_ptr + 2 + past_0 + past_1).to(tl.int32)
    rank_0 = tl.load(site_ptr + 2) * past_0
    rank_1 = tl.load(site_ptr + 3) * past_1
    # Products instead of branches: from them the compiler still learns what every width is a multiple of.
    width = WIDTH_0 + past_0 * (WIDTH_1 - WIDTH_0) + past_1 * (WIDTH_2 - WIDTH_1)
    slice_start = past_0 * WIDTH_0 + past_1 * WIDTH_1
    b = tl.load(site_ptr + 1) + rank_0 * WIDTH_0 + rank_1 * WIDTH_1
    column = ((tile - past_0 * tiles_0 - past_1 * tiles_1) * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    return rank, rank_0 + rank_1, width, slice_start, b, column


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
    TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MODE: tl.constexpr,
):
    """Sum over the slice's ranks of the shrunk input times B: [tokens, columns]."""
    total = tl.zeros((TOKENS, BLOCK_N), dtype=tl.float32)
    for first in range(0, rank, _RANKS):
        r = first + tl.arange(0, _RANKS)
        shrunk = tl.zeros((TOKENS, _RANKS), dtype=tl.float32)
        for split in tl.static_range(NUM_SPLITS):
            place = partial_rows + split * max_rank + r[None, :]
            shrunk += tl.load(place, mask=token_mask & (r < rank)[None, :], other=0.0)
        b_mask = (r < rank)[:, None] & column_mask
        b = tl.load(b_ptr + r.to(tl.int64)[:, None] * width + column, mask=b_mask, other=0.0)
        total += dot(shrunk, b.to(tl.float32), MODE)
    return total


@triton.jit(do_not_specialize=["site"])
def expand_kernel(
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
    TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MODE: tl.constexpr,
):
    """out[t, slice s] += scale (sum of partial[t] over splits) @ B_s. Grid: entries, column tiles of all slices."""
    entry = work_ptr + tl.program_id(0) * _ENTRY
    num_tokens = tl.load(entry + 2)
    if num_tokens == 0:
        return
    site_ptr = table_ptr + tl.load(entry).to(tl.int64) * table_stride + site * _COLUMNS
    rank, ranks_before, width, slice_start, b, column = _slice_of_tile(
        tl.program_id(1), site_ptr, WIDTH_0, WIDTH_1, WIDTH_2, BLOCK_N
    )
    if rank == 0:
        return

    column_mask = column < width
    row = tl.arange(0, TOKENS)
    token = (tl.load(entry + 1).to(tl.int64) + row)[:, None]
    mask = (row < num_tokens)[:, None]
    rows = partial_ptr + token * (NUM_SPLITS * max_rank) + ranks_before
    if b % _ALIGNED == 0:
        b_ptr = pool_ptr + b // _ALIGNED * _ALIGNED
        total = _sum_over_ranks(
            rows, mask, b_ptr, rank, width, column, column_mask, max_rank, NUM_SPLITS, TOKENS, BLOCK_N, MODE
        )
    else:
        b_ptr = pool_ptr + b
        total = _sum_over_ranks(
            rows, mask, b_ptr, rank, width, column, column_mask, max_rank, NUM_SPLITS, TOKENS, BLOCK_N, MODE
        )
    total *= tl.load(entry + 3).to(tl.float32, bitcast=True)
    _add(out_ptr + token * out_stride + slice_start + column, total, mask & column_mask)


@triton.jit
def _add(out, total, mask):
    """out += total, rounded once."""
    total += tl.load(out, mask=mask, other=0.0).to(tl.float32)
    tl.store(out, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _both_products(
    x_rows,
    token_mask,
    a_ptr,
    b_ptr,
    rank,
    width,
    column,
    column_mask,
    K: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MODE: tl.constexpr,
):
    """(x @ A.T) @ B of one slice for a tile of columns: [tokens, columns]."""
    total = tl.zeros((TOKENS, BLOCK_N), dtype=tl.float32)
    for first in range(0, rank, _RANKS):
        r = first + tl.arange(0, _RANKS)
        # B is asked for before the walk over A, so that the two wait for memory together
        b_mask = (r < rank)[:, None] & column_mask
        b = tl.load(b_ptr + r.to(tl.int64)[:, None] * width + column, mask=b_mask, other=0.0)
        a_rows = a_ptr + r.to(tl.int64)[None, :] * K
        a_mask = (r < rank)[None, :]
        shrunk = _sum_over_features(x_rows, token_mask, a_rows, a_mask, 0, K, K, TOKENS, _RANKS, BLOCK_K, MODE)
        total += dot(shrunk, b.to(tl.float32), MODE)
    return total


@triton.jit(do_not_specialize=["site"])
def fused_kernel(
    out_ptr,
    x_ptr,
    pool_ptr,
    table_ptr,
    work_ptr,
    site,
    out_stride,
    x_stride,
    table_stride,
    WIDTH_0: tl.constexpr,
    WIDTH_1: tl.constexpr,
    WIDTH_2: tl.constexpr,
    K: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MODE: tl.constexpr,
):
    """out[t, slice s] += scale (x[t] @ A_s.T) @ B_s in one launch. Grid: entries, column tiles of all slices."""
    entry = work_ptr + tl.program_id(0) * _ENTRY
    num_tokens = tl.load(entry + 2)
    if num_tokens == 0:
        return
    site_ptr = table_ptr + tl.load(entry).to(tl.int64) * table_stride + site * _COLUMNS
    rank, ranks_before, width, slice_start, b, column = _slice_of_tile(
        tl.program_id(1), site_ptr, WIDTH_0, WIDTH_1, WIDTH_2, BLOCK_N
    )
    if rank == 0:
        return

    column_mask = column < width
    row = tl.arange(0, TOKENS)
    token = (tl.load(entry + 1).to(tl.int64) + row)[:, None]
    mask = (row < num_tokens)[:, None]
    x_rows = x_ptr + token * x_stride
    a = tl.load(site_ptr) + ranks_before * K
    if (a % _ALIGNED == 0) & (b % _ALIGNED == 0):
        a_ptr = pool_ptr + a // _ALIGNED * _ALIGNED
        b_ptr = pool_ptr + b // _ALIGNED * _ALIGNED
        total = _both_products(
            x_rows, mask, a_ptr, b_ptr, rank, width, column, column_mask, K, TOKENS, BLOCK_K, BLOCK_N, MODE
        )
    else:
        a_ptr = pool_ptr + a
        b_ptr = pool_ptr + b
        total = _both_products(
            x_rows, mask, a_ptr, b_ptr, rank, width, column, column_mask, K, TOKENS, BLOCK_K, BLOCK_N, MODE
        )
    total *= tl.load(entry + 3).to(tl.float32, bitcast=True)
    _add(out_ptr + token * out_stride + slice_start + column, total, mask & column_mask)

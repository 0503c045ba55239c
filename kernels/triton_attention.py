"""Paged attention: prefill chunks and decodes in one launch, or decodes alone split over their contexts in two.

Splitting serves steps of few sequences with long contexts, which would leave most of the device idle. Knows the shapes
of `ops.AttentionBatch`; knows no sequence or request.
"""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from loraplex.kernels.ops import AttentionBatch
from loraplex.kernels.triton_attention_kernels import attention_kernel, combine_kernel, split_kernel
from loraplex.kernels.triton_dot import dot_mode
from loraplex.kernels.triton_tuning import AttentionTiles, attention_tiles, num_processors


def paged_attention(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    batch: AttentionBatch,
    scale: float,
    window: int | None,
    tiles: AttentionTiles | None = None,
) -> Tensor:
    """`ops.Kernels.paged_attention`. tiles: instead of the tuned ones."""
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    num_sequences = batch.context_lens.shape[0]
    if query.shape[0] == 0 or num_sequences == 0:
        return out
    # No window is one that nothing lies outside of.
    window = batch.max_context_len + 1 if window is None else window
    tiles = tiles or attention_tiles(query, is_decode=batch.max_query_len == 1)
    num_splits = _num_splits(num_sequences * key_pages.shape[1], batch, window, tiles, query.device)
    if num_splits > 1:
        _decode_in_splits(out, query, key_pages, value_pages, batch, scale, window, tiles, num_splits)
    else:
        _attend_at_once(out, query, key_pages, value_pages, batch, scale, window, tiles)
    return out


def _num_splits(programs: int, batch: AttentionBatch, window: int, tiles: AttentionTiles, device: torch.device) -> int:
    """The largest power of 2 with which all programs of a decode still run at once, each with enough to read.

    Follows from shapes alone, never from lengths on the device, so that a recorded step may hold any contexts.
    """
    if batch.max_query_len != 1:
        return 1
    wanted = num_processors(device) * tiles.programs_per_processor // programs
    worth = triton.cdiv(min(batch.max_context_len, window), tiles.min_split)
    most: int = min(wanted, worth, tiles.max_splits)
    return 1 << (most.bit_length() - 1) if most > 1 else 1


def _attend_at_once(
    out: Tensor,
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    batch: AttentionBatch,
    scale: float,
    window: int,
    tiles: AttentionTiles,
) -> None:
    _, num_heads, head_dim = query.shape
    num_kv_heads, page_tokens = key_pages.shape[1], key_pages.shape[2]
    block_group = triton.next_power_of_2(num_heads // num_kv_heads)
    block_tokens = max(1, (16 if batch.max_query_len * block_group <= 16 else tiles.rows) // block_group)
    grid = (batch.context_lens.shape[0], num_kv_heads, triton.cdiv(batch.max_query_len, block_tokens))
    attention_kernel[grid](
        query,
        key_pages,
        value_pages,
        out,
        batch.query_starts,
        batch.context_lens,
        batch.page_tables,
        query.stride(0),
        batch.page_tables.stride(0),
        scale * math.log2(math.e),
        window,
        NUM_KV_HEADS=num_kv_heads,
        GROUP=num_heads // num_kv_heads,
        HEAD_DIM=head_dim,
        PAGE_TOKENS=page_tokens,
        BLOCK_TOKENS=block_tokens,
        BLOCK_GROUP=block_group,
        BLOCK_CONTEXT=tiles.block_context,
        BLOCK_DIM=max(16, triton.next_power_of_2(head_dim)),
        MODE=dot_mode(query),
        num_stages=tiles.num_stages,
        num_warps=tiles.num_warps,
    )


def _decode_in_splits(
    out: Tensor,
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    batch: AttentionBatch,
    scale: float,
    window: int,
    tiles: AttentionTiles,
    num_splits: int,
) -> None:
    _, num_heads, head_dim = query.shape
    num_sequences, num_kv_heads = batch.context_lens.shape[0], key_pages.shape[1]
    block_dim = max(16, triton.next_power_of_2(head_dim))
    parts = (num_sequences, num_heads, num_splits)
    total = torch.empty((*parts, head_dim), dtype=torch.float32, device=query.device)
    softmax = torch.empty((*parts, 2), dtype=torch.float32, device=query.device)
    split_kernel[(num_sequences, num_kv_heads, num_splits)](
        query,
        key_pages,
        value_pages,
        total,
        softmax,
        batch.query_starts,
        batch.context_lens,
        batch.page_tables,
        query.stride(0),
        batch.page_tables.stride(0),
        scale * math.log2(math.e),
        window,
        NUM_KV_HEADS=num_kv_heads,
        GROUP=num_heads // num_kv_heads,
        HEAD_DIM=head_dim,
        PAGE_TOKENS=key_pages.shape[2],
        NUM_SPLITS=num_splits,
        BLOCK_GROUP=max(16, triton.next_power_of_2(num_heads // num_kv_heads)),
        BLOCK_CONTEXT=tiles.block_context,
        BLOCK_DIM=block_dim,
        MODE=dot_mode(query),
        num_stages=tiles.num_stages,
        num_warps=tiles.num_warps,
    )
    combine_kernel[(num_sequences, num_heads)](
        total,
        softmax,
        out,
        batch.query_starts,
        batch.context_lens,
        window,
        NUM_HEADS=num_heads,
        HEAD_DIM=head_dim,
        NUM_SPLITS=num_splits,
        BLOCK_CONTEXT=tiles.block_context,
        BLOCK_DIM=block_dim,
    )

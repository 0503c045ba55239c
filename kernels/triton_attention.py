"""Paged attention in one launch: prefill chunks and decodes, causal, with grouped query heads and a sliding window.

A program takes some of a sequence's new tokens and all query heads of one KV head, and walks over the visible context
with a running softmax. Knows pages and lengths of `ops.AttentionBatch`; knows no sequence or request.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# A @triton.jit function is a program for the device in Python's syntax: its types are the compiler's.

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from loraplex.kernels.ops import AttentionBatch
from loraplex.kernels.triton_dot import dot, dot_mode


@triton.jit(do_not_specialize=["table_stride", "window"])
def _attention_kernel(
    query_ptr,
    key_pages_ptr,
    value_pages_ptr,
    out_ptr,
    query_starts_ptr,
    context_lens_ptr,
    page_tables_ptr,
    query_stride,
    table_stride,
    scale_log2e,
    window,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK_CONTEXT: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    MODE: tl.constexpr,
):
    """Grid: sequences, KV heads, blocks of new tokens. A row of the tile is one query head of one new token."""
    sequence = tl.program_id(0)
    kv_head = tl.program_id(1)
    first_query = tl.program_id(2) * BLOCK_TOKENS
    first_token = tl.load(query_starts_ptr + sequence)
    num_queries = tl.load(query_starts_ptr + sequence + 1) - first_token
    if first_query >= num_queries:
        return

    row = tl.arange(0, BLOCK_TOKENS * BLOCK_GROUP)
    query_index = first_query + row // BLOCK_GROUP
    head = row % BLOCK_GROUP
    dim = tl.arange(0, BLOCK_DIM)
    row_mask = (query_index < num_queries) & (head < GROUP)
    query_mask = row_mask[:, None] & (dim < HEAD_DIM)[None, :]
    token = (first_token + query_index).to(tl.int64)
    head_offset = ((kv_head * GROUP + head) * HEAD_DIM)[:, None] + dim[None, :]
    query = tl.load(query_ptr + token[:, None] * query_stride + head_offset, mask=query_mask, other=0.0)

    # [begin, end): the positions that some token of this block sees. Nothing outside is read: it may hold NaN.
    num_before = tl.load(context_lens_ptr + sequence) - num_queries
    position = num_before + query_index
    begin = tl.maximum(num_before + first_query - window + 1, 0)
    end = num_before + tl.minimum(first_query + BLOCK_TOKENS, num_queries)
    highest = tl.full((BLOCK_TOKENS * BLOCK_GROUP,), float("-inf"), dtype=tl.float32)
    weight_sum = tl.zeros((BLOCK_TOKENS * BLOCK_GROUP,), dtype=tl.float32)
    total = tl.zeros((BLOCK_TOKENS * BLOCK_GROUP, BLOCK_DIM), dtype=tl.float32)
    pages_ptr = page_tables_ptr + sequence.to(tl.int64) * table_stride
    for start in range(begin // BLOCK_CONTEXT * BLOCK_CONTEXT, end, BLOCK_CONTEXT):
        seen = start + tl.arange(0, BLOCK_CONTEXT)
        readable = (seen >= begin) & (seen < end)
        page = tl.load(pages_ptr + seen // PAGE_TOKENS, mask=readable, other=0).to(tl.int64)
        place = ((page * NUM_KV_HEADS + kv_head) * PAGE_TOKENS + seen % PAGE_TOKENS) * HEAD_DIM
        key_mask = (dim < HEAD_DIM)[:, None] & readable[None, :]
        key = tl.load(key_pages_ptr + place[None, :] + dim[:, None], mask=key_mask, other=0.0)
        score = dot(query, key, MODE) * scale_log2e
        distance = position[:, None] - seen[None, :]
        score = tl.where(readable[None, :] & (distance >= 0) & (distance < window), score, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(score, axis=1))
        # A row that has seen nothing yet: any finite number will do, -inf - -inf would be NaN.
        pivot = tl.where(new_highest == float("-inf"), 0.0, new_highest)
        weight = tl.exp2(score - pivot[:, None])
        shrink = tl.exp2(highest - pivot)
        weight_sum = weight_sum * shrink + tl.sum(weight, axis=1)
        value_mask = readable[:, None] & (dim < HEAD_DIM)[None, :]
        value = tl.load(value_pages_ptr + place[:, None] + dim[None, :], mask=value_mask, other=0.0)
        weighted = dot(weight.to(value.dtype), value, MODE)
        total = total * shrink[:, None] + weighted
        highest = new_highest
    result = total / tl.where(weight_sum > 0, weight_sum, 1.0)[:, None]
    out = out_ptr + token[:, None] * (NUM_KV_HEADS * GROUP * HEAD_DIM) + head_offset
    tl.store(out, result.to(out_ptr.dtype.element_ty), mask=query_mask)


def paged_attention(
    query: Tensor, key_pages: Tensor, value_pages: Tensor, batch: AttentionBatch, scale: float, window: int | None
) -> Tensor:
    """`ops.Kernels.paged_attention`."""
    num_tokens, num_heads, head_dim = query.shape
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    num_sequences = batch.context_lens.shape[0]
    if num_tokens == 0 or num_sequences == 0:
        return out
    num_kv_heads, page_tokens = key_pages.shape[1], key_pages.shape[2]
    group = num_heads // num_kv_heads
    block_group = triton.next_power_of_2(group)
    rows, block_context = _tile(batch.max_query_len * block_group, query.dtype)
    block_tokens = max(1, rows // block_group)
    _attention_kernel[(num_sequences, num_kv_heads, triton.cdiv(batch.max_query_len, block_tokens))](
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
        # No window is one that nothing lies outside of.
        batch.max_context_len + 1 if window is None else window,
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        PAGE_TOKENS=page_tokens,
        BLOCK_TOKENS=block_tokens,
        BLOCK_GROUP=block_group,
        BLOCK_CONTEXT=block_context,
        BLOCK_DIM=max(16, triton.next_power_of_2(head_dim)),
        MODE=dot_mode(query),
        num_stages=2,
    )
    return out


def _tile(most_rows: int, dtype: torch.dtype) -> tuple[int, int]:
    """(rows of query heads, positions of context) of one program: 16 rows serve a decode, 64 a prefill chunk.

    fp32 takes smaller tiles: its products run without tensor cores, from registers.
    """
    if most_rows <= 16:
        return 16, 64 if dtype != torch.float32 else 32
    return (64, 64) if dtype != torch.float32 else (32, 32)

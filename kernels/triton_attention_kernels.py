"""The attention kernels: a walk over paged keys and values with a running softmax, whole or split with a combination.

A program takes some of a sequence's new tokens and all query heads of one KV head. Knows pages and lengths of
`ops.AttentionBatch`; what is launched when is `triton_attention`'s.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# A @triton.jit function is a program for the device in Python's syntax: its types are the compiler's.

from __future__ import annotations

import triton
import triton.language as tl

from loraplex.kernels.triton_dot import dot


@triton.jit
def _attend(
    query,
    position,
    pages_ptr,
    key_pages_ptr,
    value_pages_ptr,
    kv_head,
    begin,
    end,
    window,
    scale_log2e,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_CONTEXT: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    MODE: tl.constexpr,
):
    """Softmax-weighted sum of the values at positions begin .. end - 1, for rows of queries at their positions.

    Gives (largest score in powers of 2, sum of weights, sum of weighted values), the weights being relative to the
    largest. Nothing outside [begin, end) is read: it may hold NaN.
    """
    dim = tl.arange(0, BLOCK_DIM)
    highest = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    weight_sum = tl.zeros((ROWS,), dtype=tl.float32)
    total = tl.zeros((ROWS, BLOCK_DIM), dtype=tl.float32)
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
    return highest, weight_sum, total


@triton.jit(do_not_specialize=["table_stride", "window"])
def attention_kernel(
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

    # begin .. end - 1: the positions that some token of this block sees
    num_before = tl.load(context_lens_ptr + sequence) - num_queries
    begin = tl.maximum(num_before + first_query - window + 1, 0)
    end = num_before + tl.minimum(first_query + BLOCK_TOKENS, num_queries)
    _, weight_sum, total = _attend(
        query,
        num_before + query_index,
        page_tables_ptr + sequence.to(tl.int64) * table_stride,
        key_pages_ptr,
        value_pages_ptr,
        kv_head,
        begin,
        end,
        window,
        scale_log2e,
        NUM_KV_HEADS,
        HEAD_DIM,
        PAGE_TOKENS,
        BLOCK_TOKENS * BLOCK_GROUP,
        BLOCK_CONTEXT,
        BLOCK_DIM,
        MODE,
    )
    result = total / tl.where(weight_sum > 0, weight_sum, 1.0)[:, None]
    out = out_ptr + token[:, None] * (NUM_KV_HEADS * GROUP * HEAD_DIM) + head_offset
    tl.store(out, result.to(out_ptr.dtype.element_ty), mask=query_mask)


@triton.jit
def _split_length(begin, context_len, NUM_SPLITS: tl.constexpr, BLOCK_CONTEXT: tl.constexpr):
    """Positions of a split, a multiple of BLOCK_CONTEXT: split i has those from begin rounded down + i times this."""
    positions = context_len - begin // BLOCK_CONTEXT * BLOCK_CONTEXT
    return tl.cdiv(tl.cdiv(positions, NUM_SPLITS), BLOCK_CONTEXT) * BLOCK_CONTEXT


@triton.jit(do_not_specialize=["table_stride", "window"])
def split_kernel(
    query_ptr,
    key_pages_ptr,
    value_pages_ptr,
    total_ptr,
    softmax_ptr,
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
    NUM_SPLITS: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK_CONTEXT: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    MODE: tl.constexpr,
):
    """What `_attend` gives for one split of a decode's context. Grid: sequences, KV heads, splits.

    total [sequences, heads, splits, head_dim] and softmax [sequences, heads, splits, 2] (largest score, sum of weights)
    are fp32. Splits that begin past the context are not written.
    """
    sequence = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    token = tl.load(query_starts_ptr + sequence).to(tl.int64)
    if tl.load(query_starts_ptr + sequence + 1) == token:
        return
    context_len = tl.load(context_lens_ptr + sequence)
    first_seen = tl.maximum(context_len - window, 0)
    length = _split_length(first_seen, context_len, NUM_SPLITS, BLOCK_CONTEXT)
    start = first_seen // BLOCK_CONTEXT * BLOCK_CONTEXT + split * length
    if start >= context_len:
        return

    head = tl.arange(0, BLOCK_GROUP)
    dim = tl.arange(0, BLOCK_DIM)
    head_mask = head < GROUP
    mask = head_mask[:, None] & (dim < HEAD_DIM)[None, :]
    head = kv_head * GROUP + head
    query_offset = token * query_stride + head[:, None] * HEAD_DIM + dim[None, :]
    query = tl.load(query_ptr + query_offset, mask=mask, other=0.0)
    highest, weight_sum, total = _attend(
        query,
        tl.zeros((BLOCK_GROUP,), dtype=tl.int32) + (context_len - 1),
        page_tables_ptr + sequence.to(tl.int64) * table_stride,
        key_pages_ptr,
        value_pages_ptr,
        kv_head,
        tl.maximum(start, first_seen),
        tl.minimum(start + length, context_len),
        window,
        scale_log2e,
        NUM_KV_HEADS,
        HEAD_DIM,
        PAGE_TOKENS,
        BLOCK_GROUP,
        BLOCK_CONTEXT,
        BLOCK_DIM,
        MODE,
    )
    part = (sequence * NUM_KV_HEADS * GROUP + head) * NUM_SPLITS + split
    tl.store(total_ptr + part[:, None] * HEAD_DIM + dim[None, :], total, mask=mask)
    tl.store(softmax_ptr + part * 2, highest, mask=head_mask)
    tl.store(softmax_ptr + part * 2 + 1, weight_sum, mask=head_mask)


@triton.jit(do_not_specialize=["window"])
def combine_kernel(
    total_ptr,
    softmax_ptr,
    out_ptr,
    query_starts_ptr,
    context_lens_ptr,
    window,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    BLOCK_CONTEXT: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """The attention of one head from its splits. Grid: sequences, heads."""
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    token = tl.load(query_starts_ptr + sequence).to(tl.int64)
    if tl.load(query_starts_ptr + sequence + 1) == token:
        return
    context_len = tl.load(context_lens_ptr + sequence)
    first_seen = tl.maximum(context_len - window, 0)
    length = _split_length(first_seen, context_len, NUM_SPLITS, BLOCK_CONTEXT)
    split = tl.arange(0, NUM_SPLITS)
    dim = tl.arange(0, BLOCK_DIM)
    written = first_seen // BLOCK_CONTEXT * BLOCK_CONTEXT + split * length < context_len
    part = (sequence * NUM_HEADS + head) * NUM_SPLITS + split
    highest = tl.load(softmax_ptr + part * 2, mask=written, other=float("-inf"))
    weight_sum = tl.load(softmax_ptr + part * 2 + 1, mask=written, other=0.0)
    mask = written[:, None] & (dim < HEAD_DIM)[None, :]
    total = tl.load(total_ptr + part[:, None] * HEAD_DIM + dim[None, :], mask=mask, other=0.0)
    # every split that was written has seen something, so the largest score is finite
    share = tl.exp2(highest - tl.max(highest, axis=0))
    result = tl.sum(total * share[:, None], axis=0) / tl.sum(weight_sum * share, axis=0)
    out = out_ptr + (token * NUM_HEADS + head) * HEAD_DIM + dim
    tl.store(out, result.to(out_ptr.dtype.element_ty), mask=dim < HEAD_DIM)

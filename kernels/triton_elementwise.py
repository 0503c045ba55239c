"""Norms, rotary embedding, the write into the KV pages and SiLU-and-multiply: one launch each, bound by memory.

Knows strides and nothing of sequences or adapters. Every sum is taken in fp32.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# A @triton.jit function is a program for the device in Python's syntax: its types are the compiler's.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE_ELEMENTS = 4096
"""Values that one program holds where it may take several rows or a part of one."""


@triton.jit(do_not_specialize=["num_rows"])
def _rms_norm_kernel(
    x_ptr,
    weight_ptr,
    out_ptr,
    num_rows,
    token_stride,
    head_stride,
    eps,
    NUM_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_WIDTH)
    inside = (row < num_rows)[:, None] & (column < WIDTH)[None, :]
    x_row = (row // NUM_HEADS) * token_stride + (row % NUM_HEADS) * head_stride
    x = tl.load(x_ptr + x_row[:, None] + column[None, :], mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / WIDTH + eps)
    normed = x * scale[:, None] * weight[None, :]
    tl.store(out_ptr + row[:, None] * WIDTH + column[None, :], normed.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _add_rms_norm_kernel(x_ptr, residual_ptr, weight_ptr, out_ptr, eps, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    column = tl.arange(0, BLOCK_WIDTH)
    inside = column < WIDTH
    place = tl.program_id(0).to(tl.int64) * WIDTH + column
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    residual = tl.load(residual_ptr + place, mask=inside, other=0.0).to(tl.float32)
    # The norm is that of the residual as it is stored, rounded.
    residual = (residual + x).to(residual_ptr.dtype.element_ty)
    tl.store(residual_ptr + place, residual, mask=inside)
    residual = residual.to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(residual * residual, axis=0) / WIDTH + eps)
    tl.store(out_ptr + place, (residual * scale * weight).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _rotate_heads(heads_ptr, cos, sin, half, NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HALF: tl.constexpr):
    """Rotate all heads of one token. cos, sin, half: [block], the last one the indices 0, 1, ..."""
    BLOCK_HEADS: tl.constexpr = triton.next_power_of_2(NUM_HEADS)
    head = tl.arange(0, BLOCK_HEADS)
    inside = (head < NUM_HEADS)[:, None] & (half < HALF)[None, :]
    first_ptr = heads_ptr + head[:, None] * HEAD_DIM + half[None, :]
    first = tl.load(first_ptr, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(first_ptr + HALF, mask=inside, other=0.0).to(tl.float32)
    tl.store(first_ptr, (first * cos - second * sin).to(heads_ptr.dtype.element_ty), mask=inside)
    tl.store(first_ptr + HALF, (second * cos + first * sin).to(heads_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _rotary_kernel(
    query_ptr,
    key_ptr,
    cos_ptr,
    sin_ptr,
    positions_ptr,
    query_stride,
    key_stride,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    half = tl.arange(0, BLOCK_HALF)
    angle = tl.load(positions_ptr + token) * HALF + half
    cos = tl.load(cos_ptr + angle, mask=half < HALF, other=0.0)[None, :]
    sin = tl.load(sin_ptr + angle, mask=half < HALF, other=0.0)[None, :]
    _rotate_heads(query_ptr + token * query_stride, cos, sin, half, NUM_HEADS, HEAD_DIM, HALF)
    _rotate_heads(key_ptr + token * key_stride, cos, sin, half, NUM_KV_HEADS, HEAD_DIM, HALF)


@triton.jit
def _write_kv_kernel(
    key_ptr,
    value_ptr,
    key_pages_ptr,
    value_pages_ptr,
    slots_ptr,
    key_stride,
    value_stride,
    NUM_KV_HEADS: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, BLOCK_HEADS)[:, None]
    dim = tl.arange(0, BLOCK_DIM)[None, :]
    inside = (head < NUM_KV_HEADS) & (dim < HEAD_DIM)
    slot = tl.load(slots_ptr + token)
    page, offset = slot // PAGE_TOKENS, slot % PAGE_TOKENS
    place = ((page * NUM_KV_HEADS + head) * PAGE_TOKENS + offset) * HEAD_DIM + dim
    key = tl.load(key_ptr + token * key_stride + head * HEAD_DIM + dim, mask=inside)
    value = tl.load(value_ptr + token * value_stride + head * HEAD_DIM + dim, mask=inside)
    tl.store(key_pages_ptr + place, key, mask=inside)
    tl.store(value_pages_ptr + place, value, mask=inside)


@triton.jit
def _silu_and_mul_kernel(gate_up_ptr, out_ptr, token_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    gate_ptr = gate_up_ptr + token * token_stride + column
    gate = tl.load(gate_ptr, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_ptr + WIDTH, mask=inside, other=0.0).to(tl.float32)
    decay = tl.exp(-tl.abs(gate))  # of a positive argument it could overflow
    product = gate * tl.where(gate >= 0, 1.0, decay) / (1.0 + decay) * up
    tl.store(out_ptr + token * WIDTH + column, product.to(out_ptr.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`ops.Kernels.rms_norm`. x of more than three dimensions is copied first."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    width = x.shape[-1]
    heads = x if x.ndim == 3 else x.reshape(-1, 1, width)
    num_rows = heads.shape[0] * heads.shape[1]
    block_width = triton.next_power_of_2(width)
    block_rows = max(1, TILE_ELEMENTS // block_width)
    _rms_norm_kernel[(triton.cdiv(num_rows, block_rows),)](
        heads,
        weight,
        out,
        num_rows,
        heads.stride(0),
        heads.stride(1),
        eps,
        NUM_HEADS=heads.shape[1],
        WIDTH=width,
        BLOCK_ROWS=block_rows,
        BLOCK_WIDTH=block_width,
    )
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`ops.Kernels.add_rms_norm`."""
    out = torch.empty_like(residual)
    num_tokens, width = x.shape
    if num_tokens:
        _add_rms_norm_kernel[(num_tokens,)](
            x, residual, weight, out, eps, WIDTH=width, BLOCK_WIDTH=triton.next_power_of_2(width)
        )
    return out


def rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> None:
    """`ops.Kernels.rotary`."""
    num_tokens, num_heads, head_dim = query.shape
    if num_tokens:
        _rotary_kernel[(num_tokens,)](
            query,
            key,
            cos,
            sin,
            positions,
            query.stride(0),
            key.stride(0),
            NUM_HEADS=num_heads,
            NUM_KV_HEADS=key.shape[1],
            HEAD_DIM=head_dim,
            HALF=cos.shape[1],
            BLOCK_HALF=triton.next_power_of_2(cos.shape[1]),
        )


def write_kv(key: Tensor, value: Tensor, key_pages: Tensor, value_pages: Tensor, slots: Tensor) -> None:
    """`ops.Kernels.write_kv`."""
    num_tokens, num_kv_heads, head_dim = key.shape
    if num_tokens:
        _write_kv_kernel[(num_tokens,)](
            key,
            value,
            key_pages,
            value_pages,
            slots,
            key.stride(0),
            value.stride(0),
            NUM_KV_HEADS=num_kv_heads,
            PAGE_TOKENS=key_pages.shape[2],
            HEAD_DIM=head_dim,
            BLOCK_HEADS=triton.next_power_of_2(num_kv_heads),
            BLOCK_DIM=triton.next_power_of_2(head_dim),
        )


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """`ops.Kernels.silu_and_mul`."""
    num_tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((num_tokens, width), dtype=gate_up.dtype, device=gate_up.device)
    if num_tokens:
        block = min(triton.next_power_of_2(width), TILE_ELEMENTS)
        _silu_and_mul_kernel[(num_tokens, triton.cdiv(width, block))](
            gate_up, out, gate_up.stride(0), WIDTH=width, BLOCK=block
        )
    return out

"""What adapters scale and shift: the gains and shifts of a work list's tokens, in one launch, bound by memory.

Knows the pool and the table of `ops.LoraBatch`; knows no A and B.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# A @triton.jit function is a program for the device in Python's syntax: its types are the compiler's.

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from loraplex.kernels.ops import MAX_SLICES, TABLE_COLUMNS, WORK_NUMBERS, WORK_TOKENS, LoraBatch

TILE_COLUMNS = 256

_SLICES = tl.constexpr(MAX_SLICES)
_COLUMNS = tl.constexpr(TABLE_COLUMNS)
_ENTRY = tl.constexpr(WORK_NUMBERS)


@triton.jit(do_not_specialize=["site"])
def _scale_and_shift_kernel(
    out_ptr,
    pool_ptr,
    table_ptr,
    work_ptr,
    site,
    table_stride,
    WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[t] += scale (out[t] gain + shift). Grid: entries, column tiles."""
    entry = work_ptr + tl.program_id(0) * _ENTRY
    num_tokens = tl.load(entry + 2)
    vectors_ptr = table_ptr + tl.load(entry).to(tl.int64) * table_stride + site * _COLUMNS + 2 + _SLICES
    gain_offset, shift_offset = tl.load(vectors_ptr), tl.load(vectors_ptr + 1)
    if num_tokens == 0:
        return
    if (gain_offset < 0) & (shift_offset < 0):
        return
    scale = tl.load(entry + 3).to(tl.float32, bitcast=True)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    has_gain = column < tl.where(gain_offset >= 0, WIDTH, 0)
    has_shift = column < tl.where(shift_offset >= 0, WIDTH, 0)
    gain = tl.load(pool_ptr + gain_offset + column, mask=has_gain, other=0.0).to(tl.float32)
    shift = tl.load(pool_ptr + shift_offset + column, mask=has_shift, other=0.0).to(tl.float32)
    index = tl.arange(0, TOKENS)
    token = (tl.load(entry + 1) + index).to(tl.int64)
    place = out_ptr + token[:, None] * WIDTH + column[None, :]
    mask = (index < num_tokens)[:, None] & inside[None, :]
    before = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    after = before + scale * (before * gain[None, :] + shift[None, :])
    tl.store(place, after.to(out_ptr.dtype.element_ty), mask=mask)


def scale_and_shift(out: Tensor, lora: LoraBatch, site: int) -> None:
    """`ops.Kernels.scale_and_shift`."""
    num_entries, width = lora.work.shape[0], out.shape[1]
    if num_entries:
        _scale_and_shift_kernel[(num_entries, triton.cdiv(width, TILE_COLUMNS))](
            out,
            lora.pool,
            lora.table,
            lora.work,
            site,
            lora.table.stride(0),
            WIDTH=width,
            TOKENS=WORK_TOKENS,
            BLOCK=TILE_COLUMNS,
        )

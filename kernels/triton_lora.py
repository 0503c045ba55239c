"""Batched LoRA over a work list: one launch where the input is narrow, else two, shrink and expand.

Cost follows the true ranks. Adapters that own many tokens of a prefill run through the same kernels in larger tiles.
How a sum is split depends on the layer's widths and the length of the adapter's run alone, so a decode token's result
does not depend on what it is batched with. Knows `ops.LoraBatch`; knows no adapter by name.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from loraplex.kernels.ops import LONG_WORK_TOKENS, WORK_TOKENS, LoraBatch
from loraplex.kernels.triton_dot import dot_mode
from loraplex.kernels.triton_lora_kernels import expand_kernel, fused_kernel, shrink_kernel
from loraplex.kernels.triton_tuning import LoraTiles, lora_tiles


def add_lora(
    out: Tensor,
    x: Tensor,
    lora: LoraBatch,
    site: int,
    slice_widths: tuple[int, ...],
    tiles: LoraTiles | None = None,
) -> None:
    """`ops.Kernels.add_lora`. tiles: instead of the tuned ones."""
    if x.shape[0] == 0 or lora.max_rank == 0:
        return
    works = [(lora.work, WORK_TOKENS)]
    if lora.long_work is not None:
        works = [(lora.work[: lora.num_short], WORK_TOKENS), (lora.long_work, LONG_WORK_TOKENS)]
    for work, entry_tokens in works:
        if work.shape[0]:
            chosen = tiles or lora_tiles(x, out.shape[1], is_long=entry_tokens == LONG_WORK_TOKENS)
            launch = _fused if chosen.is_fused else _shrink_and_expand
            launch(out, x, lora, work, site, slice_widths, chosen, entry_tokens)


def _fused(
    out: Tensor,
    x: Tensor,
    lora: LoraBatch,
    work: Tensor,
    site: int,
    slice_widths: tuple[int, ...],
    tiles: LoraTiles,
    entry_tokens: int,
) -> None:
    block_columns, num_column_tiles, widths = _columns(slice_widths, tiles)
    fused_kernel[(work.shape[0], num_column_tiles)](
        out,
        x,
        lora.pool,
        lora.table,
        work,
        site,
        out.stride(0),
        x.stride(0),
        lora.table.stride(0),
        **widths,
        K=x.shape[1],
        TOKENS=entry_tokens,
        BLOCK_K=_block(x.shape[1], tiles.block_features),
        BLOCK_N=block_columns,
        MODE=dot_mode(x),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )


def _shrink_and_expand(
    out: Tensor,
    x: Tensor,
    lora: LoraBatch,
    work: Tensor,
    site: int,
    slice_widths: tuple[int, ...],
    tiles: LoraTiles,
    entry_tokens: int,
) -> None:
    num_entries, (num_tokens, in_features) = work.shape[0], x.shape
    block_ranks = _block(lora.max_rank, tiles.block_ranks)
    max_rank = triton.cdiv(lora.max_rank, block_ranks) * block_ranks
    block_features = _block(in_features, tiles.block_features)
    split = max(tiles.min_split_features, triton.cdiv(in_features, tiles.max_splits))
    split = triton.cdiv(split, block_features) * block_features
    num_splits = triton.cdiv(in_features, split)
    block_columns, num_column_tiles, widths = _columns(slice_widths, tiles)
    partial = torch.empty((num_tokens, num_splits, max_rank), dtype=torch.float32, device=x.device)
    shrink_kernel[(num_entries, max_rank // block_ranks, num_splits)](
        x,
        lora.pool,
        lora.table,
        work,
        partial,
        site,
        x.stride(0),
        lora.table.stride(0),
        max_rank,
        NUM_SPLITS=num_splits,
        SPLIT_K=split,
        K=in_features,
        TOKENS=entry_tokens,
        RANKS=block_ranks,
        BLOCK_K=block_features,
        MODE=dot_mode(x),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    expand_kernel[(num_entries, num_column_tiles)](
        out,
        lora.pool,
        lora.table,
        work,
        partial,
        site,
        out.stride(0),
        lora.table.stride(0),
        max_rank,
        **widths,
        NUM_SPLITS=num_splits,
        TOKENS=entry_tokens,
        BLOCK_N=block_columns,
        MODE=dot_mode(x),
        num_warps=tiles.num_warps,
        num_stages=tiles.expand_stages,
    )


def _columns(slice_widths: tuple[int, ...], tiles: LoraTiles) -> tuple[int, int, dict[str, int]]:
    """Columns of a tile, tiles of all slices, and the kernels' widths."""
    block = _block(max(slice_widths), tiles.block_columns)
    widths = dict(zip(("WIDTH_0", "WIDTH_1", "WIDTH_2"), (*slice_widths, 0, 0), strict=False))
    return block, sum(triton.cdiv(width, block) for width in slice_widths), widths


def _block(length: int, most: int) -> int:
    """A tile's side: a power of 2 from 16, what a tensor-core product takes, to `most`."""
    side: int = max(16, min(most, triton.next_power_of_2(length)))
    return side

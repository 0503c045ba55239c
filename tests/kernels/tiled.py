"""The Triton kernels with chosen tiles instead of tuned ones, so that every way through them is checked anywhere."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from loraplex.kernels import triton_attention, triton_lora
from loraplex.kernels.triton_backend import TritonKernels
from loraplex.kernels.triton_tuning import AttentionTiles, LoraTiles


class TiledKernels(TritonKernels):
    """None: the tuned tiles."""

    def __init__(self, attention: AttentionTiles | None = None, lora: LoraTiles | None = None) -> None:
        self.attention, self.lora = attention, lora

    def paged_attention(self, *args: Any) -> Tensor:
        return triton_attention.paged_attention(*args, tiles=self.attention)

    def add_lora(self, *args: Any) -> None:
        triton_lora.add_lora(*args, tiles=self.lora)


TILES = {
    "fused": TiledKernels(lora=LoraTiles(is_fused=True, block_features=64, block_columns=32)),
    "many sums": TiledKernels(
        lora=LoraTiles(min_split_features=64, block_features=32, block_columns=32, max_splits=16)
    ),
    "wide ranks": TiledKernels(lora=LoraTiles(block_ranks=64, block_features=64)),
    **{
        f"{splits} splits": TiledKernels(
            attention=AttentionTiles(block_context=32, min_split=1, max_splits=splits, programs_per_processor=1000)
        )
        for splits in (2, 8, 32)
    },
}
"""By what is unusual about them."""

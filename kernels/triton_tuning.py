"""Tile sizes of the Triton kernels: data per architecture in tuning/, with defaults for what it does not name.

`benchmarks/gpu_kernels.py tune` measures candidates and writes the data. Knows names of shape classes; knows no kernel.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

TUNING_FOLDER = Path(__file__).parent / "tuning"

# The interpreter has no processors. It is told those of an H100, so that it takes the ways that such a GPU takes.
_INTERPRETED_PROCESSORS = 132


@dataclass(frozen=True, slots=True)
class AttentionTiles:
    """rows of queries and positions of context that a program holds at once; when and how far decodes are split.

    programs_per_processor: as many programs as are wanted at once; min_split: positions that are worth a program.
    """

    rows: int = 64
    block_context: int = 64
    num_warps: int = 4
    num_stages: int = 2
    programs_per_processor: int = 2
    min_split: int = 128
    max_splits: int = 32


@dataclass(frozen=True, slots=True)
class LoraTiles:
    """Features, ranks and columns that a program holds at once, and into how many sums the features are split.

    is_fused: one launch, in which every program of the output takes the whole product with A for itself.
    """

    block_features: int = 128
    block_ranks: int = 16
    block_columns: int = 256
    min_split_features: int = 512
    max_splits: int = 8
    num_warps: int = 4
    num_stages: int = 3
    expand_stages: int = 2
    is_fused: bool = False


LONG_TILES = LoraTiles(
    block_features=64, block_ranks=64, block_columns=128, min_split_features=2048, max_splits=4, num_warps=8
)
FUSED_FEATURES = 1024
"""Up to this many input features an entry of few tokens is fused unless the data says otherwise."""

Tiles = TypeVar("Tiles", AttentionTiles, LoraTiles)


def attention_tiles(query: Tensor, *, is_decode: bool) -> AttentionTiles:
    """fp32 takes small tiles, tuned nowhere: its products run without tensor cores, from registers."""
    if query.dtype == torch.float32:
        return AttentionTiles(rows=32, block_context=32)
    return _attention_tiles(architecture(query.device), is_decode, query.shape[-1])


def lora_tiles(x: Tensor, out_features: int, *, is_long: bool) -> LoraTiles:
    """is_long: for entries of up to LONG_WORK_TOKENS."""
    return _lora_tiles(architecture(x.device), is_long, x.shape[-1], out_features)


def attention_class(head_dim: int, *, is_decode: bool) -> str:
    return f"attention {'decode' if is_decode else 'prefill'} {head_dim}"


def lora_class(in_features: int, out_features: int, *, is_long: bool) -> str:
    return f"lora {'long' if is_long else 'short'} {in_features}x{out_features}"


@cache
def architecture(device: torch.device) -> str:
    """The name of the device's file in tuning/: sm_90 for an H100."""
    if device.type != "cuda":
        return "interpreter"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@cache
def num_processors(device: torch.device) -> int:
    """Streaming multiprocessors."""
    if device.type != "cuda":
        return _INTERPRETED_PROCESSORS
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def data_path(name: str) -> Path:
    return TUNING_FOLDER / f"{name}.json"


@cache
def _attention_tiles(name: str, is_decode: bool, head_dim: int) -> AttentionTiles:
    return _tuned(name, attention_class(head_dim, is_decode=is_decode), AttentionTiles())


@cache
def _lora_tiles(name: str, is_long: bool, in_features: int, out_features: int) -> LoraTiles:
    default = LONG_TILES if is_long else LoraTiles(is_fused=in_features <= FUSED_FEATURES)
    return _tuned(name, lora_class(in_features, out_features, is_long=is_long), default)


def _tuned(name: str, shape_class: str, default: Tiles) -> Tiles:
    """The class's entry in an architecture's file; where there is none, the default."""
    entry = _data(name).get(shape_class)
    return default if entry is None else type(default)(**entry)


@cache
def _data(name: str) -> dict[str, dict[str, Any]]:
    path = data_path(name)
    data: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    return data

"""Find the tile sizes that are fastest on the device at hand, and write them where the kernels look them up.

One field is varied at a time from the default, the best value kept, over all fields twice. A class of shapes is judged
by the sum over its workloads of the time relative to the default's, so that none counts for more because it is longer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from gpu_kernel_workloads import ModelShape
from gpu_report import Timer
from kernels import cases

from loraplex.kernels import triton_attention, triton_lora
from loraplex.kernels.triton_tuning import (
    LONG_TILES,
    AttentionTiles,
    LoraTiles,
    architecture,
    attention_class,
    data_path,
    lora_class,
)

CANDIDATES: dict[str, dict[str, tuple[int | bool, ...]]] = {
    "attention prefill": {"rows": (64, 128), "block_context": (32, 64, 128), "num_warps": (4, 8), "num_stages": (2, 3)},
    "attention decode": {
        "block_context": (32, 64, 128),
        "num_warps": (2, 4, 8),
        "num_stages": (2, 3, 4),
        "programs_per_processor": (1, 2, 4),
        "min_split": (64, 128, 256),
    },
    "lora short": {
        "is_fused": (False, True),
        "block_features": (64, 128, 256),
        "max_splits": (4, 8, 16),
        "block_columns": (64, 128, 256, 512),
        "num_warps": (2, 4, 8),
        "num_stages": (2, 3, 4),
        "expand_stages": (1, 2, 3),
    },
    "lora long": {
        "block_features": (32, 64, 128),
        "block_ranks": (16, 32, 64),
        "block_columns": (64, 128, 256),
        "max_splits": (1, 2, 4),
        "num_warps": (4, 8),
        "num_stages": (2, 3, 4),
        "expand_stages": (1, 2),
    },
}
WORTH = 0.98
"""A class is written when its time is at most this share of the default's."""

Tiles = AttentionTiles | LoraTiles


@dataclass(frozen=True)
class TuningClass:
    """A class of shapes: its name in the data, its kind in CANDIDATES, and workloads that take tiles."""

    name: str
    kind: str
    default: Tiles
    calls: Sequence[Callable[..., object]]


def tune(timer: Timer, shape: ModelShape, *, keep: bool, only: str = "") -> None:
    """keep: write what was found, beside what the file says of other classes."""
    path = data_path(architecture(timer.device))
    data: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for make in _classes(timer.device, shape):
        tuning_class = make()
        if only not in tuning_class.name:
            continue
        tiles, share = best_tiles(timer, tuning_class, quick=not keep)
        print(f"{tuning_class.name:28} {share:6.1%} of the default's time  {tiles}", flush=True)
        data.pop(tuning_class.name, None)
        if share <= WORTH:
            data[tuning_class.name] = asdict(tiles)
        if keep:
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")
    print(f"written to {path}" if keep else "nothing written")


def best_tiles(timer: Timer, tuning_class: TuningClass, *, quick: bool) -> tuple[Tiles, float]:
    """The tiles, and their time as a share of the default's. quick: two candidates per field, once."""
    baseline = [_seconds(timer, call, tuning_class.default) for call in tuning_class.calls]
    best, best_share = tuning_class.default, 1.0
    for _ in range(1 if quick else 2):
        for field, values in CANDIDATES[tuning_class.kind].items():
            for value in values[:2] if quick else values:
                candidate = replace(best, **{field: value})
                if candidate == best:
                    continue
                shares = [
                    _seconds(timer, call, candidate) / before
                    for call, before in zip(tuning_class.calls, baseline, strict=True)
                ]
                if (share := sum(shares) / len(shares)) < best_share:
                    best, best_share = candidate, share
    return best, best_share


def _seconds(timer: Timer, call: Callable[..., object], tiles: Tiles) -> float:
    try:
        return timer.seconds(timer.graphed(partial(call, tiles=tiles)), repeats=20)
    except Exception as error:  # tiles that do not fit the device are only slower than all others
        print(f"    {tiles}: {type(error).__name__}")
        return float("inf")


def _classes(device: torch.device, shape: ModelShape) -> list[Callable[[], TuningClass]]:
    """Made when they are asked for: all at once they would not fit a device."""
    kv_width = shape.kv_heads * shape.head_dim
    sites = {
        (shape.hidden, (shape.heads * shape.head_dim, kv_width, kv_width)): "qkv",
        (shape.heads * shape.head_dim, (shape.hidden,)): "out",
        (shape.hidden, (shape.intermediate, shape.intermediate)): "gate_up",
        (shape.intermediate, (shape.hidden,)): "down",
    }
    made = [partial(_lora, device, *site, is_long=is_long) for site in sites for is_long in (False, True)]
    return [*made, *[partial(_attention, device, shape, is_decode=is_decode) for is_decode in (True, False)]]


def _lora(device: torch.device, in_features: int, widths: tuple[int, ...], *, is_long: bool) -> TuningClass:
    batches = (((0,), 1024), (range(8), 1024)) if is_long else (((0,), 1), ((0,), 32), (range(8), 1), (range(64), 1))
    if device.type == "cpu":
        batches = (((0,), 128 if is_long else 1),)
    calls = []
    for adapters, tokens in batches:
        args = cases.lora_args(
            device,
            torch.bfloat16,
            0,
            adapters=tuple((16,) * len(widths) for _ in adapters),
            segments=tuple((adapter, tokens) for adapter in adapters),
            in_features=in_features,
            slice_widths=widths,
        )
        calls.append(partial(triton_lora.add_lora, *args))
    name = lora_class(in_features, sum(widths), is_long=is_long)
    default = LONG_TILES if is_long else LoraTiles()
    return TuningClass(name, f"lora {'long' if is_long else 'short'}", default, calls)


def _attention(device: torch.device, shape: ModelShape, *, is_decode: bool) -> TuningClass:
    batches = [((1, 1024),), ((1, 1024),) * 8, ((1, 1024),) * 64, ((1, 16384),) * 2]
    if not is_decode:
        batches = [((2048, 2048),) * 4, ((512, 4096),)]
    if device.type == "cpu":
        batches = [((1, 70),)] if is_decode else [((20, 20),)]
    calls = []
    for sequences in batches:
        args = cases.attention_args(
            device,
            torch.bfloat16,
            0,
            sequences=sequences,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
        )
        calls.append(partial(triton_attention.paged_attention, *args))
    kind = f"attention {'decode' if is_decode else 'prefill'}"
    return TuningClass(attention_class(shape.head_dim, is_decode=is_decode), kind, AttentionTiles(), calls)

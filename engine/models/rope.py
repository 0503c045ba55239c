"""Tables of cosines and sines for rotary position embedding, one function per scaling variant.

Knows positions and frequencies. Knows no model and no batch: whoever applies the tables does so elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from loraplex.engine.models.config import ModelConfig, RopeConfig


def rope_tables(config: ModelConfig, max_len: int) -> tuple[Tensor, Tensor]:
    """cos and sin, both fp32 [max_len, head_dim / 2] on the CPU; row = position, attention factor multiplied in.

    Dynamic scaling is applied as static NTK for the served length: up to `max_position_embeddings` positions the
    tables are those of plain RoPE; beyond it, the base that belongs to `max_len` holds for every position. A base that
    grows with each sequence would change the meaning of keys that are already cached.
    """
    rope = config.rope
    frequencies = _FREQUENCIES[rope.kind](config, max_len)
    angles = torch.outer(torch.arange(max_len, dtype=torch.float32), frequencies)
    factor = _yarn_attention_factor(rope) if rope.kind == "yarn" else 1.0
    return angles.cos() * factor, angles.sin() * factor


def _plain(theta: float, head_dim: int) -> Tensor:
    """[head_dim / 2] radians per position: theta ** (-2i / head_dim)."""
    return 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def _default(config: ModelConfig, max_len: int) -> Tensor:
    return _plain(config.rope.theta, config.head_dim)


def _linear(config: ModelConfig, max_len: int) -> Tensor:
    return _plain(config.rope.theta, config.head_dim) / config.rope.factor


def _dynamic(config: ModelConfig, max_len: int) -> Tensor:
    factor, dim = config.rope.factor, config.head_dim
    stretch = max(max_len / config.max_position_embeddings, 1.0)
    growth: float = (factor * stretch - (factor - 1)) ** (dim / (dim - 2))
    return _plain(config.rope.theta * growth, dim)


def _llama3(config: ModelConfig, max_len: int) -> Tensor:
    """Slow frequencies are divided by the factor, fast ones kept, those between blended by their wavelength."""
    rope = config.rope
    plain = _plain(rope.theta, config.head_dim)
    turns = rope.original_max_position_embeddings * plain / (2 * math.pi)
    kept = ((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0, 1)
    return kept * plain + (1 - kept) * plain / rope.factor


def _yarn(config: ModelConfig, max_len: int) -> Tensor:
    """Dimensions that turn more than beta_fast times in the original context are kept, below beta_slow divided."""
    rope, dim = config.rope, config.head_dim
    low, high = _yarn_dimension(rope, dim, rope.beta_fast), _yarn_dimension(rope, dim, rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    divided = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    plain = _plain(rope.theta, dim)
    return (1 - divided) * plain + divided * plain / rope.factor


def _yarn_dimension(rope: RopeConfig, dim: int, turns: float) -> float:
    """The (fractional) frequency index that makes `turns` full turns within the original context."""
    positions_per_radian = rope.original_max_position_embeddings / (turns * 2 * math.pi)
    return dim * math.log(positions_per_radian) / (2 * math.log(rope.theta))


def _yarn_attention_factor(rope: RopeConfig) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return _mscale(rope.factor, rope.mscale) / _mscale(rope.factor, rope.mscale_all_dim)
    return _mscale(rope.factor, 1.0)


def _mscale(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


_FREQUENCIES: dict[str, Callable[[ModelConfig, int], Tensor]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
}

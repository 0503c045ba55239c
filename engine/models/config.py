"""What a Hugging Face `config.json` says about a decoder, and whether the native decoder serves it.

Knows the four Llama-like families and the spellings of their settings. Knows no tensors and no weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from loraplex.adapters.types import BaseShape, LoraSite, LoraSlice

FAMILIES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn"]
ROPE_KINDS: tuple[RopeKind, ...] = ("default", "linear", "dynamic", "llama3", "yarn")
_NEEDS_FACTOR = ("linear", "dynamic", "llama3")


class UnsupportedModel(ValueError):
    """The model cannot be served; the message says which setting is in the way and what is served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding. Fields that a kind does not use are ignored; lengths in tokens.

    attention_factor: yarn only, what cos and sin are multiplied by; None derives it from `factor` and the mscales.
    """

    kind: RopeKind = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The shape of one decoder. Sizes in elements, lengths in tokens.

    sliding_windows: one entry per layer, None where the layer attends to everything before it.
    eos_token_ids: union of config.json and generation_config.json, without repeats.
    dtype: of the stored weights, as torch names it (`bfloat16`).
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    rope: RopeConfig
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_windows: tuple[int | None, ...]
    eos_token_ids: tuple[int, ...]
    dtype: str

    @classmethod
    def from_folder(cls, folder: Path) -> ModelConfig:
        """Read `config.json` and, where there is one, `generation_config.json`."""
        generation = folder / "generation_config.json"
        return parse(_read_object(folder / "config.json"), _read_object(generation) if generation.exists() else {})


def parse(raw: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> ModelConfig:
    """Contents of config.json (and generation_config.json) -> ModelConfig. Raises UnsupportedModel."""
    architecture = _architecture(raw)
    _refuse_what_is_not_served(raw)
    num_layers = _count(raw, "num_hidden_layers")
    num_heads = _count(raw, "num_attention_heads")
    num_kv_heads = _count(raw, "num_key_value_heads", default=num_heads)
    hidden_size = _count(raw, "hidden_size")
    if num_heads % num_kv_heads:
        raise UnsupportedModel(
            f"num_attention_heads {num_heads} is not a multiple of num_key_value_heads {num_kv_heads}"
        )
    attention_bias = bool(raw.get("attention_bias", False))
    return ModelConfig(
        architecture=architecture,
        vocab_size=_count(raw, "vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=_head_dim(raw, architecture, hidden_size, num_heads),
        intermediate_size=_count(raw, "intermediate_size"),
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        max_position_embeddings=_count(raw, "max_position_embeddings"),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        rope=_rope(raw),
        qkv_bias=architecture == "Qwen2ForCausalLM" or (attention_bias and architecture != "MistralForCausalLM"),
        o_bias=attention_bias and architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM"),
        mlp_bias=architecture == "LlamaForCausalLM" and bool(raw.get("mlp_bias", False)),
        qk_norm=architecture == "Qwen3ForCausalLM",
        sliding_windows=_sliding_windows(raw, architecture, num_layers),
        eos_token_ids=_eos_token_ids(raw, generation or {}),
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch."),
    )


def lora_shape(config: ModelConfig) -> BaseShape:
    """Where this model takes LoRA: four fused projections in every layer."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    q, k, v = (LoraSlice(f"self_attn.{name}_proj", width) for name, width in (("q", queries), ("k", keys), ("v", keys)))
    return BaseShape(
        architecture=config.architecture,
        vocab_size=config.vocab_size,
        num_layers=config.num_layers,
        sites=(
            LoraSite("qkv", hidden, (q, k, v)),
            LoraSite("o", queries, (LoraSlice("self_attn.o_proj", hidden),)),
            LoraSite("gate_up", hidden, (LoraSlice("mlp.gate_proj", inner), LoraSlice("mlp.up_proj", inner))),
            LoraSite("down", inner, (LoraSlice("mlp.down_proj", hidden),)),
        ),
    )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise UnsupportedModel(f"{path} is not a JSON object")
    return value


def _architecture(raw: Mapping[str, Any]) -> str:
    names = raw.get("architectures") or []
    for name in names:
        if name in FAMILIES:
            return str(name)
    found = ", ".join(map(str, names)) or f"model_type {raw.get('model_type')!r} without `architectures`"
    raise UnsupportedModel(f"architecture {found} is not served; served are {', '.join(FAMILIES)}")


def _refuse_what_is_not_served(raw: Mapping[str, Any]) -> None:
    activation = raw.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedModel(f"hidden_act {activation!r} is not served; served is 'silu'")
    if raw.get("quantization_config"):
        raise UnsupportedModel(
            "quantization_config: quantised checkpoints are not served; use the unquantised one, or a GGUF file"
        )


def _count(raw: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = raw.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnsupportedModel(f"config.json: {key} must be a positive integer, not {value!r}")
    return value


def _head_dim(raw: Mapping[str, Any], architecture: str, hidden_size: int, num_heads: int) -> int:
    default = 128 if architecture == "Qwen3ForCausalLM" else hidden_size // num_heads
    head_dim = _count(raw, "head_dim", default)
    if head_dim % 2:
        raise UnsupportedModel(f"head_dim {head_dim} is odd; rotary embeddings need an even one")
    return head_dim


def _rope(raw: Mapping[str, Any]) -> RopeConfig:
    """Both spellings: `rope_theta` beside `rope_scaling`, and Transformers 5's `rope_parameters` that holds all."""
    settings = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    kind = settings.get("rope_type") or settings.get("type") or "default"
    if kind not in ROPE_KINDS:
        raise UnsupportedModel(f"rope_type {kind!r} is not served; served are {', '.join(ROPE_KINDS)}")
    if settings.get("partial_rotary_factor", raw.get("partial_rotary_factor")) not in (None, 1, 1.0):
        raise UnsupportedModel("partial_rotary_factor other than 1 is not served")
    max_positions = _count(raw, "max_position_embeddings")
    original = settings.get("original_max_position_embeddings") or raw.get("original_max_position_embeddings")
    # Some yarn checkpoints leave the factor to be read off the two lengths.
    default_factor = max_positions / original if kind == "yarn" and original else 1.0
    if kind in _NEEDS_FACTOR and settings.get("factor") is None:
        raise UnsupportedModel(f"config.json: rope_type {kind!r} needs a `factor`")
    return RopeConfig(
        kind=cast("RopeKind", kind),
        theta=float(settings.get("rope_theta") or raw.get("rope_theta") or 10_000.0),
        factor=float(settings.get("factor") or default_factor),
        original_max_position_embeddings=int(original or max_positions),
        low_freq_factor=float(settings.get("low_freq_factor") or 1.0),
        high_freq_factor=float(settings.get("high_freq_factor") or 4.0),
        beta_fast=float(settings.get("beta_fast") or 32.0),
        beta_slow=float(settings.get("beta_slow") or 1.0),
        attention_factor=settings.get("attention_factor"),
        mscale=settings.get("mscale"),
        mscale_all_dim=settings.get("mscale_all_dim"),
        truncate=bool(settings.get("truncate", True)),
    )


def _sliding_windows(raw: Mapping[str, Any], architecture: str, num_layers: int) -> tuple[int | None, ...]:
    if architecture == "LlamaForCausalLM" or raw.get("sliding_window") is None:
        return (None,) * num_layers
    if architecture == "MistralForCausalLM":
        return (_count(raw, "sliding_window"),) * num_layers
    if not raw.get("use_sliding_window", False):
        return (None,) * num_layers
    window = _count(raw, "sliding_window")
    first_sliding = int(raw.get("max_window_layers", 28))
    kinds = raw.get("layer_types") or [
        "full_attention" if layer < first_sliding else "sliding_attention" for layer in range(num_layers)
    ]
    if len(kinds) != num_layers or set(kinds) - {"full_attention", "sliding_attention"}:
        raise UnsupportedModel(
            f"layer_types must name full_attention or sliding_attention for each of the {num_layers} layers"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _eos_token_ids(*sources: Mapping[str, Any]) -> tuple[int, ...]:
    found: dict[int, None] = {}
    for source in sources:
        value = source.get("eos_token_id")
        for token_id in value if isinstance(value, list) else [value]:
            if isinstance(token_id, int):
                found[token_id] = None
    return tuple(found)

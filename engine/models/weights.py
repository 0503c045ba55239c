"""Weights of a base model: from safetensors files, or random ones of the same shapes for benchmarks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from loraplex.engine.models.config import ModelConfig
from loraplex.engine.models.decoder import DecoderWeights, LayerWeights
from loraplex.engine.models.rope import rope_tables
from loraplex.kernels.ops import Kernels, Linear

TensorSource = Callable[[str, tuple[int, ...]], Tensor]
"""Name and shape of a tensor in a Hugging Face checkpoint -> the tensor, on the device and in the dtype of the run."""


class WeightsError(Exception):
    """The checkpoint lacks a tensor, or one has another shape than the configuration says."""


def load_weights(
    folder: Path, config: ModelConfig, kernels: Kernels, dtype: torch.dtype, device: torch.device, max_len: int
) -> DecoderWeights:
    """Read every *.safetensors of the folder. Raises WeightsError, naming the tensor."""
    with ExitStack() as stack:
        location: dict[str, safe_open] = {}
        for file in sorted(folder.glob("*.safetensors")):
            opened = stack.enter_context(safe_open(file, framework="pt"))
            location.update(dict.fromkeys(opened.keys(), opened))
        if not location:
            raise WeightsError(f"no *.safetensors in {folder}")
        return _assemble(_from_files(location, dtype, device), config, kernels, device, max_len)


def dummy_weights(
    config: ModelConfig, kernels: Kernels, dtype: torch.dtype, device: torch.device, max_len: int, seed: int = 0
) -> DecoderWeights:
    """Random weights of the configuration's shapes, made on the device: for timing and parity, not for text."""
    generator = torch.Generator(device).manual_seed(seed)

    def random(name: str, shape: tuple[int, ...]) -> Tensor:
        if name.endswith("norm.weight"):
            return torch.ones(shape, dtype=dtype, device=device)
        return torch.randn(shape, dtype=dtype, device=device, generator=generator) * 0.02

    return _assemble(random, config, kernels, device, max_len)


def model_digest(folder: Path) -> str:
    """Names a base model's weights for the KV cache: SHA-256 over config.json and the safetensors headers and sizes.

    Headers rather than all bytes, since it only has to tell apart what one server process can hold.
    """
    state = hashlib.sha256(b"loraplex model 1")
    state.update((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            header = stream.read(int.from_bytes(stream.read(8), "little"))
        state.update(json.dumps([file.name, file.stat().st_size]).encode() + header)
    return state.hexdigest()


def _from_files(location: Mapping[str, safe_open], dtype: torch.dtype, device: torch.device) -> TensorSource:
    def read(name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in location:
            raise WeightsError(f"the checkpoint has no tensor {name}")
        tensor: Tensor = location[name].get_tensor(name)  # type: ignore[no-untyped-call]  # safetensors
        if tuple(tensor.shape) != shape:
            raise WeightsError(f"{name} has shape {tuple(tensor.shape)}, the configuration says {shape}")
        return tensor.to(device=device, dtype=dtype)

    return read


def _assemble(
    source: TensorSource, config: ModelConfig, kernels: Kernels, device: torch.device, max_len: int
) -> DecoderWeights:
    embedding = source("model.embed_tokens.weight", (config.vocab_size, config.hidden_size))
    head = embedding if config.tie_word_embeddings else source("lm_head.weight", tuple(embedding.shape))
    cos, sin = rope_tables(config, max_len)
    return DecoderWeights(
        embedding=embedding,
        layers=tuple(_layer(source, config, kernels, index) for index in range(config.num_layers)),
        final_norm=source("model.norm.weight", (config.hidden_size,)),
        lm_head=kernels.linear(head, None),
        cos=cos.to(device),
        sin=sin.to(device),
    )


def _layer(source: TensorSource, config: ModelConfig, kernels: Kernels, index: int) -> LayerWeights:
    prefix = f"model.layers.{index}"
    hidden, intermediate = config.hidden_size, config.intermediate_size
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

    def fused(names: tuple[str, ...], outs: tuple[int, ...], width: int, *, bias: bool) -> Linear:
        weight = torch.cat([source(f"{prefix}.{n}.weight", (out, width)) for n, out in zip(names, outs, strict=True)])
        biases = [source(f"{prefix}.{n}.bias", (out,)) for n, out in zip(names, outs, strict=True)] if bias else None
        return kernels.linear(weight, torch.cat(biases) if biases else None)

    def head_norm(name: str) -> Tensor | None:
        return source(f"{prefix}.self_attn.{name}.weight", (config.head_dim,)) if config.qk_norm else None

    qkv = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    return LayerWeights(
        input_norm=source(f"{prefix}.input_layernorm.weight", (hidden,)),
        qkv=fused(qkv, (query, key, key), hidden, bias=config.qkv_bias),
        q_norm=head_norm("q_norm"),
        k_norm=head_norm("k_norm"),
        o=fused(("self_attn.o_proj",), (hidden,), query, bias=config.o_bias),
        post_attention_norm=source(f"{prefix}.post_attention_layernorm.weight", (hidden,)),
        gate_up=fused(("mlp.gate_proj", "mlp.up_proj"), (intermediate, intermediate), hidden, bias=config.mlp_bias),
        down=fused(("mlp.down_proj",), (hidden,), intermediate, bias=config.mlp_bias),
    )

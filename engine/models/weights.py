"""Weights of a base model: from safetensors files, or random ones of the same shapes for benchmarks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from loraplex.engine.models.config import ModelConfig
from loraplex.engine.models.decoder import DecoderWeights, LayerWeights
from loraplex.engine.models.rope import rope_tables
from loraplex.engine.settings import Quantization
from loraplex.kernels.ops import Kernels, Linear
from loraplex.kernels.quantization import QuantizedKernels, quantize

TensorSource = Callable[[str, tuple[int, ...]], Tensor]
"""Name and shape of a tensor in a Hugging Face checkpoint -> the tensor, on the device and in the dtype of the run."""


class WeightsError(Exception):
    """The checkpoint lacks a tensor, one has another shape than the configuration says, or the kernels cannot multiply
    the weights that were asked for."""


MakeLinear = Callable[[Tensor, Tensor | None], Linear]
"""Weight [out_features, in_features] and bias, as in the checkpoint -> their product."""

HEAD_BITS = 8
"""The output head is never held in fewer: of all matrices, 4 bits cost it the most quality."""


@dataclass(frozen=True, slots=True)
class _Linears:
    """How the matrices of the layers, and that of the output head, become products."""

    layer: MakeLinear
    head: MakeLinear


def load_weights(
    folder: Path,
    config: ModelConfig,
    kernels: Kernels,
    dtype: torch.dtype,
    device: torch.device,
    max_len: int,
    quantization: Quantization = "none",
) -> DecoderWeights:
    """Read every *.safetensors of the folder. Raises WeightsError, naming the tensor.

    quantization: of the layers' matrices and, at HEAD_BITS or more, of the output head. The embedding, norms and biases
    keep dtype.
    """
    linears = _linears(kernels, quantization)
    with ExitStack() as stack:
        location: dict[str, safe_open] = {}
        for file in sorted(folder.glob("*.safetensors")):
            opened = stack.enter_context(safe_open(file, framework="pt"))
            location.update(dict.fromkeys(opened.keys(), opened))
        if not location:
            raise WeightsError(f"no *.safetensors in {folder}")
        return _assemble(_from_files(location, dtype, device), config, linears, device, max_len)


def dummy_weights(
    config: ModelConfig,
    kernels: Kernels,
    dtype: torch.dtype,
    device: torch.device,
    max_len: int,
    seed: int = 0,
    quantization: Quantization = "none",
) -> DecoderWeights:
    """Random weights of the configuration's shapes, made on the device: for timing and parity, not for text."""
    source = dummy_tensors(dtype, device, seed)
    return _assemble(source, config, _linears(kernels, quantization), device, max_len)


def dummy_tensors(dtype: torch.dtype, device: torch.device, seed: int) -> TensorSource:
    """What `dummy_weights` takes for a checkpoint: the same numbers whenever a tensor is asked for."""

    def random(name: str, shape: tuple[int, ...]) -> Tensor:
        if name.endswith("norm.weight"):
            return torch.ones(shape, dtype=dtype, device=device)
        own_seed = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7])
        generator = torch.Generator(device).manual_seed(own_seed)
        return torch.randn(shape, dtype=dtype, device=device, generator=generator) * 0.02

    return random


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


def weight_bits(quantization: Quantization, *, is_head: bool) -> int | None:
    """Of a matrix of the layers, or the head's; None: it keeps its dtype."""
    if quantization == "none":
        return None
    bits = {"int8": 8, "int4": 4}[quantization]
    return max(bits, HEAD_BITS) if is_head else bits


def _linears(kernels: Kernels, quantization: Quantization) -> _Linears:
    if quantization == "none":
        return _Linears(kernels.linear, kernels.linear)
    if not isinstance(kernels, QuantizedKernels):
        raise WeightsError(
            f"--quantization {quantization}: the {kernels.name} kernels multiply weights of the run's dtype only; "
            "choose --quantization none or --device cpu"
        )
    return _Linears(*(_quantizing(kernels, weight_bits(quantization, is_head=is_head)) for is_head in (False, True)))


def _quantizing(kernels: QuantizedKernels, bits: int | None) -> MakeLinear:
    assert bits is not None
    return lambda weight, bias: kernels.quantized_linear(quantize(weight, bits), bias)


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
    source: TensorSource, config: ModelConfig, linears: _Linears, device: torch.device, max_len: int
) -> DecoderWeights:
    embedding = source("model.embed_tokens.weight", (config.vocab_size, config.hidden_size))
    head = embedding if config.tie_word_embeddings else source("lm_head.weight", tuple(embedding.shape))
    cos, sin = rope_tables(config, max_len)
    return DecoderWeights(
        embedding=embedding,
        layers=tuple(_layer(source, config, linears.layer, index) for index in range(config.num_layers)),
        final_norm=source("model.norm.weight", (config.hidden_size,)),
        lm_head=linears.head(head, None),
        cos=cos.to(device),
        sin=sin.to(device),
    )


def _layer(source: TensorSource, config: ModelConfig, make_linear: MakeLinear, index: int) -> LayerWeights:
    prefix = f"model.layers.{index}"
    hidden, intermediate = config.hidden_size, config.intermediate_size
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

    def fused(names: tuple[str, ...], outs: tuple[int, ...], width: int, *, bias: bool) -> Linear:
        weight = torch.cat([source(f"{prefix}.{n}.weight", (out, width)) for n, out in zip(names, outs, strict=True)])
        biases = [source(f"{prefix}.{n}.bias", (out,)) for n, out in zip(names, outs, strict=True)] if bias else None
        return make_linear(weight, torch.cat(biases) if biases else None)

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

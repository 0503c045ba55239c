"""An engine with random weights of a known model's shape, adapters for it, and the bytes that a step cannot do without.

Needs torch, triton, numpy and safetensors only.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from loraplex.adapters.blobs import BlobStore
from loraplex.adapters.types import EMBEDDING, HEAD, AdapterSpec, BaseShape, ModuleSpec
from loraplex.engine.build import BuiltEngine, build_engine
from loraplex.engine.events import SamplingParams, only
from loraplex.engine.models.config import ModelConfig
from loraplex.engine.settings import EngineSettings

CONFIGS = {
    "llama-3.1-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
    },
    "smollm2-135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
    },
}
COMMON = {"architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16", "eos_token_id": 2}


def start(folder: Path, model: str, layers: int | None, **options: Any) -> BuiltEngine:
    """An engine of the model's shape, `layers` deep if given; options are EngineSettings'."""
    config = COMMON | CONFIGS[model] | ({"num_hidden_layers": layers} if layers else {})
    (folder / "config.json").write_text(json.dumps(config))
    settings = EngineSettings(
        model_path=str(folder),
        adapter_blobs=str(folder / "adapters"),
        load_format="dummy",
        enable_prefix_cache=False,
        **options,
    )
    return build_engine(settings)


class Adapters:
    """Random adapters on every module, by rank and number. Those of one rank share the bytes of one file."""

    def __init__(self, folder: Path, shape: BaseShape, dtype: torch.dtype) -> None:
        self._blobs = BlobStore(folder / "adapters")
        self._shape = shape
        self._dtype = dtype
        self._digests: dict[tuple[int, int], str] = {}

    def digests(self, ranks: Sequence[int]) -> list[str]:
        """A distinct adapter for each of the ranks, the same ones at every call."""
        seen: dict[int, int] = {}
        digests = []
        for rank in ranks:
            number = seen[rank] = seen.get(rank, -1) + 1
            if (rank, number) not in self._digests:
                self._digests[rank, number] = self._store(rank, number)
            digests.append(self._digests[rank, number])
        return digests

    def of_other_kinds(self) -> list[str]:
        """DoRA of every module of the layers; and LoRA of the embedding and the head, which has a bias."""
        rank, hidden, vocab = 8, self._shape.hidden_size, self._shape.vocab_size
        dora, ends = self._tensors(rank), {}
        for module, (in_features, out_features) in self._shape.modules().items():
            lengths = 0.02 * in_features**0.5 * (1 + 0.2 * torch.randn(out_features))  # about those of dummy weights
            dora[f"base_model.model.{module}.lora_magnitude_vector"] = lengths.to(self._dtype)
        sizes = {f"{EMBEDDING}.lora_embedding_A": (rank, vocab), f"{EMBEDDING}.lora_embedding_B": (hidden, rank)}
        sizes |= {f"{HEAD}.lora_A.weight": (rank, hidden), f"{HEAD}.lora_B.weight": (vocab, rank)}
        for name, size in (sizes | {f"{HEAD}.lora_B.bias": (vocab,)}).items():
            ends[f"base_model.model.{name}"] = (torch.randn(size) * 0.1).to(self._dtype)
        magnitude = ModuleSpec(rank, 2.0, parts=frozenset({"magnitude"}))
        head = ModuleSpec(rank, 2.0, parts=frozenset({"lora_bias"}))
        return [
            self._commit(AdapterSpec(dict.fromkeys(self._shape.modules(), magnitude)), dora, "dora"),
            self._commit(AdapterSpec({EMBEDDING: ModuleSpec(rank, 2.0), HEAD: head}), ends, "ends"),
        ]

    def _commit(self, spec: AdapterSpec, tensors: dict[str, torch.Tensor], name: str) -> str:
        with self._blobs.stage() as staging:
            save_file(tensors, staging.path("adapter_model.safetensors"))
            staging.path("adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
            return self._blobs.commit(staging, spec, hashlib.sha256(name.encode()).hexdigest())

    def _store(self, rank: int, number: int) -> str:
        spec = AdapterSpec({module: ModuleSpec(rank, 2.0) for module in self._shape.modules()})
        with self._blobs.stage() as staging:
            weights = staging.path("adapter_model.safetensors")
            if number:
                os.link(self._blobs.open(self._digests[rank, 0]).weights_path, weights)
            else:
                save_file(self._tensors(rank), weights)
            staging.path("adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank}))
            return self._blobs.commit(staging, spec, hashlib.sha256(f"{rank} {number}".encode()).hexdigest())

    def _tensors(self, rank: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(rank)
        tensors: dict[str, torch.Tensor] = {}
        for module, (in_features, out_features) in self._shape.modules().items():
            for name, size in (("A", (rank, in_features)), ("B", (out_features, rank))):
                values = torch.randn(size, generator=generator) * 0.02
                tensors[f"base_model.model.{module}.lora_{name}.weight"] = values.to(self._dtype)
        return tensors


def make_resident(built: BuiltEngine, digests: Sequence[str]) -> None:
    """Run one token with every adapter, so that it is on the device."""
    for digest in digests:
        sampling = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
        built.engine.submit(f"load {digest}", [3], sampling, adapters=only(digest))
    while built.engine.has_work:
        step = built.engine.step()
        if step.failures:
            raise RuntimeError(f"{step.failures[0].code}: {step.failures[0].message}")
        if not step.ran:
            built.engine.wait(1.0)


def prompt(index: int, length: int) -> list[int]:
    return [3 + (index * 977 + 31 * place) % 500 for place in range(length)]


def weight_bytes(config: ModelConfig, itemsize: int) -> int:
    """What every step reads of the base: all products' weights, but not the embedding's rows."""
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer = config.hidden_size * (2 * query + 2 * key + 3 * config.intermediate_size)
    return (config.num_layers * layer + config.vocab_size * config.hidden_size) * itemsize


def kv_bytes(config: ModelConfig, tokens: int, itemsize: int) -> int:
    """Keys and values of this many tokens in all layers."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * tokens * itemsize


def adapter_bytes(shape: BaseShape, rank: int, itemsize: int) -> int:
    return rank * sum(sum(features) for features in shape.modules().values()) * itemsize

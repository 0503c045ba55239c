"""The base's own weights, tensor by tensor, for adapters whose packing depends on them.

Read again from where the model came from: the engine itself keeps them in the form that its kernels like best. Knows
checkpoints; knows no adapter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from loraplex.adapters.types import EMBEDDING, HEAD
from loraplex.engine.models.config import ModelConfig, lora_shape
from loraplex.engine.models.weights import TensorSource, weight_bits
from loraplex.engine.settings import Quantization
from loraplex.kernels.quantization import quantize

_SAMPLE_BYTES = 4096


class OwnWeights:
    """`adapters.factors.BaseWeights`. read: a tensor of the checkpoint by name; fingerprint: names their content."""

    def __init__(
        self,
        read: Callable[[str], Tensor | None],
        fingerprint: Callable[[], str],
        dtype: torch.dtype,
        quantization: Quantization,
        *,
        ties_embeddings: bool,
    ) -> None:
        self.ties_embeddings = ties_embeddings
        self._read = read
        self._fingerprint_of_tensors = fingerprint
        self._dtype = dtype
        self._quantization: Quantization = quantization

    @cached_property
    def fingerprint(self) -> str:
        return f"{self._fingerprint_of_tensors()} {self._quantization} {self.ties_embeddings}"

    def stored(self, name: str) -> Tensor | None:
        if self.ties_embeddings and name == f"{HEAD}.weight":
            name = f"{EMBEDDING}.weight"
        return self._read(name)

    def weight(self, module: str) -> Tensor:
        stored = self.stored(f"{module}.weight")
        assert stored is not None, "the engine has loaded it"
        weight = stored.to(self._dtype)
        bits = None if module == EMBEDDING else weight_bits(self._quantization, is_head=module == HEAD)
        return weight if bits is None else quantize(weight, bits).dequantized(torch.float32)


def checkpoint_weights(folder: Path, config: ModelConfig, dtype: torch.dtype, quantization: Quantization) -> OwnWeights:
    """Those of a model folder; nothing is read before it is asked for."""
    files = _Files(folder)
    ties = config.tie_word_embeddings
    return OwnWeights(files.read, files.fingerprint, dtype, quantization, ties_embeddings=ties)


def dummy_base_weights(
    source: TensorSource, seed: int, config: ModelConfig, dtype: torch.dtype, quantization: Quantization
) -> OwnWeights:
    """Those that `source` makes up from a seed."""
    shapes = _shapes(config)

    def read(name: str) -> Tensor | None:
        return source(name, shapes[name]).cpu() if name in shapes else None

    ties = config.tie_word_embeddings
    return OwnWeights(read, lambda: f"dummy {seed}", dtype, quantization, ties_embeddings=ties)


class _Files:
    """The *.safetensors of a folder. Of a tensor that several have, the last one's is read, as `load_weights` does."""

    def __init__(self, folder: Path) -> None:
        self._paths = sorted(folder.glob("*.safetensors"))

    def read(self, name: str) -> Tensor | None:
        path = self._file_of.get(name)
        if path is None:
            return None
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def fingerprint(self) -> str:
        """SHA-256 over the headers and where every tensor begins: training changes a matrix from end to end."""
        state = hashlib.sha256()
        for path in self._paths:
            with path.open("rb") as file:
                prefix = file.read(8)
                header = file.read(int.from_bytes(prefix, "little"))
                state.update(prefix + header)
                for start in sorted(_starts(json.loads(header))):
                    file.seek(len(prefix) + len(header) + start)
                    state.update(file.read(_SAMPLE_BYTES))
        return state.hexdigest()

    @cached_property
    def _file_of(self) -> dict[str, Path]:
        files: dict[str, Path] = {}
        for path in self._paths:
            with safe_open(path, framework="pt") as file:
                names = file.keys()
                files.update(dict.fromkeys(names, path))
        return files


def _starts(header: Mapping[str, Mapping[str, list[int]]]) -> list[int]:
    return [entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"]


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Of the tensors that adapters may ask for."""
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(
        (f"{EMBEDDING}.weight", f"{HEAD}.weight"), (config.vocab_size, config.hidden_size)
    )
    for module, (inputs, outputs) in lora_shape(config).modules().items():
        shapes[f"{module}.weight"] = (outputs, inputs)
        is_o, is_mlp = module.endswith(".o_proj"), ".mlp." in module
        if config.o_bias if is_o else config.mlp_bias if is_mlp else config.qkv_bias:
            shapes[f"{module}.bias"] = (outputs,)
    return shapes

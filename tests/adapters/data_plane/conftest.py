"""A base shape small enough to write adapters for by hand, and the hand that writes them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loraplex.adapters.blobs import CONFIG_FILE, WEIGHTS_FILE, BlobStore
from loraplex.adapters.peft_checks import AdapterLimits, CheckedAdapter, check_adapter
from loraplex.adapters.types import BaseShape, LoraSite, LoraSlice

SITES = (
    LoraSite(
        "qkv",
        8,
        (LoraSlice("self_attn.q_proj", 8), LoraSlice("self_attn.k_proj", 4), LoraSlice("self_attn.v_proj", 4)),
    ),
    LoraSite("down", 16, (LoraSlice("mlp.down_proj", 8),)),
)
DTYPES = {"float16": "F16", "float32": "F32", "uint16": "BF16"}


@dataclass(frozen=True)
class AdapterFiles:
    config: Path
    weights: Path


@pytest.fixture(scope="session")
def base_shape() -> BaseShape:
    """Two layers: q, k, v share an input of 8, down_proj has one of 16."""
    return BaseShape("toy", 32, 2, SITES)


@pytest.fixture(scope="session")
def tiny_llama_shape() -> BaseShape:
    """What `tiny_model_dir` takes."""
    q, k, v = LoraSlice("self_attn.q_proj", 64), LoraSlice("self_attn.k_proj", 32), LoraSlice("self_attn.v_proj", 32)
    sites = (
        LoraSite("qkv", 64, (q, k, v)),
        LoraSite("o", 64, (LoraSlice("self_attn.o_proj", 64),)),
        LoraSite("gate_up", 64, (LoraSlice("mlp.gate_proj", 128), LoraSlice("mlp.up_proj", 128))),
        LoraSite("down", 128, (LoraSlice("mlp.down_proj", 64),)),
    )
    return BaseShape("LlamaForCausalLM", 288, 2, sites)


class ToyWeights:
    """Weights of a base of the toy shape, another one for every seed."""

    def __init__(self, seed: int, *, ties_embeddings: bool = False) -> None:
        self.ties_embeddings = ties_embeddings
        self.fingerprint = f"{seed} {ties_embeddings}"
        self._seed = seed

    def stored(self, name: str) -> torch.Tensor | None:
        shape = (32, 8) if "embed" in name or "head" in name else (8, 16) if "down" in name else (8, 8)
        generator = torch.Generator().manual_seed(self._seed)
        return torch.randn(shape, generator=generator) if name.endswith("weight") else None

    def weight(self, module: str) -> torch.Tensor:
        stored = self.stored(f"{module}.weight")
        assert stored is not None
        return stored


@pytest.fixture(scope="session")
def make_base() -> Callable[..., ToyWeights]:
    """`make_base(seed, ties_embeddings=False)`: what `load_packed` may ask of a base."""
    return ToyWeights


class Jobs(Executor):
    """Runs jobs one at a time, when told to."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = []

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, function, arguments))
        return future

    def run_one(self) -> None:
        future, function, arguments = self.waiting.pop(0)
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    """Stands in for the loader threads of every residency that is made after it."""
    made = Jobs()
    monkeypatch.setattr("loraplex.adapters.load_jobs.loader_threads", lambda count, name: made)
    return made


def safetensors_bytes(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def factors(
    shape: BaseShape, ranks: Mapping[str, int], seed: int = 0, dtype: Any = np.float32
) -> dict[str, np.ndarray]:
    """Random A and B by PEFT's names, for the modules in `ranks`."""
    random = np.random.default_rng(seed)
    tensors = {}
    for module, rank in ranks.items():
        in_features, out_features = shape.modules()[module]
        tensors[f"base_model.model.{module}.lora_A.weight"] = random.normal(size=(rank, in_features)).astype(dtype)
        tensors[f"base_model.model.{module}.lora_B.weight"] = random.normal(size=(out_features, rank)).astype(dtype)
    return tensors


def write_weights(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    header, data = {}, b""
    for name, tensor in tensors.items():
        end = len(data) + tensor.nbytes
        dtype = DTYPES[tensor.dtype.name]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [len(data), end]}
        data += tensor.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(safetensors_bytes(text + b" " * (-len(text) % 8), data))


CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 2,
    "lora_alpha": 4,
    "bias": "none",
    "target_modules": ["q_proj", "v_proj", "down_proj", "k_proj"],
}
Q0 = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def write_files(tmp_path: Path, base_shape: BaseShape) -> Callable[..., AdapterFiles]:
    """`write_files(config={...}, tensors={...})`: a sound adapter of rank 2 on one q_proj, but for what is given."""

    def write(
        config: Mapping[str, Any] | bytes = CONFIG,
        tensors: Mapping[str, np.ndarray] | bytes | None = None,
        folder: str = "upload",
    ) -> AdapterFiles:
        directory = tmp_path / folder
        directory.mkdir(exist_ok=True)
        files = AdapterFiles(directory / CONFIG_FILE, directory / WEIGHTS_FILE)
        files.config.write_bytes(config if isinstance(config, bytes) else json.dumps(CONFIG | dict(config)).encode())
        if isinstance(tensors, bytes):
            files.weights.write_bytes(tensors)
        else:
            write_weights(files.weights, factors(base_shape, {Q0: 2}) if tensors is None else tensors)
        return files

    return write


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    root = tmp_path / "store"
    root.mkdir()
    return BlobStore(root)


@pytest.fixture
def store(blobs: BlobStore, base_shape: BaseShape) -> Callable[..., str]:
    """Check two files and commit them -> digest."""

    def commit(config: Path, weights: Path, shape: BaseShape = base_shape) -> str:
        checked: CheckedAdapter = check_adapter(config, weights, shape, AdapterLimits())
        with blobs.stage() as staging:
            staging.path(CONFIG_FILE).write_bytes(config.read_bytes())
            staging.path(WEIGHTS_FILE).write_bytes(weights.read_bytes())
            return blobs.commit(staging, checked.spec, checked.weights_sha256)

    return commit


@pytest.fixture
def make_stored(
    blobs: BlobStore,
    store: Callable[..., str],
    write_files: Callable[..., AdapterFiles],
    base_shape: BaseShape,
) -> Callable[..., str]:
    """`make_stored(seed=0, rank=2, modules=(Q0,))` -> digest of an adapter in `blobs`."""

    def make(*, seed: int = 0, rank: int = 2, modules: tuple[str, ...] = (Q0,)) -> str:
        tensors = factors(base_shape, dict.fromkeys(modules, rank), seed)
        files = write_files({"r": rank}, tensors)
        return store(files.config, files.weights)

    return make

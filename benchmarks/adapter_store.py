"""Adapters in a blob store, for benchmarks: a PEFT folder's, a random one, or many random ones made quickly."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save

from loraplex.adapters.blobs import CONFIG_FILE, WEIGHTS_FILE, BlobStore
from loraplex.adapters.peft_checks import AdapterLimits, check_adapter
from loraplex.adapters.types import AdapterSpec, BaseShape, ModuleSpec

LIST_FILE = "digests-rank-{rank}.json"
LAST_BYTES = 8  # of the file, which tell the copies apart


def stored_adapter(blobs: BlobStore, shape: BaseShape, folder: Path) -> str:
    """Store a PEFT folder as an upload would, checks included; its digest."""
    checked = check_adapter(folder / CONFIG_FILE, folder / WEIGHTS_FILE, shape, AdapterLimits())
    with blobs.stage() as staging:
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            shutil.copyfile(folder / name, staging.path(name))
        return blobs.commit(staging, checked.spec, checked.weights_sha256)


def random_adapter(blobs: BlobStore, shape: BaseShape, rank: int, seed: int, dtype: torch.dtype) -> str:
    """Store an adapter of normal A and B on every module; its digest."""
    return _store(blobs, shape, rank, _weights(shape, rank, seed, dtype))


def random_adapters(folder: Path, shape: BaseShape, rank: int, count: int, dtype: torch.dtype) -> Iterator[str]:
    """The digests of `count` adapters that differ in a few bytes of the last B; those that the folder has are kept."""
    blobs = BlobStore(folder)
    listed = folder / LIST_FILE.format(rank=rank)
    known: list[str] = json.loads(listed.read_text()) if listed.exists() else []
    yield from known[:count]
    content = bytearray(_weights(shape, rank, 0, dtype))
    for number in range(len(known), count):
        # two finite bf16 or fp16 numbers, or the low half of an fp32 one
        content[-LAST_BYTES:] = b"".join((number >> shift & 0x7F).to_bytes(1) + b"\x3c" for shift in (0, 7, 14, 21))
        known.append(_store(blobs, shape, rank, bytes(content)))
        listed.write_text(json.dumps(known))
        yield known[-1]


def _weights(shape: BaseShape, rank: int, seed: int, dtype: torch.dtype) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, (in_features, out_features) in shape.modules().items():
        for name, size in (("A", (rank, in_features)), ("B", (out_features, rank))):
            values = torch.randn(size, generator=generator) * 0.02
            tensors[f"base_model.model.{module}.lora_{name}.weight"] = values.to(dtype)
    return save(tensors)


def _store(blobs: BlobStore, shape: BaseShape, rank: int, content: bytes) -> str:
    spec = AdapterSpec({module: ModuleSpec(rank, 2.0) for module in shape.modules()})
    with blobs.stage() as staging:
        staging.path(WEIGHTS_FILE).write_bytes(content)
        staging.path(CONFIG_FILE).write_text(json.dumps({"peft_type": "LORA", "r": rank}))
        return blobs.commit(staging, spec, hashlib.sha256(content).hexdigest())

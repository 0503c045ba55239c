"""A blob store with many adapters in it, made quickly: one adapter's file, a few bytes of it different in each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save

from loraplex.adapters.blobs import CONFIG_FILE, WEIGHTS_FILE, BlobStore
from loraplex.adapters.types import AdapterSpec, BaseShape, ModuleSpec

LIST_FILE = "digests-rank-{rank}.json"
FIRST_NUMBERS = 8  # bytes at the end of the file that tell the copies apart: they are numbers of the last B


def stored_adapters(folder: Path, shape: BaseShape, rank: int, count: int, dtype: torch.dtype) -> Iterator[str]:
    """The digests of `count` adapters of normal A and B on every module; those that the folder has are kept."""
    blobs = BlobStore(folder)
    listed = folder / LIST_FILE.format(rank=rank)
    known: list[str] = json.loads(listed.read_text()) if listed.exists() else []
    yield from known[:count]
    if len(known) >= count:
        return
    spec = AdapterSpec({module: ModuleSpec(rank, 2.0) for module in shape.modules()})
    content = bytearray(_weights(shape, rank, dtype))
    for number in range(len(known), count):
        # two finite bf16 or fp16 numbers, or the low half of an fp32 one
        content[-FIRST_NUMBERS:] = b"".join((number >> shift & 0x7F).to_bytes(1) + b"\x3c" for shift in (0, 7, 14, 21))
        known.append(_store(blobs, spec, bytes(content), rank))
        listed.write_text(json.dumps(known))
        yield known[-1]


def _weights(shape: BaseShape, rank: int, dtype: torch.dtype) -> bytes:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for module, (in_features, out_features) in shape.modules().items():
        for name, size in (("A", (rank, in_features)), ("B", (out_features, rank))):
            values = torch.randn(size, generator=generator) * 0.02
            tensors[f"base_model.model.{module}.lora_{name}.weight"] = values.to(dtype)
    return save(tensors)


def _store(blobs: BlobStore, spec: AdapterSpec, content: bytes, rank: int) -> str:
    with blobs.stage() as staging:
        staging.path(WEIGHTS_FILE).write_bytes(content)
        staging.path(CONFIG_FILE).write_text(json.dumps({"peft_type": "LORA", "r": rank}))
        return blobs.commit(staging, spec, hashlib.sha256(content).hexdigest())

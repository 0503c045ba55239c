"""Drive an engine inside this process: adapters, random prompts, fixed lengths, a closed loop.

Needs torch, numpy and safetensors only, so that it also runs where nothing else is installed.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from machine import machine
from safetensors.torch import save_file

from loraplex.adapters.blobs import CONFIG_FILE, WEIGHTS_FILE, BlobStore
from loraplex.adapters.peft_checks import AdapterLimits, check_adapter
from loraplex.adapters.types import AdapterSpec, BaseShape, ModuleSpec
from loraplex.engine.events import SamplingParams
from loraplex.engine.loop import Engine


@dataclass(frozen=True, slots=True)
class Run:
    """What one closed-loop run showed. Seconds are wall time from the first step to the last.

    decode_steps: seconds of the steps in which every place in flight got its next token and no prompt was read.
    """

    seconds: float
    prompt_tokens: int
    output_tokens: int
    kv_waste: float
    concurrency: int
    decode_steps: tuple[float, ...]

    @property
    def output_tokens_per_second(self) -> float:
        return self.output_tokens / self.seconds

    @property
    def prompt_tokens_per_second(self) -> float:
        return self.prompt_tokens / self.seconds

    @property
    def decode_tokens_per_second(self) -> float:
        """By the median decode step; 0 when there was none."""
        return self.concurrency / statistics.median(self.decode_steps) if self.decode_steps else 0.0


def random_adapter(blobs: BlobStore, shape: BaseShape, rank: int, seed: int, dtype: torch.dtype) -> str:
    """Store an adapter of normal A and B on every module; its digest."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for module, (in_features, out_features) in shape.modules().items():
        for name, size in (("A", (rank, in_features)), ("B", (out_features, rank))):
            values = torch.randn(size, generator=generator) * 0.02
            tensors[f"base_model.model.{module}.lora_{name}.weight"] = values.to(dtype)
    spec = AdapterSpec({module: ModuleSpec(rank, 2.0) for module in shape.modules()})
    with blobs.stage() as staging:
        weights = staging.path("adapter_model.safetensors")
        save_file(tensors, weights)
        staging.path("adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank}))
        return blobs.commit(staging, spec, hashlib.sha256(weights.read_bytes()).hexdigest())


def stored_adapter(blobs: BlobStore, shape: BaseShape, folder: Path) -> str:
    """Store a PEFT folder as an upload would, checks included; its digest."""
    checked = check_adapter(folder / CONFIG_FILE, folder / WEIGHTS_FILE, shape, AdapterLimits())
    with blobs.stage() as staging:
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            shutil.copyfile(folder / name, staging.path(name))
        return blobs.commit(staging, checked.spec, checked.weights_sha256)


def closed_loop(
    engine: Engine, adapters: list[str | None], requests: int, concurrency: int, prompt_len: int, output_len: int
) -> Run:
    """Keep `concurrency` requests in flight until `requests` are done; adapters are assigned in turn."""
    rng = random.Random(0)
    prompts = [[rng.randrange(100, 40_000) % 32_000 for _ in range(prompt_len)] for _ in range(requests)]
    sampling = SamplingParams(max_tokens=output_len, temperature=0.0, ignore_eos=True)
    submitted = finished = output = 0
    waste: list[float] = []
    decode_steps: list[float] = []
    started = time.perf_counter()
    while finished < requests:
        while submitted < min(requests, finished + concurrency):
            adapter = adapters[submitted % len(adapters)]
            engine.submit(str(submitted), prompts[submitted], sampling, adapter=adapter)
            submitted += 1
        before = time.perf_counter()
        result = engine.step()
        if not result.ran:
            engine.wait(1.0)
        elif _is_decode(engine, concurrency):
            decode_steps.append(time.perf_counter() - before)
        if result.failures:
            raise RuntimeError(f"{result.failures[0].code}: {result.failures[0].message}")
        output += sum(len(chunk.token_ids) for chunk in result.chunks)
        finished += sum(chunk.finish_reason is not None for chunk in result.chunks)
        waste.append(kv_waste(engine))
    seconds = time.perf_counter() - started
    mean_waste = sum(waste) / len(waste)
    return Run(seconds, requests * prompt_len, output, mean_waste, concurrency, tuple(decode_steps))


def _is_decode(engine: Engine, concurrency: int) -> bool:
    step = engine.recent_steps[-1]
    return step.prefill_tokens == 0 and step.decode_tokens == concurrency


def kv_waste(engine: Engine, page_tokens: int = 16) -> float:
    """Share of the allocated KV memory that holds no token, at this moment."""
    running = engine.running()
    allocated = sum(sequence.pages for sequence in running) * page_tokens
    used = sum(sequence.prompt_tokens + sequence.generated_tokens for sequence in running)
    return 1 - used / allocated if allocated else 0.0


def environment() -> dict[str, str]:
    """Where a figure comes from: machine, versions, commit."""
    gpu = {"device": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return machine() | gpu | {"threads": str(torch.get_num_threads()), "torch": torch.__version__}

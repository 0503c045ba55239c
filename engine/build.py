"""Put an engine together from its settings: model, kernels, memory budgets. The engine's composition root."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from loraplex.adapters.blobs import BlobStore
from loraplex.adapters.device_pool import DevicePool
from loraplex.adapters.host_cache import HostCache
from loraplex.adapters.pins import PinLimits
from loraplex.adapters.residency import AdapterResidency
from loraplex.adapters.types import BaseShape
from loraplex.engine.batch import BatchBuilder, StepLimits
from loraplex.engine.decode_shapes import DecodeShapes
from loraplex.engine.drafting import FREE_ROWS_ON_CPU, FREE_ROWS_ON_GPU, NO_DRAFTS, DraftLimits
from loraplex.engine.grammar_masks import Grammars
from loraplex.engine.graphs import CudaRecorder, DecodeGraphs
from loraplex.engine.kv_cache import PagePool
from loraplex.engine.loop import Engine
from loraplex.engine.memory import Budget, BudgetExceeded, MemorySplit, adapter_needs, split_memory
from loraplex.engine.models.base_weights import OwnWeights, checkpoint_weights, dummy_base_weights
from loraplex.engine.models.config import ModelConfig, UnsupportedModel, lora_shape
from loraplex.engine.models.decoder import Decoder, KVCache
from loraplex.engine.models.weights import WeightsError, dummy_tensors, dummy_weights, load_weights, model_digest
from loraplex.engine.runner import Runner
from loraplex.engine.scheduler import Scheduler, SchedulerLimits
from loraplex.engine.settings import EngineSettings
from loraplex.kernels.select import KernelsUnavailable, choose_kernels

PAGE_TOKENS = 16
CPU_MEMORY_BYTES = 3 << 29
GPU_MEMORY_SHARE = 0.90  # of the memory that is free once the weights are loaded; the rest is for activations


class EngineConfigError(ValueError):
    """A setting cannot be met on this machine with this model; the message names it and the way out."""


USER_ERRORS = (EngineConfigError, UnsupportedModel, WeightsError, KernelsUnavailable, OSError)
"""What `build_engine` raises when a setting or a file is wrong: the message is all that the user needs."""


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine that is ready to run, and what is to be told about it."""

    engine: Engine
    runner: Runner
    config: ModelConfig
    shape: BaseShape
    model_digest: str
    max_model_len: int
    num_pages: int
    page_tokens: int
    memory: MemorySplit
    device: torch.device
    dtype: torch.dtype
    kernels: str


def build_engine(settings: EngineSettings, *, on_progress: Callable[[], None] = lambda: None) -> BuiltEngine:
    """Load the model and allocate all memory. `on_progress` is called from a worker thread when an adapter load has
    made progress or a grammar is compiled.

    Raises one of USER_ERRORS when a setting or a file is wrong.
    """
    folder = Path(settings.model_path)
    config = ModelConfig.from_folder(folder)
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, config, device)
    kernels, kernels_reason = choose_kernels(device, settings.kernels)
    if settings.quantization != "none":
        kernels_reason += f"; base weights in {settings.quantization}"
    max_len = min(settings.max_model_len or config.max_position_embeddings, config.max_position_embeddings)
    with torch.inference_mode():
        if settings.load_format == "dummy":
            weights = dummy_weights(config, kernels, dtype, device, max_len, settings.seed, settings.quantization)
        else:
            weights = load_weights(folder, config, kernels, dtype, device, max_len, settings.quantization)
        shape = lora_shape(config)
        memory = _split_memory(settings, shape, dtype, device)
        num_pages = _num_pages(memory.kv_cache_bytes, config, dtype)
        # one page more, which no sequence is given: rows that pad a decode step write there
        cache = KVCache.allocate(config, num_pages + 1, PAGE_TOKENS, dtype, device)
        pool = DevicePool(memory.adapter_bytes, device, dtype)
    max_len = min(max_len, num_pages * PAGE_TOKENS)
    digest = model_digest(folder)
    residency = AdapterResidency(
        BlobStore(Path(settings.adapter_blobs)),
        shape,
        pool,
        HostCache(settings.adapter_host_bytes),
        base=_base_weights(settings, config, dtype, device),
        pin_limits=PinLimits(settings.pinned_share, settings.pinned_share_per_tenant),
        on_loaded=on_progress,
    )
    drafts = _draft_limits(settings, device)
    limits = SchedulerLimits(
        settings.max_num_seqs, settings.max_step_tokens, max_len, frozenset(config.eos_token_ids), digest, drafts
    )
    pages = PagePool(num_pages, PAGE_TOKENS, prefix_cache=settings.enable_prefix_cache)
    max_chunks = max(settings.max_num_seqs, drafts.max_rows)
    step_limits = StepLimits(max_chunks, settings.max_step_tokens, pages.pages_for(max_len))
    builder = BatchBuilder(device, PAGE_TOKENS, num_pages, pool.pool, shape.num_sites + 1, step_limits)
    tokenizer = folder / "tokenizer.json"
    grammars = Grammars(tokenizer, config.vocab_size, config.eos_token_ids, device, on_progress)
    runner = Runner(Decoder(config, weights, kernels), cache, builder, kernels, grammars.masks)
    if settings.cuda_graphs and kernels.name == "triton":  # the reference asks the device for values as it goes
        shapes = DecodeShapes(step_limits.max_chunks, step_limits.max_pages)
        runner.graphs = DecodeGraphs(runner.forward, shapes, CudaRecorder())
    engine = Engine(Scheduler(pages, residency, limits), runner, residency, grammars, settings.seed)
    return BuiltEngine(
        engine,
        runner,
        config,
        shape,
        digest,
        max_len,
        num_pages,
        PAGE_TOKENS,
        memory,
        device,
        dtype,
        kernels_reason,
    )


def _base_weights(
    settings: EngineSettings, config: ModelConfig, dtype: torch.dtype, device: torch.device
) -> OwnWeights:
    if settings.load_format == "dummy":
        source = dummy_tensors(dtype, device, settings.seed)
        return dummy_base_weights(source, settings.seed, config, dtype, settings.quantization)
    return checkpoint_weights(Path(settings.model_path), config, dtype, settings.quantization)


def choose_device(name: str) -> torch.device:
    """`auto` is the first CUDA device, or the CPU where there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EngineConfigError("--device cuda: torch sees no CUDA device here; use --device cpu")
    return device


def choose_dtype(name: str, config: ModelConfig, device: torch.device) -> torch.dtype:
    """`auto` is the checkpoint's own type; fp16 becomes bf16 on a CPU, where fp16 is slow."""
    if name == "auto":
        name = "bfloat16" if config.dtype == "float16" and device.type == "cpu" else config.dtype
    known = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
    if name not in known:
        raise EngineConfigError(f"--dtype {name}: one of auto, {', '.join(known)}")
    return known[name]


def _split_memory(settings: EngineSettings, shape: BaseShape, dtype: torch.dtype, device: torch.device) -> MemorySplit:
    adapter_bytes, kv_cache_bytes = settings.adapter_device_bytes, settings.kv_cache_bytes
    if settings.memory_bytes is not None:
        budget = Budget(settings.memory_bytes, is_limit=True)
    elif adapter_bytes is not None and kv_cache_bytes is not None:
        return MemorySplit(adapter_bytes, kv_cache_bytes)
    elif device.type == "cuda":
        budget = Budget(int(torch.cuda.mem_get_info(device)[0] * GPU_MEMORY_SHARE), is_limit=True)
    else:
        budget = Budget(CPU_MEMORY_BYTES, is_limit=False)
    needs = adapter_needs(
        shape,
        dtype.itemsize,
        max_num_seqs=settings.max_num_seqs,
        max_rank=settings.max_adapter_rank,
        max_file_bytes=settings.max_adapter_bytes,
        pinned_share=settings.pinned_share,
    )
    try:
        return split_memory(budget, needs, adapter_bytes=adapter_bytes, kv_cache_bytes=kv_cache_bytes)
    except BudgetExceeded as error:
        raise EngineConfigError(str(error)) from error


def _draft_limits(settings: EngineSettings, device: torch.device) -> DraftLimits:
    """Drafts take rows that sequences leave, so that steps are no larger than without them, but for very small ones."""
    if settings.speculative_tokens == 0:
        return NO_DRAFTS
    max_rows = min(max(settings.max_num_seqs, 1 + settings.speculative_tokens), settings.max_step_tokens)
    free_rows = FREE_ROWS_ON_CPU if device.type == "cpu" else FREE_ROWS_ON_GPU
    return DraftLimits(settings.speculative_tokens, max_rows, free_rows)


def _num_pages(kv_bytes: int, config: ModelConfig, dtype: torch.dtype) -> int:
    page = 2 * config.num_layers * config.num_kv_heads * PAGE_TOKENS * config.head_dim * dtype.itemsize
    if kv_bytes < page:
        raise EngineConfigError(
            f"{kv_bytes} bytes for the KV cache: one page of {PAGE_TOKENS} tokens takes {page}; raise --kv-cache-bytes "
            "or --memory-bytes"
        )
    return kv_bytes // page

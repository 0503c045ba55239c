"""What an engine is told once, before it starts. Plain data: both processes import it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Quantization = Literal["none", "int8", "int4"]
"""What the base model's matrices are held in: the dtype of the run, or integers of 8 or 4 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Sizes are in bytes, lengths in tokens; None means: chosen from the device and the model.

    memory_bytes: what adapters on the device and the KV cache take together. pinned_share: of the adapters' part, what
    pins may take; pinned_share_per_tenant: those of one. speculative_tokens: most that one sequence
    tries ahead in a step; 0: none.
    """

    model_path: str
    adapter_blobs: str
    device: str = "auto"
    dtype: str = "auto"
    quantization: Quantization = "none"
    load_format: Literal["auto", "dummy"] = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_step_tokens: int = 1024
    memory_bytes: int | None = None
    kv_cache_bytes: int | None = None
    adapter_device_bytes: int | None = None
    adapter_host_bytes: int = 2 << 30
    max_adapter_rank: int = 256
    max_adapter_bytes: int = 512 << 20
    pinned_share: float = 0.5
    pinned_share_per_tenant: float = 0.25
    enable_prefix_cache: bool = True
    speculative_tokens: int = 0
    kernels: Literal["auto", "reference", "native", "triton"] = "auto"
    cuda_graphs: bool = True
    seed: int = 0

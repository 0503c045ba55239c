"""What an engine is told once, before it starts. Plain data: both processes import it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Quantization = Literal["none", "int8", "int4"]
"""What the base model's matrices are held in: the dtype of the run, or integers of 8 or 4 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Sizes are in bytes, lengths in tokens; None means: chosen from the device and the model."""

    model_path: str
    adapter_blobs: str
    device: str = "auto"
    dtype: str = "auto"
    quantization: Quantization = "none"
    load_format: Literal["auto", "dummy"] = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_step_tokens: int = 1024
    kv_cache_bytes: int | None = None
    adapter_device_bytes: int | None = None
    adapter_host_bytes: int = 2 << 30
    enable_prefix_cache: bool = True
    kernels: Literal["auto", "reference", "native", "triton"] = "auto"
    cuda_graphs: bool = True
    seed: int = 0

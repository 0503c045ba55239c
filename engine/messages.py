"""Everything that crosses the border between the API process and the engine process, as msgspec-msgpack frames.

A frame is a 4-byte little-endian length and one message. Nothing else crosses, and nothing is ever pickled.
Knows no tensors: the API process imports this module.
"""

from __future__ import annotations

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "abort"]
"""stop: a stop token (or, in the API process, a stop string); length: max_tokens or the context is full."""


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine process is told before anything else. Sizes in bytes, lengths in tokens."""

    model_path: str
    adapter_blobs: str
    device: str = "auto"
    dtype: str = "auto"
    load_format: Literal["auto", "dummy"] = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_step_tokens: int = 1024
    kv_cache_bytes: int | None = None
    adapter_device_bytes: int | None = None
    adapter_host_bytes: int = 2 << 30
    enable_prefix_cache: bool = True
    kernels: Literal["auto", "reference", "native", "triton"] = "auto"
    seed: int = 0


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are chosen and when to stop. Bounds are checked where requests enter, in platform."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = False


class Generate(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Run one sequence. `adapter` is the digest of an adapter version, None the base; `salt` isolates cached prefixes."""

    request_id: str
    prompt: list[int]
    sampling: SamplingParams
    adapter: str | None = None
    salt: bytes = b""


class Abort(msgspec.Struct, frozen=True, tag=True):
    request_id: str


class Inspect(msgspec.Struct, frozen=True, tag=True):
    """Ask for an `Inspection` with the same id."""

    inspection_id: int


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """Finish nothing more; leave with exit code 0."""


class Site(msgspec.Struct, frozen=True):
    """One LoRA site of every layer: slices are (module, out_features). See adapters.types.LoraSite."""

    name: str
    in_features: int
    slices: tuple[tuple[str, int], ...]


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The model is loaded. Enough for the API process to tokenise, to bound requests and to check adapters."""

    model_digest: str
    architecture: str
    vocab_size: int
    num_layers: int
    sites: tuple[Site, ...]
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    device: str
    dtype: str
    kernels: str
    num_pages: int
    page_tokens: int
    adapter_device_bytes: int


class TokenChunk(msgspec.Struct, frozen=True, array_like=True):
    """New tokens of one sequence. The last chunk of a sequence has a finish reason; it may have no tokens."""

    request_id: str
    token_ids: list[int]
    logprobs: list[float] | None = None
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0


class RequestFailed(msgspec.Struct, frozen=True, array_like=True):
    """The sequence ended with an error that is its own: code `adapter_load_failed`, `context_length_exceeded`, ..."""

    request_id: str
    code: str
    message: str


class StepOutput(msgspec.Struct, frozen=True, tag=True):
    """All that one step has to tell, in one message."""

    chunks: list[TokenChunk]
    failures: list[RequestFailed] = []


class Status(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Sent at least twice a second, busy or idle. `steps` advances whenever `running` is not 0."""

    steps: int
    running: int
    waiting: int
    pages_total: int
    pages_used: int
    pages_cached: int
    preemptions: int
    prompt_tokens: int
    cached_prompt_tokens: int
    generated_tokens: int
    adapter_loads: int
    adapter_evictions: int
    adapter_device_bytes_used: int
    adapter_host_bytes_used: int


class ResidentAdapter(msgspec.Struct, frozen=True, array_like=True):
    """An adapter in a memory tier. `leases`: running sequences that hold it there."""

    digest: str
    size_bytes: int
    leases: int


class RunningSequence(msgspec.Struct, frozen=True, array_like=True):
    request_id: str
    adapter: str | None
    prompt_tokens: int
    generated_tokens: int
    pages: int


class StepRecord(msgspec.Struct, frozen=True, array_like=True):
    """One step as it ran. `adapters`: digests of the adapters in the batch; `base`: base rows stood beside them."""

    step: int
    seconds: float
    prefill_tokens: int
    decode_tokens: int
    sequences: int
    adapters: list[str]
    base: bool


class Inspection(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    inspection_id: int
    status: Status
    host: list[ResidentAdapter]
    device: list[ResidentAdapter]
    running: list[RunningSequence]
    recent_steps: list[StepRecord]


class Fatal(msgspec.Struct, frozen=True, tag=True):
    """The engine cannot go on; its process ends with a non-zero code after this."""

    message: str


ToEngine = Generate | Abort | Inspect | Shutdown
FromEngine = Ready | StepOutput | Status | Inspection | Fatal

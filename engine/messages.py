"""Everything that crosses the border between the API process and the engine process, as msgspec-msgpack frames.

A frame is a 4-byte little-endian length and one message. Nothing else crosses, and nothing is ever pickled.
Knows no tensors: the API process imports this module.
"""

from __future__ import annotations

import struct

import msgspec

from loraplex.engine.events import (
    MAX_ADAPTERS,
    AdapterUse,
    FinishReason,
    RequestFailed,
    ResidentAdapter,
    RunningSequence,
    SamplingParams,
    Status,
    StepRecord,
    TokenChunk,
    only,
)
from loraplex.engine.settings import EngineSettings

__all__ = [
    "MAX_ADAPTERS",
    "Abort",
    "AdapterUse",
    "EngineSettings",
    "Fatal",
    "FinishReason",
    "FromEngine",
    "Generate",
    "Heartbeat",
    "Inspect",
    "Inspection",
    "Ready",
    "RequestFailed",
    "ResidentAdapter",
    "RunningSequence",
    "SamplingParams",
    "Shutdown",
    "Site",
    "Start",
    "Status",
    "StepOutput",
    "StepRecord",
    "ToEngine",
    "TokenChunk",
    "Warm",
    "frame",
    "only",
]

FRAME_HEADER = struct.Struct("<I")


class Start(msgspec.Struct, frozen=True, tag=True):
    """The first message: build an engine and answer `Ready` or `Fatal`."""

    settings: EngineSettings


class Generate(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Run one sequence with the sum of the given adapters, none being the base; `salt` isolates prefixes."""

    request_id: str
    prompt: list[int]
    sampling: SamplingParams
    adapters: tuple[AdapterUse, ...] = ()
    salt: bytes = b""


class Abort(msgspec.Struct, frozen=True, tag=True):
    request_id: str


class Warm(msgspec.Struct, frozen=True, tag=True):
    """Bring an adapter version to the device before anyone asks for it."""

    adapter: str


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
    """The model is loaded. Enough for the API process to tokenise, to bound requests and to check adapters.

    `kernels` is the sentence that says which kernels run and why.
    """

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


class StepOutput(msgspec.Struct, frozen=True, tag=True):
    """All that one step has to tell, in one message."""

    chunks: list[TokenChunk]
    failures: list[RequestFailed] = []


class Heartbeat(msgspec.Struct, frozen=True, tag=True):
    """Sent by the step loop at least every other second, busy or idle."""

    status: Status


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


ToEngine = Start | Generate | Abort | Warm | Inspect | Shutdown
FromEngine = Ready | StepOutput | Heartbeat | Inspection | Fatal


def frame(message: ToEngine | FromEngine) -> bytes:
    """The message as it goes over the socket."""
    body = msgspec.msgpack.encode(message)
    return FRAME_HEADER.pack(len(body)) + body

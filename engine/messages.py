"""Everything that crosses the border between the API process and the engine process, as msgspec-msgpack frames.

A frame is a 4-byte little-endian length and one message. Nothing else crosses, and nothing is ever pickled.
Knows no tensors: the API process imports this module.
"""

from __future__ import annotations

import struct

import msgspec

from loraplex.adapters.whereabouts import LoadTimes, Movement, Refusal, Whereabouts
from loraplex.engine.events import (
    MAX_ADAPTERS,
    NOBODY,
    AdapterUse,
    FinishReason,
    Grammar,
    LogitRules,
    OwnerShare,
    RequestFailed,
    ResidentAdapter,
    RunningSequence,
    SamplingParams,
    Share,
    Started,
    Status,
    StepRecord,
    TokenChunk,
    TokenScore,
    only,
)
from loraplex.engine.settings import EngineSettings
from loraplex.engine.snapshot import Lane, Queue, Snapshot, StepFigures

__all__ = [
    "FRAME_HEADER",
    "HEARTBEAT_SECONDS",
    "MAX_ADAPTERS",
    "Abort",
    "AdapterUse",
    "Decision",
    "Embed",
    "EngineSettings",
    "Evict",
    "Fatal",
    "FinishReason",
    "FromEngine",
    "Generate",
    "Grammar",
    "Heartbeat",
    "Inspect",
    "Inspection",
    "Lane",
    "LoadTimes",
    "Locate",
    "Located",
    "LogitRules",
    "Look",
    "Movement",
    "OwnerShare",
    "Pin",
    "Queue",
    "Ready",
    "Refusal",
    "RequestFailed",
    "ResidentAdapter",
    "RunningSequence",
    "SamplingParams",
    "Seen",
    "Share",
    "Shutdown",
    "Site",
    "Snapshot",
    "Start",
    "Started",
    "Status",
    "StepFigures",
    "StepOutput",
    "StepRecord",
    "ToEngine",
    "TokenChunk",
    "TokenScore",
    "Unpin",
    "Warm",
    "Whereabouts",
    "frame",
    "only",
]

FRAME_HEADER = struct.Struct("<I")
HEARTBEAT_SECONDS = 0.25


class Start(msgspec.Struct, frozen=True, tag=True):
    """The first message: build an engine and answer `Ready` or `Fatal`."""

    settings: EngineSettings


class Generate(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Run one sequence with the sum of the given adapters, none being the base; `salt` isolates prefixes.

    after: a request with the same prompt, adapters and salt that was sent before and computes the prompt for both:
    this one waits until it has, or has ended. One that is not known any more is not waited for.
    grammar: one that `grammar_checks` has taken.
    priority: of those that wait, the lowest number is first; share decides among equals. timeout_seconds: the client
    ends the request then, wherever it is; the engine does not look at it.
    """

    request_id: str
    prompt: list[int]
    sampling: SamplingParams
    adapters: tuple[AdapterUse, ...] = ()
    salt: bytes = b""
    after: str | None = None
    grammar: Grammar | None = None
    priority: int = 0
    share: Share = NOBODY
    timeout_seconds: float | None = None


class Embed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Run a prompt with the sum of the given adapters; its only chunk has the embedding. See engine.pooling.

    priority, share: see Generate.
    """

    request_id: str
    prompt: list[int]
    adapters: tuple[AdapterUse, ...] = ()
    priority: int = 0
    share: Share = NOBODY


class Abort(msgspec.Struct, frozen=True, tag=True):
    request_id: str


class Warm(msgspec.Struct, frozen=True, tag=True):
    """Bring an adapter version to the device before anyone asks for it."""

    adapter: str


class Pin(msgspec.Struct, frozen=True, tag=True):
    """Bring an adapter version to the device and keep it there for so long, at the wish of `owner`; or change for how
    long. The `Decision` comes once it is known what the adapter takes."""

    question_id: int
    adapter: str
    owner: str
    seconds: float


class Unpin(msgspec.Struct, frozen=True, tag=True):
    adapter: str
    owner: str


class Evict(msgspec.Struct, frozen=True, tag=True):
    """Free the memory of an adapter version that nothing uses; answered by a `Decision`."""

    question_id: int
    adapter: str


class Locate(msgspec.Struct, frozen=True, tag=True):
    """Ask where these adapters are, or with None all that are in some memory; answered by `Located`."""

    question_id: int
    adapters: list[str] | None


class Inspect(msgspec.Struct, frozen=True, tag=True):
    """Ask for an `Inspection` with the same id."""

    question_id: int


class Look(msgspec.Struct, frozen=True, tag=True):
    """Ask what the engine has in hand, and for what happened after that step and that movement; answered by `Seen`."""

    question_id: int
    after_step: int
    after_movement: int


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
    hidden_size: int
    num_layers: int
    sites: tuple[Site, ...]
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    device: str
    dtype: str
    kernels: str
    num_pages: int
    page_tokens: int
    kv_cache_bytes: int
    adapter_device_bytes: int


class StepOutput(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """All that one step has to tell, in one message."""

    chunks: list[TokenChunk]
    failures: list[RequestFailed] = []
    started: list[Started] = []


class Decision(msgspec.Struct, frozen=True, tag=True):
    """What was asked is done, or why it is not."""

    question_id: int
    refusal: Refusal | None = None


class Located(msgspec.Struct, frozen=True, tag=True):
    question_id: int
    adapters: list[Whereabouts]


class Heartbeat(msgspec.Struct, frozen=True, tag=True):
    """Sent by the step loop at least every other second, busy or idle."""

    status: Status


class Inspection(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    question_id: int
    status: Status
    host: list[ResidentAdapter]
    device: list[ResidentAdapter]
    running: list[RunningSequence]
    recent_steps: list[StepRecord]
    shares: list[OwnerShare]


class Seen(msgspec.Struct, frozen=True, tag=True):
    question_id: int
    snapshot: Snapshot


class Fatal(msgspec.Struct, frozen=True, tag=True):
    """The engine cannot go on; its process ends with a non-zero code after this."""

    message: str


ToEngine = Start | Generate | Embed | Abort | Warm | Pin | Unpin | Evict | Locate | Inspect | Look | Shutdown
FromEngine = Ready | StepOutput | Heartbeat | Decision | Located | Inspection | Seen | Fatal


def frame(message: ToEngine | FromEngine) -> bytes:
    """The message as it goes over the socket."""
    body = msgspec.msgpack.encode(message)
    return FRAME_HEADER.pack(len(body)) + body

"""What the bodies of OpenAI's text endpoints have in common: fields that are read, all bounded, and parts of answers.

Knows OpenAI's field names and defaults. Knows no model, tenant or engine.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from loraplex.adapters.names import MAX_WEIGHT
from loraplex.adapters.profile import MinP, StopString, Temperature, TokenCount, TokenId, TopK, TopP
from loraplex.engine.messages import MAX_ADAPTERS
from loraplex.platform.errors import ApiError

# -- what is read --------------------------------------------------------------------------------------------------

MAX_TEXT_CHARS = 8 << 20

Text = Annotated[str, Meta(max_length=MAX_TEXT_CHARS)]
ModelRef = Annotated[str, Meta(max_length=16384)]
Label = Annotated[str, Meta(min_length=1, max_length=512)]
Seed = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`include_obfuscation` is a permission to pad, not a demand; nothing is padded."""

    include_usage: bool = False
    include_obfuscation: bool = False


class WeightedAdapter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One adapter, by any of its names, of those whose weighted sum a request runs with."""

    model: ModelRef
    weight: Annotated[float, Meta(ge=-MAX_WEIGHT, le=MAX_WEIGHT)] = 1.0


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What chat and completions have in common. None is the same as leaving the field out, as in OpenAI's clients."""

    model: ModelRef
    adapter_id: ModelRef | None = None
    """LoRAX's field: the adapter, where `model` is the base."""
    lora_path: ModelRef | None = None
    """SGLang's field for the same."""
    adapters: Annotated[list[WeightedAdapter], Meta(min_length=1, max_length=MAX_ADAPTERS)] | None = None
    """Several adapters, where `model` is the base; as text it is `model: "a*0.7+b*0.3"`."""
    max_tokens: TokenCount | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    seed: Seed | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=4)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=64)] | None = None
    ignore_eos: bool | None = None
    n: Annotated[int, Meta(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Meta(max_length=512)] | None = None
    cache_salt: Label | None = None

    def __post_init__(self) -> None:
        if self.n is not None and self.n > 1:
            raise ApiError(
                400, "unsupported_value", "Only n=1 is supported; send one request per answer you want.", param="n"
            )
        if self.stream_options is not None and not self.stream:
            raise ApiError(
                400, "invalid_value", "'stream_options' is only allowed when 'stream' is true.", param="stream_options"
            )

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


# -- what is answered ----------------------------------------------------------------------------------------------

FinishReason = Literal["stop", "length", "tool_calls"]


class PromptTokensDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Heading(msgspec.Struct, frozen=True, kw_only=True):
    """What every answer and every chunk of a stream begins with. `model`: the resolved name."""

    id: str
    created: int
    model: str
    system_fingerprint: str

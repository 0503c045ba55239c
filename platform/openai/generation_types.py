"""What the bodies of OpenAI's text endpoints have in common: fields that are read, all bounded, and parts of answers.

Knows OpenAI's field names and defaults. Knows no model, tenant or engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from loraplex.adapters.names import MAX_WEIGHT
from loraplex.adapters.profile import MinP, StopString, Temperature, TokenCount, TokenId, TopK, TopP
from loraplex.engine.messages import MAX_ADAPTERS
from loraplex.platform.errors import ApiError
from loraplex.platform.openai.body import PreparedBody, drop_unserved
from loraplex.platform.openai.structured_output import ResponseFormat, StructuredOutputs, TextFormat
from loraplex.platform.openai.unserved import INSTEAD, UNSERVED

# -- what is read --------------------------------------------------------------------------------------------------

MAX_TEXT_CHARS = 8 << 20
MAX_STOP_STRINGS = 32
"""OpenAI takes 4. vLLM takes any number, and evaluation harnesses send what a task names, which is often more."""

Text = Annotated[str, Meta(max_length=MAX_TEXT_CHARS)]
ModelRef = Annotated[str, Meta(max_length=16384)]
Label = Annotated[str, Meta(min_length=1, max_length=512)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
BadWord = Annotated[str, Meta(min_length=1, max_length=256)]
LogprobCount = Annotated[int, Meta(ge=0, le=20)]
"""How many of the most likely tokens are told; 0: the chosen one alone."""
MAX_PRIORITY = 1000
MAX_BIASES = 4096
MAX_ALLOWED_TOKENS = 1 << 18
ChoiceCount = Annotated[int, Meta(ge=1, le=1 << 20)]  # how many there may be is a setting
TruncatedTo = Annotated[int, Meta(ge=-1, le=1 << 24)]
"""The prompt's last so many tokens are taken; -1: as many as fit. 0 is refused by `check_truncation`."""
Seed = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`include_obfuscation` is a permission to pad, not a demand; nothing is padded. `continuous_usage_stats` is
    vLLM's: with `include_usage`, each chunk tells what its choice has used so far."""

    include_usage: bool = False
    include_obfuscation: bool = False
    continuous_usage_stats: bool = False


def check_truncation(most: int | None) -> None:
    """Raises ApiError for a prompt of which nothing would be left."""
    if most == 0:
        message = "'truncate_prompt_tokens' leaves nothing of the prompt: send 1 or more, or -1 for what fits."
        raise ApiError(400, "invalid_value", message, param="truncate_prompt_tokens")


class WeightedAdapter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One adapter, by any of its names, of those whose weighted sum a request runs with."""

    model: ModelRef
    weight: Annotated[float, Meta(ge=-MAX_WEIGHT, le=MAX_WEIGHT)] = 1.0


class GenerationFields(PreparedBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all of OpenAI's endpoints have in common that generate text: which model, and how it is sampled. None is the
    same as leaving the field out, as in OpenAI's clients."""

    model: ModelRef
    adapter_id: ModelRef | None = None
    """LoRAX's field: the adapter, where `model` is the base."""
    lora_path: ModelRef | None = None
    """SGLang's field for the same."""
    adapters: Annotated[list[WeightedAdapter], Meta(min_length=1, max_length=MAX_ADAPTERS)] | None = None
    """Several adapters, where `model` is the base; as text it is `model: "a*0.7+b*0.3"`."""
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    seed: Seed | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=MAX_STOP_STRINGS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=64)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=1 << 24)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    logit_bias: Annotated[dict[TokenId, float], Meta(max_length=MAX_BIASES)] | None = None
    allowed_token_ids: Annotated[list[TokenId], Meta(min_length=1, max_length=MAX_ALLOWED_TOKENS)] | None = None
    bad_words: Annotated[list[BadWord], Meta(max_length=128)] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    priority: Annotated[int, Meta(ge=0, le=MAX_PRIORITY)] | None = None
    """Of what waits, the lowest is first. A client may stand back behind others, and not push before them."""
    timeout: Annotated[float, Meta(gt=0, le=86400)] | None = None
    """Seconds after which the request has failed, if it is not done."""
    structured_outputs: StructuredOutputs | None = None
    stream: bool | None = None
    user: Annotated[str, Meta(max_length=512)] | None = None
    cache_salt: Label | None = None


class GenerationRequest(GenerationFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What chat and completions have in common."""

    max_tokens: TokenCount | None = None
    prompt_logprobs: LogprobCount | None = None
    truncate_prompt_tokens: TruncatedTo | None = None
    response_format: ResponseFormat | None = None
    n: ChoiceCount | None = None
    stream_options: StreamOptions | None = None

    @classmethod
    def prepare(cls, document: dict[str, Any]) -> None:
        drop_unserved(document, UNSERVED, "", served=cls.__struct_fields__, instead=INSTEAD)

    def __post_init__(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise ApiError(
                400, "invalid_value", "'stream_options' is only allowed when 'stream' is true.", param="stream_options"
            )
        if self.stream and self.prompt_logprobs is not None:
            message = "'prompt_logprobs' are told with the whole answer: leave out 'stream'."
            raise ApiError(400, "invalid_value", message, param="prompt_logprobs")
        check_truncation(self.truncate_prompt_tokens)

    @property
    def scored_tokens(self) -> int | None:
        """How many of the most likely tokens are told beside each token of the answer, with their log-probabilities;
        None: none, and no log-probability either."""
        return None

    @property
    def scored_prompt_tokens(self) -> int | None:
        """The same for tokens of the prompt."""
        return self.prompt_logprobs

    @property
    def asks_for_a_form(self) -> bool:
        """Whether a grammar comes of it."""
        return self.structured_outputs is not None or not isinstance(self.response_format, TextFormat | None)

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def tells_usage_so_far(self) -> bool:
        return self.stream_options is not None and self.include_usage and self.stream_options.continuous_usage_stats


@dataclass(frozen=True, slots=True)
class Reading:
    """How an answer's tokens are read as text: where it stops, and whether the stop string and special tokens are part
    of it. echo: the prompt's text, where the answer begins with it, and whether special tokens are part of that."""

    stops: tuple[str, ...] = ()
    includes_stop: bool = False
    special_tokens: bool = False
    echo: str | None = None
    echoes_special_tokens: bool = False


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

"""The bodies of OpenAI's text endpoints: what is read, with a bound on everything, and what is answered.

Knows OpenAI's field names and defaults. Knows no model, tenant or engine.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from loraplex.adapters.names import MAX_WEIGHT
from loraplex.adapters.profile import MinP, StopString, Temperature, TokenCount, TokenId, TopK, TopP
from loraplex.engine.messages import MAX_ADAPTERS
from loraplex.platform.errors import ApiError

# -- what is read --------------------------------------------------------------------------------------------------

MAX_TEXT_CHARS = 8 << 20
MAX_PROMPT_TOKENS = 4 << 20

Text = Annotated[str, Meta(max_length=MAX_TEXT_CHARS)]
ModelRef = Annotated[str, Meta(max_length=16384)]
Label = Annotated[str, Meta(min_length=1, max_length=512)]
Seed = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]


class TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A content part. Only text is served."""

    type: Literal["text"]
    text: Text


class ChatMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Meta(min_length=1, max_length=1024)]

    def for_template(self) -> dict[str, str]:
        """As chat templates want it: `developer` is today's name of `system`; parts are joined."""
        role = "system" if self.role == "developer" else self.role
        parts = self.content
        return {"role": role, "content": parts if isinstance(parts, str) else "".join(part.text for part in parts)}


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


class ChatCompletionRequest(GenerationRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=4096)]
    max_completion_tokens: TokenCount | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            message = "'max_tokens' and 'max_completion_tokens' differ; send only 'max_completion_tokens'."
            raise ApiError(400, "invalid_value", message, param="max_tokens")

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One prompt a request: text, its token ids, or a list that holds one text."""

    prompt: Text | Annotated[list[TokenId | Text], Meta(min_length=1, max_length=MAX_PROMPT_TOKENS)]

    def single_prompt(self) -> str | list[int]:
        """Raises ApiError for a list of several texts, or of texts and token ids."""
        if isinstance(self.prompt, str):
            return self.prompt
        token_ids = [item for item in self.prompt if isinstance(item, int)]
        if len(token_ids) == len(self.prompt):
            return token_ids
        if len(self.prompt) == 1 and isinstance(self.prompt[0], str):
            return self.prompt[0]
        message = "Only one prompt per request is supported: a string or a list of token ids. Send a request for each."
        raise ApiError(400, "unsupported_value", message, param="prompt")


# -- what is answered ----------------------------------------------------------------------------------------------

FinishReason = Literal["stop", "length"]


class PromptTokensDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class AssistantMessage(msgspec.Struct, frozen=True):
    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True):
    message: AssistantMessage
    finish_reason: FinishReason
    index: int = 0
    logprobs: None = None


class ChatDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True):
    delta: ChatDelta
    finish_reason: FinishReason | None = None
    index: int = 0
    logprobs: None = None


class TextChoice(msgspec.Struct, frozen=True):
    text: str
    finish_reason: FinishReason | None = None
    index: int = 0
    logprobs: None = None


class Heading(msgspec.Struct, frozen=True, kw_only=True):
    """What every answer and every chunk of a stream begins with. `model`: the resolved name."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class ChatCompletion(Heading, frozen=True, kw_only=True):
    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: Usage


class ChatCompletionChunk(Heading, frozen=True, kw_only=True):
    """`usage`: left out unless the client asked for it; then null in all chunks but the last, whose choices are []."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET


class Completion(Heading, frozen=True, kw_only=True):
    """An answer and, with `usage` as in ChatCompletionChunk, a chunk: OpenAI gives both the same shape."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]
    usage: Usage | UnsetType | None = UNSET

"""The bodies of chat completions. What they share with other text endpoints is in `generation_types`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from loraplex.adapters.profile import TokenCount
from loraplex.platform.errors import ApiError
from loraplex.platform.openai.generation_types import (
    FinishReason,
    GenerationRequest,
    Heading,
    LogprobCount,
    Text,
    Usage,
)
from loraplex.platform.openai.logprobs import ChatLogprobs, PromptLogprobs

# -- what is read --------------------------------------------------------------------------------------------------


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


class ChatCompletionRequest(GenerationRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=4096)]
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: LogprobCount | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            message = "'max_tokens' and 'max_completion_tokens' differ; send only 'max_completion_tokens'."
            raise ApiError(400, "invalid_value", message, param="max_tokens")
        if self.top_logprobs and not self.logprobs:
            message = "'top_logprobs' is only allowed when 'logprobs' is true."
            raise ApiError(400, "invalid_value", message, param="top_logprobs")

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def scored_tokens(self) -> int | None:
        return self.top_logprobs or 0 if self.logprobs else None


# -- what is answered ----------------------------------------------------------------------------------------------


class AssistantMessage(msgspec.Struct, frozen=True):
    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True):
    message: AssistantMessage
    finish_reason: FinishReason
    index: int = 0
    logprobs: ChatLogprobs | None = None


class ChatDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True):
    delta: ChatDelta
    finish_reason: FinishReason | None = None
    index: int = 0
    logprobs: ChatLogprobs | None = None


class ChatCompletion(Heading, frozen=True, kw_only=True):
    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class ChatCompletionChunk(Heading, frozen=True, kw_only=True):
    """`usage`: left out unless the client asked for it; then null in all chunks but the last, whose choices are []."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET

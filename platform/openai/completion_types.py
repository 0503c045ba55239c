"""The bodies of plain completions. What they share with other text endpoints is in `generation_types`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from loraplex.adapters.profile import TokenId
from loraplex.platform.errors import ApiError
from loraplex.platform.openai.generation_types import (
    FinishReason,
    GenerationRequest,
    Heading,
    LogprobCount,
    Text,
    Usage,
)
from loraplex.platform.openai.logprobs import PromptLogprobs, TextLogprobs

# -- what is read --------------------------------------------------------------------------------------------------

MAX_PROMPT_TOKENS = 4 << 20


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One prompt a request: text, its token ids, or a list that holds one text."""

    prompt: Text | Annotated[list[TokenId | Text], Meta(min_length=1, max_length=MAX_PROMPT_TOKENS)]
    max_tokens: Annotated[int, Meta(ge=0, le=1 << 24)] | None = None
    """0: only the prompt is computed, for its log-probabilities."""
    echo: bool | None = None
    logprobs: LogprobCount | None = None

    @property
    def scored_tokens(self) -> int | None:
        return self.logprobs

    @property
    def scored_prompt_tokens(self) -> int | None:
        """With `echo`, `logprobs` are those of the prompt, too."""
        asked = [count for count in (self.prompt_logprobs, self.logprobs if self.echo else None) if count is not None]
        return max(asked, default=None)

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


class TextChoice(msgspec.Struct, frozen=True):
    text: str
    finish_reason: FinishReason | None = None
    index: int = 0
    logprobs: TextLogprobs | None = None
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class Completion(Heading, frozen=True, kw_only=True):
    """An answer and, with `usage` as in ChatCompletionChunk, a chunk: OpenAI gives both the same shape."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]
    usage: Usage | UnsetType | None = UNSET

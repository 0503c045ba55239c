"""The bodies of plain completions. What they share with other text endpoints is in `generation_types`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from loraplex.adapters.profile import TokenId
from loraplex.platform.errors import ApiError
from loraplex.platform.openai.generation_types import (
    ChoiceCount,
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


TokenIds = Annotated[list[TokenId], Meta(min_length=1, max_length=MAX_PROMPT_TOKENS)]


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One prompt, as text or as token ids, or a list of these. For each, `best_of` run and the best `n` are told."""

    prompt: Text | Annotated[list[TokenId | Text | TokenIds], Meta(min_length=1, max_length=MAX_PROMPT_TOKENS)]
    best_of: ChoiceCount | None = None
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.best_of is None:
            return
        if self.best_of < self.choices:
            message = (
                f"'best_of' is {self.best_of}, less than the {self.choices} choices of 'n'. Raise it, or lower 'n'."
            )
            raise ApiError(400, "invalid_value", message, param="best_of")
        if self.best_of > self.choices and self.stream:
            message = "Which choices are the best is known at their end: 'best_of' above 'n' cannot be streamed."
            raise ApiError(400, "invalid_value", f"{message} Leave out 'stream'.", param="best_of")

    @property
    def prompts(self) -> list[str | list[int]]:
        """All of them. Raises ApiError for a list of token ids and something else."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        prompts = [item for item in self.prompt if not isinstance(item, int)]
        if not prompts:
            return [[item for item in self.prompt if isinstance(item, int)]]
        if len(prompts) == len(self.prompt):
            return prompts
        message = "'prompt' holds both token ids and prompts. Send the token ids of a prompt as a list of their own."
        raise ApiError(400, "invalid_value", message, param="prompt")


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

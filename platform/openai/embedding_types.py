"""The bodies of embeddings: what is read, all bounded, and what is answered.

Knows OpenAI's field names and defaults. Knows no model, tenant or engine.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from loraplex.adapters.profile import TokenId
from loraplex.platform.errors import ApiError
from loraplex.platform.openai.generation_types import ModelRef, Text, TruncatedTo, check_truncation

# -- what is read --------------------------------------------------------------------------------------------------

MAX_INPUTS = 2048
MAX_INPUT_TOKENS = 1 << 20

Tokens = Annotated[list[TokenId], Meta(min_length=1, max_length=MAX_INPUT_TOKENS)]
Input = Text | Annotated[list[Text | TokenId | Tokens], Meta(min_length=1, max_length=MAX_INPUT_TOKENS)]


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """None is the same as leaving the field out. `dimensions`: what the model has, if anything.
    `truncate_prompt_tokens` is vLLM's, for each input."""

    model: ModelRef
    input: Input
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    truncate_prompt_tokens: TruncatedTo | None = None
    user: Annotated[str, Meta(max_length=512)] | None = None

    def __post_init__(self) -> None:
        check_truncation(self.truncate_prompt_tokens)

    def prompts(self) -> list[str | list[int]]:
        """Texts or token ids. Raises ApiError for a list that mixes kinds, and for more than MAX_INPUTS."""
        if isinstance(self.input, str):
            return [self.input]
        kinds = {type(item) for item in self.input}
        if len(kinds) > 1:
            message = "'input' mixes texts and token ids; send a list of texts, of token ids, or of lists of token ids."
            raise ApiError(400, "invalid_type", message, param="input")
        if kinds == {int}:
            return [[item for item in self.input if isinstance(item, int)]]
        if len(self.input) > MAX_INPUTS:
            message = f"'input' has {len(self.input)} entries; at most {MAX_INPUTS} are allowed. Send several requests."
            raise ApiError(400, "invalid_value", message, param="input")
        return [item for item in self.input if not isinstance(item, int)]


# -- what is answered ----------------------------------------------------------------------------------------------


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """`embedding`: numbers, or with `encoding_format` base64 the same as fp32, little-endian."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, frozen=True, kw_only=True):
    """`model`: the resolved name."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage

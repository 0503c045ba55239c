"""The bodies of /tokenize and /detokenize, which are vLLM's: what is read, all bounded, and what is answered."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from loraplex.adapters.profile import TokenId
from loraplex.platform.errors import ApiError
from loraplex.platform.openai.body import PreparedBody
from loraplex.platform.openai.chat_types import ChatMessage, prepare_messages
from loraplex.platform.openai.generation_types import ModelRef, Text

MAX_TOKENS = 1 << 20

# -- what is read --------------------------------------------------------------------------------------------------


class TokenizeRequest(PreparedBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A text or a conversation. model: None is the base. add_special_tokens: those that the tokenizer adds by itself,
    a BOS for one; a conversation has the special tokens that its template writes."""

    model: ModelRef | None = None
    prompt: Text | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=4096)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None

    @classmethod
    def prepare(cls, document: dict[str, Any]) -> None:
        prepare_messages(document)

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            message = "Send either 'prompt', a text, or 'messages', a conversation."
            code = "missing_required_parameter" if self.prompt is None else "invalid_value"
            raise ApiError(400, code, message, param="prompt")
        if self.messages is not None and self.add_special_tokens:
            message = "The chat template writes the special tokens of 'messages'. Leave 'add_special_tokens' out."
            raise ApiError(400, "unsupported_value", message, param="add_special_tokens")
        if self.add_generation_prompt is False:
            message = "A conversation is always rendered up to where the answer begins. Leave it out."
            raise ApiError(400, "unsupported_value", message, param="add_generation_prompt")


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: ModelRef | None = None
    tokens: Annotated[list[TokenId], Meta(max_length=MAX_TOKENS)]


# -- what is answered ----------------------------------------------------------------------------------------------


class Tokenized(msgspec.Struct, frozen=True, kw_only=True):
    """max_model_len: the most tokens that prompt and answer of this model may have. token_strs: as the vocabulary
    spells them, where `return_token_strs` asked for it."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(msgspec.Struct, frozen=True):
    """With the text of special tokens."""

    prompt: str

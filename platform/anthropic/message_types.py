"""The bodies of Anthropic's Messages API that are read, all bounded. What is answered is in `events`.

Knows Anthropic's field names. Knows no chat completion and no model.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from loraplex.adapters.profile import MinP, StopString, TokenCount, TopK, TopP
from loraplex.engine.messages import MAX_ADAPTERS
from loraplex.platform.anthropic.unserved import refuse_unserved
from loraplex.platform.errors import ApiError
from loraplex.platform.openai.body import PreparedBody
from loraplex.platform.openai.generation_types import (
    MAX_STOP_STRINGS,
    Label,
    ModelRef,
    Seed,
    Text,
    WeightedAdapter,
)
from loraplex.platform.openai.structured_output import MAX_SCHEMA_DEPTH, is_deeper
from loraplex.platform.openai.tool_types import MAX_TOOLS, CallId, FunctionName

# -- content blocks ------------------------------------------------------------------------------------------------

CacheControl = Annotated[dict[str, str], Meta(max_length=4)]
"""Allowed wherever Anthropic allows it, and without effect: every prefix is cached here, nobody has to ask for it."""


class TextBlock(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    text: Text
    cache_control: CacheControl | None = None
    citations: Annotated[list[Any], Meta(max_length=0)] | None = None


class DirectCaller(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The model itself, and no program of its."""

    type: Literal["direct"]


class ToolUseBlock(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="tool_use"):
    id: CallId
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    input: dict[str, Any]
    cache_control: CacheControl | None = None
    caller: DirectCaller | None = None
    toolset_name: None = None


class ToolResultBlock(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="tool_result"):
    tool_use_id: CallId
    content: Text | Annotated[list[TextBlock], Meta(max_length=1024)] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None
    toolset_name: None = None


class ThinkingBlock(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="thinking"):
    """`signature` is not checked: what a client says that the model has thought, it could as well say in text."""

    thinking: Text
    signature: Text | None = None


class RedactedThinkingBlock(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="redacted_thinking"
):
    """Thoughts that only Anthropic can read."""

    data: Text


Block = TextBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock

_BLOCKS_OF: dict[str, tuple[type[Block], ...]] = {
    "user": (TextBlock, ToolResultBlock),
    "assistant": (TextBlock, ToolUseBlock, ThinkingBlock, RedactedThinkingBlock),
    "system": (TextBlock,),
}


class InputMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: Literal["user", "assistant", "system"]
    content: Text | Annotated[list[Block], Meta(min_length=1, max_length=1024)]

    @property
    def blocks(self) -> list[Block]:
        return [TextBlock(self.content)] if isinstance(self.content, str) else self.content

    def check(self, path: str) -> None:
        """Raises ApiError for a block that its role has not, or that is nested too deeply. path: of the message."""
        for index, block in enumerate(self.blocks):
            if not isinstance(block, _BLOCKS_OF[self.role]):
                param = f"{path}.content[{index}]"
                kind = block.__struct_config__.tag
                message = f"Invalid value for '{param}': messages of the role '{self.role}' have no blocks of '{kind}'."
                raise ApiError(400, "invalid_value", message, param=param)
            if isinstance(block, ToolUseBlock) and is_deeper(block.input, MAX_SCHEMA_DEPTH):
                param = f"{path}.content[{index}].input"
                message = f"'{param}' is nested deeper than {MAX_SCHEMA_DEPTH} levels; make it flatter."
                raise ApiError(400, "invalid_value", message, param=param)


# -- tools and options ---------------------------------------------------------------------------------------------


class Tool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`strict` and `eager_input_streaming` change nothing: forced calls follow the schema in any case, and the input of
    a call is sent when all of it is there."""

    name: FunctionName
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    description: Annotated[str, Meta(max_length=65536)] | None = None
    cache_control: CacheControl | None = None
    strict: bool | None = None
    eager_input_streaming: bool | None = None
    defer_loading: Literal[False] | None = None
    allowed_callers: Annotated[list[Literal["direct"]], Meta(max_length=1)] | None = None
    input_examples: Annotated[list[Any], Meta(max_length=0)] | None = None


class ToolChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`name`: of the one tool, where the type is `tool`."""

    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = None
    disable_parallel_tool_use: bool | None = None

    def __post_init__(self) -> None:
        if (self.name is not None) != (self.type == "tool"):
            message = "'tool_choice' has a 'name' if its type is 'tool', and only then."
            raise ApiError(400, "invalid_value", message, param="tool_choice.name")


class Thinking(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For models whose chat template thinks; others pass it over. `budget_tokens` is told to templates that look at it
    and enforced by none. `display`: `omitted` leaves out what was thought."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: TokenCount | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`effort`: for templates that look at it, as `reasoning_effort`."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class Metadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`user_id`: where an alias splits its traffic, it decides the version."""

    user_id: Annotated[str, Meta(max_length=512)] | None = None


# -- requests ------------------------------------------------------------------------------------------------------


class CountTokensRequest(PreparedBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a prompt is made of. `adapters`, `adapter_id`, `lora_path` are this server's: as in a chat completion."""

    model: ModelRef
    messages: Annotated[list[InputMessage], Meta(min_length=1, max_length=4096)]
    system: Text | Annotated[list[TextBlock], Meta(max_length=1024)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    metadata: Metadata | None = None
    cache_control: CacheControl | None = None
    adapters: Annotated[list[WeightedAdapter], Meta(min_length=1, max_length=MAX_ADAPTERS)] | None = None
    adapter_id: ModelRef | None = None
    lora_path: ModelRef | None = None

    def __post_init__(self) -> None:
        for index, message in enumerate(self.messages):
            message.check(f"messages[{index}]")

    @classmethod
    def prepare(cls, document: dict[str, Any]) -> None:
        """See `unserved`."""
        refuse_unserved(document)


class MessagesRequest(CountTokensRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`seed`, `min_p`, `cache_salt` are this server's: as in a chat completion."""

    max_tokens: TokenCount
    stop_sequences: Annotated[list[StopString], Meta(max_length=MAX_STOP_STRINGS)] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    min_p: MinP | None = None
    seed: Seed | None = None
    cache_salt: Label | None = None

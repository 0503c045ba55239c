"""The body of POST /v1/responses: OpenAI's fields, and of vLLM's and ours those that sample and choose adapters."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from loraplex.adapters.profile import TokenCount
from loraplex.platform.errors import ApiError
from loraplex.platform.openai.chat_types import TemplateVariables
from loraplex.platform.openai.generation_types import GenerationFields, LogprobCount, Text
from loraplex.platform.openai.responses.item_types import MAX_ITEMS, Item, ItemReference
from loraplex.platform.openai.responses.unserved import prepare
from loraplex.platform.openai.structured_output import JsonObjectFormat, SchemaName, TextFormat
from loraplex.platform.openai.tool_types import MAX_TOOLS, FunctionName

LOGPROBS = "message.output_text.logprobs"

Includable = Literal[
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]
"""All but the log-probabilities are of what no answer here has; thoughts are told as they are, in `content`."""

ShortText = Annotated[str, Meta(max_length=512)]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]


class ResponseTool(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """See `tool_types.FunctionDefinition`."""

    name: FunctionName
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    description: Annotated[str, Meta(max_length=65536)] | None = None


class FunctionChoice(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """This function has to be called."""

    name: FunctionName


class AllowedTools(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="allowed_tools"):
    """Of the tools, the model may call these (auto), or has to call one of them (required)."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[FunctionChoice], Meta(min_length=1, max_length=MAX_TOOLS)]


class TextJsonSchema(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="json_schema"):
    """See `structured_output.JsonSchema`."""

    name: SchemaName
    schema: dict[str, Any]
    description: Annotated[str, Meta(max_length=8192)] | None = None
    strict: bool | None = None


class TextOptions(Struct, frozen=True, forbid_unknown_fields=True):
    format: TextFormat | JsonObjectFormat | TextJsonSchema | None = None


class ReasoningOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """Models think as they are served to; nothing of it can be asked for."""


class ResponseStreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """`include_obfuscation` is a permission to pad, not a demand; nothing is padded."""

    include_obfuscation: bool | None = None


ResponseToolChoice = Literal["none", "auto", "required"] | FunctionChoice | AllowedTools


class CreateResponse(GenerationFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`store`: by default the server's setting. `max_tool_calls` bounds calls of built-in tools, of which there are
    none. `prompt_cache_key` is for routing: prefixes are cached inside a tenant, with or without it.
    `chat_template_kwargs` is vLLM's, as in a chat completion."""

    input: Text | Annotated[list[Item | ItemReference], Meta(min_length=1, max_length=MAX_ITEMS)]
    instructions: Text | None = None
    previous_response_id: Annotated[str, Meta(max_length=64)] | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    max_output_tokens: TokenCount | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    tools: Annotated[list[ResponseTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    include: Annotated[list[Includable], Meta(max_length=16)] | None = None
    top_logprobs: LogprobCount | None = None
    stream_options: ResponseStreamOptions | None = None
    prompt_cache_key: ShortText | None = None
    safety_identifier: ShortText | None = None
    chat_template_kwargs: TemplateVariables | None = None

    def __post_init__(self) -> None:
        if self.stream_options is not None and not self.stream:
            message = "'stream_options' is only allowed when 'stream' is true."
            raise ApiError(400, "invalid_value", message, param="stream_options")
        if self.top_logprobs and not self.wants_logprobs:
            message = f"'top_logprobs' is only allowed when 'include' has '{LOGPROBS}'."
            raise ApiError(400, "invalid_value", message, param="top_logprobs")

    @classmethod
    def prepare(cls, document: dict[str, Any]) -> None:
        prepare(document)

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

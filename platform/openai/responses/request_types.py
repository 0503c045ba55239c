"""The body of POST /v1/responses: OpenAI's fields, and of vLLM's and ours those that sample and choose adapters."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from loraplex.adapters.profile import MinP, StopString, Temperature, TokenCount, TokenId, TopK, TopP
from loraplex.engine.messages import MAX_ADAPTERS
from loraplex.platform.errors import ApiError
from loraplex.platform.openai.body import PreparedBody
from loraplex.platform.openai.chat_types import TEMPLATE_VARIABLES, TemplateValue
from loraplex.platform.openai.generation_types import (
    MAX_ALLOWED_TOKENS,
    MAX_BIASES,
    MAX_STOP_STRINGS,
    BadWord,
    Label,
    LogprobCount,
    ModelRef,
    Penalty,
    Seed,
    Text,
    WeightedAdapter,
)
from loraplex.platform.openai.responses.item_types import MAX_ITEMS, Item, ItemReference
from loraplex.platform.openai.responses.unserved import prepare
from loraplex.platform.openai.structured_output import JsonObjectFormat, SchemaName, StructuredOutputs, TextFormat
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


class CreateResponse(PreparedBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """None is the same as leaving the field out. `store`: by default the server's setting. `max_tool_calls` bounds
    calls of built-in tools, of which there are none. `prompt_cache_key` is for routing: prefixes are cached inside a
    tenant, with or without it. Fields below `user` are not OpenAI's; they are those of chat completions."""

    model: ModelRef
    input: Text | Annotated[list[Item | ItemReference], Meta(min_length=1, max_length=MAX_ITEMS)]
    instructions: Text | None = None
    previous_response_id: Annotated[str, Meta(max_length=64)] | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    max_output_tokens: TokenCount | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    tools: Annotated[list[ResponseTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    include: Annotated[list[Includable], Meta(max_length=16)] | None = None
    top_logprobs: LogprobCount | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    prompt_cache_key: ShortText | None = None
    safety_identifier: ShortText | None = None
    user: ShortText | None = None
    adapter_id: ModelRef | None = None
    lora_path: ModelRef | None = None
    adapters: Annotated[list[WeightedAdapter], Meta(min_length=1, max_length=MAX_ADAPTERS)] | None = None
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
    priority: Annotated[int, Meta(ge=0, le=1000)] | None = None
    timeout: Annotated[float, Meta(gt=0, le=86400)] | None = None
    structured_outputs: StructuredOutputs | None = None
    chat_template_kwargs: Annotated[dict[str, TemplateValue], Meta(max_length=len(TEMPLATE_VARIABLES))] | None = None
    cache_salt: Label | None = None

    def __post_init__(self) -> None:
        if self.stream_options is not None and not self.stream:
            message = "'stream_options' is only allowed when 'stream' is true."
            raise ApiError(400, "invalid_value", message, param="stream_options")
        if self.top_logprobs and not self.wants_logprobs:
            message = f"'top_logprobs' is only allowed when 'include' has '{LOGPROBS}'."
            raise ApiError(400, "invalid_value", message, param="top_logprobs")

    @staticmethod
    def prepare(document: dict[str, Any]) -> None:
        prepare(document)

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

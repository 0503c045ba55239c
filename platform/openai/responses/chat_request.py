"""A request for a response as one for a chat completion, and errors about that in the fields of this API."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from loraplex.platform.errors import ApiError
from loraplex.platform.openai import structured_output, tool_types
from loraplex.platform.openai.chat_types import ChatCompletionRequest
from loraplex.platform.openai.responses.chat_messages import chat_messages
from loraplex.platform.openai.responses.item_types import Item
from loraplex.platform.openai.responses.request_types import (
    AllowedTools,
    CreateResponse,
    FunctionChoice,
    ResponseTool,
    TextJsonSchema,
)

SAME_FIELDS = (
    "model", "adapter_id", "lora_path", "adapters", "temperature", "top_p", "top_k", "min_p", "seed", "stop",
    "stop_token_ids", "ignore_eos", "min_tokens", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "logit_bias", "allowed_token_ids", "bad_words", "include_stop_str_in_output", "skip_special_tokens", "priority",
    "timeout", "structured_outputs", "chat_template_kwargs", "cache_salt", "user", "stream", "parallel_tool_calls",
)  # fmt: skip

FIELDS = (
    (re.compile(r"\bmessages(\[\d+\][\w.\[\]]*)?"), "input"),
    (re.compile(r"\bresponse_format\.json_schema\b"), "text.format"),
    (re.compile(r"\bresponse_format\b"), "text.format"),
    (re.compile(r"\b(tools\[\d+\])\.function\b"), r"\1"),
    (re.compile(r"\bmax_(completion_)?tokens\b"), "max_output_tokens"),
)
"""What a chat's fields are called here."""

_NAMED = re.compile(r"'[a-z_0-9.\[\]]+'|\bin the messages\b")
"""Where messages name a field."""


def chat_request(data: CreateResponse, items: Sequence[Item]) -> ChatCompletionRequest:
    """items: the whole conversation. Raises ApiError, in the fields of chat."""
    tools, choice = _tools(data)
    return ChatCompletionRequest(
        **{field: getattr(data, field) for field in SAME_FIELDS},
        messages=chat_messages(data.instructions, items),
        max_completion_tokens=data.max_output_tokens,
        logprobs=data.wants_logprobs or None,
        top_logprobs=data.top_logprobs if data.wants_logprobs else None,
        tools=tools,
        tool_choice=choice,
        response_format=_format(data),
    )


@contextmanager
def in_own_fields() -> Iterator[None]:
    """Errors that name a field of chat name the one that it was translated from."""
    try:
        yield
    except ApiError as error:
        raise _translated(error) from error


def _translated(error: ApiError) -> ApiError:
    return ApiError(
        error.status,
        error.code,
        _NAMED.sub(lambda named: _own_field(named[0]), error.message),
        param=error.param and _own_field(error.param),
        type=error.type,
        headers=error.headers,
        details=error.details,
    )


def _own_field(name: str) -> str:
    for field, own in FIELDS:
        name = field.sub(own, name)
    return name


def _tools(data: CreateResponse) -> tuple[list[tool_types.FunctionTool] | None, tool_types.ToolChoice | None]:
    """What the model is told of: tools that it may not call are as none."""
    choice = data.tool_choice
    if isinstance(choice, AllowedTools):
        return _allowed(data.tools or [], choice), choice.mode
    tools = None if data.tools is None else [_tool(tool) for tool in data.tools]
    if isinstance(choice, FunctionChoice):
        return tools, tool_types.NamedToolChoice("function", tool_types.FunctionReference(choice.name))
    return tools, choice


def _allowed(tools: Sequence[ResponseTool], choice: AllowedTools) -> list[tool_types.FunctionTool]:
    names = {tool.name for tool in tools}
    for index, allowed in enumerate(choice.tools):
        if allowed.name not in names:
            param = f"tool_choice.tools[{index}].name"
            message = f"'tool_choice' allows the function '{allowed.name}', which is not among the tools; add it there."
            raise ApiError(400, "invalid_value", message, param=param)
    names = {allowed.name for allowed in choice.tools}
    return [_tool(tool) for tool in tools if tool.name in names]


def _tool(tool: ResponseTool) -> tool_types.FunctionTool:
    definition = tool_types.FunctionDefinition(tool.name, tool.description, tool.parameters, tool.strict)
    return tool_types.FunctionTool("function", definition)


def _format(data: CreateResponse) -> structured_output.ResponseFormat | None:
    asked: Any = data.text and data.text.format
    if not isinstance(asked, TextJsonSchema):
        return asked  # type: ignore[no-any-return]  # the other forms are the same in both
    schema = structured_output.JsonSchema(asked.name, asked.description, asked.schema, asked.strict)
    return structured_output.JsonSchemaFormat(schema)

"""A request for a response as the chat completion that it means, and what the fields of that are called here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from loraplex.platform.errors import ApiError
from loraplex.platform.openai import structured_output, tool_types
from loraplex.platform.openai.chat_types import ChatCompletionRequest
from loraplex.platform.openai.field_names import FieldNames, named_by
from loraplex.platform.openai.generation_types import GenerationFields
from loraplex.platform.openai.responses.chat_messages import chat_messages
from loraplex.platform.openai.responses.item_types import Item
from loraplex.platform.openai.responses.request_types import (
    AllowedTools,
    CreateResponse,
    FunctionChoice,
    ResponseTool,
    TextJsonSchema,
)

SAME_FIELDS = (*GenerationFields.__struct_fields__, "chat_template_kwargs", "parallel_tool_calls")

FIELD_NAMES: FieldNames = (
    (re.compile(r"messages\b.*"), "input"),
    (re.compile(r"response_format(\.json_schema)?\b"), "text.format"),
    (re.compile(r"(tools\[\d+\])\.function\b"), r"\1"),
    (re.compile(r"max_(completion_)?tokens\b"), "max_output_tokens"),
)
"""What a chat's fields are called here."""


@named_by(FIELD_NAMES)
def chat_request(data: CreateResponse, items: Sequence[Item]) -> ChatCompletionRequest:
    """items: the whole conversation. Raises ApiError."""
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


def _tools(data: CreateResponse) -> tuple[list[tool_types.FunctionTool] | None, tool_types.ToolChoice | None]:
    """What the model is told of: tools that it may not call are as none."""
    choice = data.tool_choice
    tools = None if data.tools is None else [_tool(tool) for tool in data.tools]
    if isinstance(choice, AllowedTools):
        return _allowed(tools or [], choice), choice.mode
    if isinstance(choice, FunctionChoice):
        return tools, tool_types.NamedToolChoice("function", tool_types.FunctionReference(choice.name))
    return tools, choice


def _allowed(tools: list[tool_types.FunctionTool], choice: AllowedTools) -> list[tool_types.FunctionTool]:
    tool_types.check_tools(tools, None)  # also those that the chat does not have, since the answer tells all of them
    names = {tool.function.name for tool in tools}
    for index, allowed in enumerate(choice.tools):
        if allowed.name not in names:
            param = f"tool_choice.tools[{index}].name"
            message = f"'tool_choice' allows the function '{allowed.name}', which is not among the tools; add it there."
            raise ApiError(400, "invalid_value", message, param=param)
    names = {allowed.name for allowed in choice.tools}
    return [tool for tool in tools if tool.function.name in names]


def _tool(tool: ResponseTool) -> tool_types.FunctionTool:
    definition = tool_types.FunctionDefinition(tool.name, tool.description, tool.parameters, tool.strict)
    return tool_types.FunctionTool("function", definition)


def _format(data: CreateResponse) -> structured_output.ResponseFormat | None:
    asked: Any = data.text and data.text.format
    if not isinstance(asked, TextJsonSchema):
        return asked  # type: ignore[no-any-return]  # the other forms are the same in both
    schema = structured_output.JsonSchema(asked.name, asked.description, asked.schema, asked.strict)
    return structured_output.JsonSchemaFormat(schema)

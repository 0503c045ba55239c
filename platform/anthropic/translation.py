"""Requests of the Messages API as the chat completions that they mean, and what the fields of those are called here.

Knows both APIs' fields. Knows no answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

import msgspec

from loraplex.platform.anthropic.content import ID_PREFIX
from loraplex.platform.anthropic.message_types import (
    Block,
    CountTokensRequest,
    InputMessage,
    MessagesRequest,
    OutputConfig,
    TextBlock,
    Thinking,
    ThinkingBlock,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
)
from loraplex.platform.errors import ApiError
from loraplex.platform.openai import tool_types as chat_tools
from loraplex.platform.openai.chat_types import ChatCompletionRequest, ChatMessage, TemplateValue
from loraplex.platform.openai.field_names import FieldNames, named_by
from loraplex.platform.openai.structured_output import JsonSchema, JsonSchemaFormat

NOT_FOR_THE_MODEL = "x-anthropic-billing-header:"
"""A system block that agents begin with this is other in each request, so no cached prefix would ever fit."""

FAILED = "Error: "
"""Before the result of a call that failed: chat templates have no other place for it."""

SAME_FIELDS = ("stream", "temperature", "top_k", "top_p", "min_p", "seed", "cache_salt")
"""Fields that mean the same in both."""

FIELD_NAMES: FieldNames = (
    (re.compile(r"(tools\[\d+\])\.function\.parameters\b"), r"\1.input_schema"),
    (re.compile(r"(tools\[\d+\])\.function\b"), r"\1"),
    (re.compile(r"response_format\b.*"), "output_config.format.schema"),
    (re.compile(r"stop\b"), "stop_sequences"),
    (re.compile(r"user$"), "metadata.user_id"),
)
"""What a chat's fields are called here."""


@named_by(FIELD_NAMES)
def chat_request(request: CountTokensRequest) -> ChatCompletionRequest:
    """The chat completion, without a limit on its tokens. Raises ApiError, in words of this API."""
    messages, is_prefilled = _messages(request.messages)
    if system := _system(request.system):
        messages.insert(0, ChatMessage("system", system))
    sampling = {name: getattr(request, name) for name in SAME_FIELDS} if isinstance(request, MessagesRequest) else {}
    choice = request.tool_choice
    return ChatCompletionRequest(
        model=request.model,
        adapters=request.adapters,
        adapter_id=request.adapter_id,
        lora_path=request.lora_path,
        user=None if request.metadata is None else request.metadata.user_id,
        messages=messages,
        tools=[_tool(tool.name, tool.description, tool.input_schema) for tool in request.tools or ()] or None,
        tool_choice=None if choice is None else _tool_choice(choice),
        parallel_tool_calls=False if choice is not None and choice.disable_parallel_tool_use else None,
        chat_template_kwargs=_template_variables(request.thinking, request.output_config) or None,
        response_format=_response_format(request.output_config),
        continue_final_message=is_prefilled or None,
        stop=getattr(request, "stop_sequences", None),
        **sampling,
    )


# -- messages ------------------------------------------------------------------------------------------------------


def _messages(asked: Sequence[InputMessage]) -> tuple[list[ChatMessage], bool]:
    """Turns, each of all messages of one role that follow each other; and whether the last is to be continued."""
    messages: list[ChatMessage] = []
    for role, group in groupby(asked, lambda message: message.role):
        blocks = [block for message in group for block in message.blocks]
        if role == "assistant":
            messages.append(_assistant(blocks))
        else:
            messages.extend(_turn(role, blocks))
    if messages[-1].role != "assistant":
        return messages, False
    return _continued(messages, f"messages[{len(asked) - 1}].content")


def _continued(messages: list[ChatMessage], path: str) -> tuple[list[ChatMessage], bool]:
    final = messages[-1]
    if final.tool_calls:
        message = f"'{path}' ends with 'tool_use' blocks: send a user message with a 'tool_result' block for each."
        raise ApiError(400, "invalid_value", message, param=path)
    if not final.text:
        if final.reasoning_content:
            message = f"'{path}' holds thoughts alone, which are not continued: end it with text, or leave it out."
            raise ApiError(400, "invalid_value", message, param=path)
        return messages[:-1], False
    if final.text != final.text.rstrip():
        message = f"'{path}': the final assistant content cannot end with trailing whitespace. Strip it."
        raise ApiError(400, "invalid_value", message, param=path)
    return messages, True


def _assistant(blocks: Sequence[Block]) -> ChatMessage:
    text = _text(blocks)
    calls = [
        chat_tools.ToolCall(_call_id(block.id), chat_tools.FunctionCall(block.name, _arguments(block)))
        for block in blocks
        if isinstance(block, ToolUseBlock)
    ]
    thoughts = "\n".join(block.thinking for block in blocks if isinstance(block, ThinkingBlock))
    content = text if text or not (calls or thoughts) else None
    return ChatMessage("assistant", content, tool_calls=calls or None, reasoning_content=thoughts or None)


def _turn(role: str, blocks: Sequence[Block]) -> Iterator[ChatMessage]:
    """Results of tools are messages of their own, where they stand."""
    for is_result, group in groupby(blocks, lambda block: isinstance(block, ToolResultBlock)):
        if is_result:
            yield from (_result(block) for block in group if isinstance(block, ToolResultBlock))
        else:
            yield ChatMessage("system" if role == "system" else "user", _text(list(group)))


def _result(block: ToolResultBlock) -> ChatMessage:
    text = block.content if isinstance(block.content, str) else _text(block.content or ())
    return ChatMessage("tool", FAILED + text if block.is_error else text, tool_call_id=_call_id(block.tool_use_id))


def _text(blocks: Sequence[Block]) -> str:
    return "\n".join(block.text for block in blocks if isinstance(block, TextBlock))


def _system(system: str | list[TextBlock] | None) -> str:
    blocks = [TextBlock(system)] if isinstance(system, str) else system or []
    return _text([block for block in blocks if not block.text.startswith(NOT_FOR_THE_MODEL)])


def _call_id(block_id: str) -> str:
    """As the chat template saw it, if it is of one of our answers: some templates take no other form."""
    return block_id.removeprefix(ID_PREFIX) or block_id


def _arguments(block: ToolUseBlock) -> str:
    return msgspec.json.encode(block.input).decode()


# -- tools and options ---------------------------------------------------------------------------------------------


def _tool(name: str, description: str | None, schema: dict[str, object]) -> chat_tools.FunctionTool:
    return chat_tools.FunctionTool("function", chat_tools.FunctionDefinition(name, description, schema))


def _tool_choice(choice: ToolChoice) -> chat_tools.ToolChoice:
    match choice.type:
        case "any":
            return "required"
        case "tool":
            assert choice.name is not None
            return chat_tools.NamedToolChoice("function", chat_tools.FunctionReference(choice.name))
        case "auto" | "none":
            return choice.type


def _template_variables(thinking: Thinking | None, output: OutputConfig | None) -> dict[str, TemplateValue]:
    """What is not asked for, the template decides."""
    variables: dict[str, TemplateValue] = {}
    if thinking is not None:
        thinks = thinking.type != "disabled"
        variables |= {"enable_thinking": thinks, "thinking": thinks}
        if thinks and thinking.budget_tokens is not None:
            variables["thinking_budget"] = thinking.budget_tokens
    if output is not None and output.effort is not None:
        variables["reasoning_effort"] = output.effort
    return variables


def _response_format(output: OutputConfig | None) -> JsonSchemaFormat | None:
    if output is None or output.format is None:
        return None
    return JsonSchemaFormat(JsonSchema("output", schema=output.format.schema))

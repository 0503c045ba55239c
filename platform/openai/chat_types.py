"""The bodies of chat completions. What they share with other text endpoints is in `generation_types`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from loraplex.adapters.profile import TokenCount
from loraplex.platform.errors import ApiError
from loraplex.platform.openai.body import drop_unserved, objects_in
from loraplex.platform.openai.generation_types import (
    FinishReason,
    GenerationRequest,
    Heading,
    LogprobCount,
    Text,
    Usage,
)
from loraplex.platform.openai.logprobs import ChatLogprobs, PromptLogprobs
from loraplex.platform.openai.tool_types import (
    MAX_TOOLS,
    CallId,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    Tools,
    check_tools,
)
from loraplex.platform.openai.unserved import UNSERVED_IN_MESSAGES

# -- what is read --------------------------------------------------------------------------------------------------

TEMPLATE_VARIABLES = frozenset(
    {
        "clear_thinking",
        "date_string",
        "enable_thinking",
        "keep_past_thinking",
        "model_identity",
        "preserve_thinking",
        "reasoning_effort",
        "strip_thinking",
        "thinking",
        "thinking_budget",
        "tools_in_user_message",
    }
)
"""What requests may set of what chat templates look at; all else the server and the request's own fields decide."""

TemplateValue = bool | int | float | Annotated[str, Meta(max_length=256)] | None
TemplateVariables = Annotated[dict[str, TemplateValue], Meta(max_length=len(TEMPLATE_VARIABLES))]


class TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """A content part. Only text is served."""

    text: Text


class RefusalPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="refusal"):
    """What an assistant said instead of an answer."""

    refusal: Text

    @property
    def text(self) -> str:
        return self.refusal


class ChatMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`check` knows which role has which fields. An empty one is the same as none: clients send back what they got."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[TextPart | RefusalPart], Meta(min_length=1, max_length=1024)] | None = None
    name: Annotated[str, Meta(max_length=256)] | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=MAX_TOOLS)] | None = None
    tool_call_id: CallId | None = None
    refusal: Text | None = None
    reasoning_content: Text | None = None

    def check(self, path: str) -> None:
        """Raises ApiError for a field that its role has not, or that its role needs. path: of the message."""
        is_assistant = self.role == "assistant"
        for field in ("tool_calls", "refusal", "reasoning_content"):
            if getattr(self, field) and not is_assistant:
                raise _unknown(path, field, "Only messages of the assistant have it.")
        if self.tool_call_id is not None and self.role != "tool":
            raise _unknown(path, "tool_call_id", "Only messages of a tool have it.")
        if self.tool_call_id is None and self.role == "tool":
            param = f"{path}.tool_call_id"
            raise ApiError(400, "missing_required_parameter", f"Missing required parameter: '{param}'.", param=param)
        if not is_assistant and isinstance(self.content, list) and any(_is_refusal(part) for part in self.content):
            raise _unknown(path, "content", "Only messages of the assistant have parts of type refusal.")
        if self.content is None and not (is_assistant and (self.tool_calls or self.refusal or self.reasoning_content)):
            param = f"{path}.content"
            message = (
                f"Missing required parameter: '{param}'. Only an assistant's message with tool calls goes without."
            )
            raise ApiError(400, "missing_required_parameter", message, param=param)

    @property
    def text(self) -> str | None:
        """Parts are joined."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.refusal if self.content is None else self.content

    def for_template(self) -> dict[str, Any]:
        """As chat templates want it: `developer` is today's name of `system`, content is text, arguments objects."""
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": self.text}
        if self.name:
            message["name"] = self.name
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if self.reasoning_content:
            message["reasoning_content"] = self.reasoning_content
        return message


def _is_refusal(part: TextPart | RefusalPart) -> bool:
    return isinstance(part, RefusalPart)


def _unknown(path: str, field: str, rule: str) -> ApiError:
    return ApiError(400, "invalid_value", f"Invalid value for '{path}.{field}': {rule}", param=f"{path}.{field}")


def prepare_messages(document: dict[str, Any]) -> None:
    """Leave out what says nothing in the messages of a body. Raises ApiError for what is not served."""
    for index, message in objects_in(document.get("messages")):
        drop_unserved(message, UNSERVED_IN_MESSAGES, f"messages[{index}].")


class ChatCompletionRequest(GenerationRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`chat_template_kwargs`: see TEMPLATE_VARIABLES. `continue_final_message`: the answer goes on where the last
    message, which is the assistant's, ends."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=4096)]
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: LogprobCount | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: TemplateVariables | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    @classmethod
    def prepare(cls, document: dict[str, Any]) -> None:
        super().prepare(document)
        prepare_messages(document)

    def __post_init__(self) -> None:
        super().__post_init__()
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            message = "'max_tokens' and 'max_completion_tokens' differ; send only 'max_completion_tokens'."
            raise ApiError(400, "invalid_value", message, param="max_tokens")
        if self.top_logprobs and not self.logprobs:
            message = "'top_logprobs' is only allowed when 'logprobs' is true."
            raise ApiError(400, "invalid_value", message, param="top_logprobs")
        for index, message_sent in enumerate(self.messages):
            message_sent.check(f"messages[{index}]")
        if self.tools or self.tool_choice is not None:
            check_tools(self.tools or [], self.tool_choice)
        self._check_template_fields()

    def _check_template_fields(self) -> None:
        for name in self.chat_template_kwargs or ():
            if name not in TEMPLATE_VARIABLES:
                allowed = ", ".join(sorted(TEMPLATE_VARIABLES))
                message = f"Unknown chat template variable {ascii(name)[:60]}. Requests may set: {allowed}."
                raise ApiError(400, "invalid_value", message, param="chat_template_kwargs")
        if not self.continue_final_message:
            return
        if self.add_generation_prompt:
            message = "'continue_final_message' and 'add_generation_prompt' cannot both be true; send one of them."
            raise ApiError(400, "invalid_value", message, param="add_generation_prompt")
        final = self.messages[-1]
        if final.role != "assistant" or final.tool_calls or final.text is None:
            message = (
                "'continue_final_message' needs a last message of the assistant, with text and without tool calls."
            )
            raise ApiError(400, "invalid_value", message, param="continue_final_message")

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def scored_tokens(self) -> int | None:
        return self.top_logprobs or 0 if self.logprobs else None


# -- what is answered ----------------------------------------------------------------------------------------------


class AssistantMessage(msgspec.Struct, frozen=True):
    """`content` is null where there are calls or thoughts alone. `reasoning_content`: vLLM's field of the thoughts."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    tool_calls: list[ToolCall] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET


class ChatChoice(msgspec.Struct, frozen=True):
    message: AssistantMessage
    finish_reason: FinishReason
    index: int = 0
    logprobs: ChatLogprobs | None = None


class ChatDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True):
    delta: ChatDelta
    finish_reason: FinishReason | None = None
    index: int = 0
    logprobs: ChatLogprobs | None = None


class ChatCompletion(Heading, frozen=True, kw_only=True):
    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class ChatCompletionChunk(Heading, frozen=True, kw_only=True):
    """`usage`: left out unless the client asked for it; then null in all chunks but the last, whose choices are []."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET

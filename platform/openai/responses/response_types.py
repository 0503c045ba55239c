"""The `response` object of the Responses API and what else is answered, in OpenAI's fields and their order."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from loraplex.engine.messages import SamplingParams
from loraplex.platform.openai.generation_types import Heading, Usage
from loraplex.platform.openai.responses.item_types import Item, OutputItem
from loraplex.platform.openai.responses.request_types import (
    CreateResponse,
    ResponseTool,
    ResponseToolChoice,
    TextJsonSchema,
)
from loraplex.platform.openai.structured_output import JsonObjectFormat, TextFormat

ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]


class IncompleteDetails(Struct, frozen=True):
    reason: Literal["max_output_tokens"]


class ResponseError(Struct, frozen=True):
    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class InputTokensDetails(Struct, frozen=True):
    """`cache_write_tokens`: none are charged for being cached."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(Struct, frozen=True):
    reasoning_tokens: int


class ResponseUsage(Struct, frozen=True):
    """`reasoning_tokens`: of the output, those of its thoughts."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int

    @classmethod
    def of(cls, usage: Usage, reasoning_tokens: int) -> ResponseUsage:
        return cls(
            usage.prompt_tokens,
            InputTokensDetails(usage.prompt_tokens_details.cached_tokens),
            usage.completion_tokens,
            OutputTokensDetails(min(reasoning_tokens, usage.completion_tokens)),
            usage.total_tokens,
        )


class ReasoningEcho(Struct, frozen=True):
    effort: None = None
    summary: None = None


class TextEcho(Struct, frozen=True):
    format: TextFormat | JsonObjectFormat | TextJsonSchema
    verbosity: Literal["medium"] = "medium"


class ResponseObject(Struct, frozen=True, kw_only=True):
    """`model`: the resolved name. `temperature`, `top_p`: what it is sampled with. What was asked for is told again."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: ResponseStatus = "in_progress"
    background: Literal[False] = False
    completed_at: int | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    model: str
    output: list[OutputItem] = []
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: ReasoningEcho = ReasoningEcho()
    safety_identifier: str | None
    service_tier: Literal["default"] = "default"
    store: bool
    temperature: float
    text: TextEcho
    tool_choice: ResponseToolChoice
    tools: list[ResponseTool]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None
    metadata: dict[str, str]

    @classmethod
    def begun(
        cls, data: CreateResponse, heading: Heading, sampling: SamplingParams, *, is_stored: bool
    ) -> ResponseObject:
        """As it is before there is any output."""
        asked = data.text and data.text.format
        return cls(
            id=heading.id,
            created_at=heading.created,
            instructions=data.instructions,
            max_output_tokens=data.max_output_tokens,
            max_tool_calls=data.max_tool_calls,
            model=heading.model,
            parallel_tool_calls=data.parallel_tool_calls is not False,
            previous_response_id=data.previous_response_id,
            prompt_cache_key=data.prompt_cache_key,
            safety_identifier=data.safety_identifier,
            store=is_stored,
            temperature=sampling.temperature,
            text=TextEcho(asked or TextFormat()),
            tool_choice=data.tool_choice or "auto",
            tools=data.tools or [],
            top_logprobs=data.top_logprobs or 0,
            top_p=sampling.top_p,
            user=data.user,
            metadata=data.metadata or {},
        )


class ItemList(Struct, frozen=True, kw_only=True):
    """`has_more`: ask again with `after` = the last id."""

    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str
    last_id: str
    has_more: bool


class ResponseDeleted(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True

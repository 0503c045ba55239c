"""POST /v1/chat/completions: the shapes of chat. The way of the request is in `generation`."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody

from loraplex.adapters.profile import ServingProfile
from loraplex.engine.templates import Messages, TemplateError
from loraplex.engine.text import TextCodec
from loraplex.platform.errors import ApiError
from loraplex.platform.openai.answer import Answer
from loraplex.platform.openai.chat_plan import ChatPlan, plan_chat
from loraplex.platform.openai.chat_reading import ChatReading
from loraplex.platform.openai.chat_types import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatDelta,
)
from loraplex.platform.openai.generation import Frames, choose_model, heading, prepare, respond, stop_strings
from loraplex.platform.openai.generation_types import FinishReason, Heading
from loraplex.platform.openai.sse import TextFrame, frame
from loraplex.platform.prompts import chat_prompt
from loraplex.platform.services import Services
from loraplex.platform.tenants import Principal


@post(
    "/chat/completions",
    status_code=200,
    opt={"scope": "inference"},
    tags=["openai"],
    responses={200: ResponseSpec(ChatCompletion, description="The answer, or events", generate_examples=False)},
)
async def create_chat_completion(
    data: JSONBody[ChatCompletionRequest],
    request: Request[Any, Principal, Any],
    services: NamedDependency[Services],
) -> Response[Any]:
    """Answer a conversation, in one piece or, with `stream`, as server-sent events of `chat.completion.chunk`."""
    principal = request.auth
    model = await choose_model(services.catalog, principal, data)
    profile, text = await services.profile_cache.of(model.version), await services.codecs.of(model.version)
    ready = services.engine.ready
    plan = plan_chat(
        data,
        profile,
        text,
        tool_call_format=services.settings.tool_call_format,
        reasoning_format=services.settings.reasoning_format,
    )
    prompt = await _render(services, principal, profile, text, plan)
    asked = prepare(
        data,
        request_id=f"chatcmpl-{uuid.uuid4().hex}",
        prompt=prompt,
        prompt_field="messages",
        max_tokens=data.token_limit,
        default_max_tokens=profile.max_tokens,
        model=model,
        profile=profile,
        text=text,
        principal=principal,
        ready=ready,
    )
    if plan.grammar is not None:
        asked = msgspec.structs.replace(asked, grammar=plan.grammar)
    reader = plan.reader(text, prompt)
    shape = ChatShape(heading(asked, model, ready), data.include_usage, ChatReading(reader) if reader else None)
    stops = stop_strings(data, profile)
    answer = Answer(services, "chat", asked, stops, principal.tenant_id, text, plan.markers)
    return await respond(request.receive, answer, shape, stream=bool(data.stream), model=model)


async def _render(
    services: Services, principal: Principal, profile: ServingProfile, text: TextCodec, plan: ChatPlan
) -> list[int]:
    """By the version's template. One that refuses a system message of ours is told in the user's first."""

    async def rendered(messages: Messages) -> list[int]:
        template, owner = profile.chat_template, principal.tenant_id or ""
        return await chat_prompt(
            text, services.templates, messages, template=template, owner=owner, options=plan.options
        )

    try:
        try:
            return await rendered(plan.messages)
        except TemplateError as error:
            if plan.in_user is None or not error.refused:
                raise
            return await rendered(plan.in_user)
    except TemplateError as error:
        raise ApiError(400, "invalid_value", f"Invalid value for 'messages': {error}.", param="messages") from error


@dataclass(frozen=True, slots=True)
class ChatShape:
    """Answers as chat completions. `include_usage`: a stream tells its usage in a last chunk of its own.

    `reading` finds thoughts and tool calls in the text; None: it is all text.
    """

    heading: Heading
    include_usage: bool
    reading: ChatReading | None = None

    def whole(self, answer: Answer, text: str) -> ChatCompletion:
        assert answer.finish_reason is not None
        message = AssistantMessage(text) if self.reading is None else self.reading.message(text)
        choice = ChatChoice(message, self._finish_reason(answer.finish_reason))
        return ChatCompletion(**msgspec.structs.asdict(self.heading), choices=[choice], usage=answer.usage)

    def opening(self) -> list[ChatCompletionChunk]:
        return [self._chunk(ChatDelta(role="assistant", content=""))]

    def frames(self) -> Frames:
        if self.reading is None:
            return TextFrame(lambda text: self._chunk(ChatDelta(content=text)))
        return _DeltaFrames(self.reading, self._chunk)

    def closing(self, answer: Answer) -> list[ChatCompletionChunk]:
        assert answer.finish_reason is not None
        held = [] if self.reading is None else self.reading.finish()
        chunks = [*map(self._chunk, held), self._chunk(ChatDelta(), self._finish_reason(answer.finish_reason))]
        if not self.include_usage:
            return chunks
        return [*chunks, ChatCompletionChunk(**msgspec.structs.asdict(self.heading), choices=[], usage=answer.usage)]

    def _finish_reason(self, reason: FinishReason) -> FinishReason:
        return reason if self.reading is None else self.reading.finish_reason(reason)

    def _chunk(self, delta: ChatDelta, finish_reason: FinishReason | None = None) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            **msgspec.structs.asdict(self.heading),
            choices=[ChatChunkChoice(delta, finish_reason)],
            usage=None if self.include_usage else msgspec.UNSET,
        )


@dataclass(frozen=True, slots=True)
class _DeltaFrames:
    """Frames of what a reading finds in the text."""

    reading: ChatReading
    chunk_of: Callable[[ChatDelta], ChatCompletionChunk]

    def of(self, text: str) -> bytes:
        return b"".join(frame(self.chunk_of(delta)) for delta in self.reading.push(text))

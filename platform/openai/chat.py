"""POST /v1/chat/completions: the shapes of chat. The way of the request is in `generation`."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody

from loraplex.adapters.profile import ServingProfile
from loraplex.engine.messages import Grammar
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
from loraplex.platform.openai.choices import Choices, check_count, sequences_of
from loraplex.platform.openai.generation import choose_model, heading, prepare, reading, wording
from loraplex.platform.openai.generation_types import FinishReason, Heading, Usage
from loraplex.platform.openai.logprobs import ChatLogprobs, ScoredToken, Wording, chat_logprobs
from loraplex.platform.openai.response import Frames, respond
from loraplex.platform.openai.sse import TextFrame, frame
from loraplex.platform.openai.structured_output import checked, grammar_of
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
    check_count(1, data.choices, services.settings.max_choices, "n")
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
    prompt = await render_conversation(services, principal, profile, text, plan)
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
        grammar=await _grammar(services, principal, data, plan),
    )
    reader_of = partial(plan.reader, text, prompt)
    readings = [ChatReading(reader) for _ in range(data.choices) if (reader := reader_of()) is not None]
    shape = ChatShape(heading(asked, model, ready), data.include_usage, wording(data, text), data.choices, readings)
    read = reading(data, profile)
    choices = Choices(
        sequences_of([asked], data.choices),
        lambda sequence: Answer(services, "chat", sequence, read, principal.tenant_id, text, plan.markers),
        per_prompt=data.choices,
        kept=data.choices,
    )
    return await respond(request.receive, choices, shape, stream=bool(data.stream), model=model)


async def _grammar(
    services: Services, principal: Principal, data: ChatCompletionRequest, plan: ChatPlan
) -> Grammar | None:
    """That the answer has to follow: what the request asks for, or what makes its tool calls calls."""
    asked = await grammar_of(services.grammars, principal, data.response_format, data.structured_outputs)
    if plan.grammar is None:
        return asked
    if asked is not None:
        message = "The answer cannot both follow a grammar and be held to tool calls. Leave out 'tools' or the grammar."
        raise ApiError(400, "invalid_value", message, param="tools")
    return await checked(services.grammars, principal, "tools", plan.grammar)


async def render_conversation(
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

    `readings` find thoughts and tool calls in the text of each choice; none: it is all text.
    """

    heading: Heading
    include_usage: bool
    wording: Wording
    num_choices: int
    readings: Sequence[ChatReading] = ()

    def whole(self, choices: Sequence[tuple[Answer, str]], usage: Usage) -> ChatCompletion:
        return ChatCompletion(
            **msgspec.structs.asdict(self.heading),
            choices=[self._choice(index, *choice) for index, choice in enumerate(choices)],
            usage=usage,
            prompt_logprobs=self.wording.prompt(choices[0][0].prompt_scores),
        )

    def opening(self) -> list[ChatCompletionChunk]:
        return [self._chunk(index, ChatDelta(role="assistant", content="")) for index in range(self.num_choices)]

    def frames(self, index: int) -> Frames:
        if not self.readings:
            return TextFrame(lambda text: self._chunk(index, ChatDelta(content=text)))
        return _DeltaFrames(self.readings[index], partial(self._chunk, index))

    def scored(self, index: int, text: str, scores: Sequence[ScoredToken]) -> list[ChatCompletionChunk]:
        deltas = self.readings[index].push(text) if self.readings else [ChatDelta(content=text)]
        first, *others = deltas or [ChatDelta(content="")]
        told = chat_logprobs(scores, self.wording.text)
        return [self._chunk(index, first, logprobs=told), *(self._chunk(index, delta) for delta in others)]

    def finish(self, index: int, answer: Answer) -> list[ChatCompletionChunk]:
        assert answer.finish_reason is not None
        held = self.readings[index].finish() if self.readings else []
        end = self._chunk(index, ChatDelta(), self._finish_reason(index, answer.finish_reason))
        return [*(self._chunk(index, delta) for delta in held), end]

    def closing(self, usage: Usage) -> list[ChatCompletionChunk]:
        if not self.include_usage:
            return []
        return [ChatCompletionChunk(**msgspec.structs.asdict(self.heading), choices=[], usage=usage)]

    def _finish_reason(self, index: int, reason: FinishReason) -> FinishReason:
        return self.readings[index].finish_reason(reason) if self.readings else reason

    def _choice(self, index: int, answer: Answer, text: str) -> ChatChoice:
        assert answer.finish_reason is not None
        told = chat_logprobs(answer.take_scores(), self.wording.text) if self.wording.of_answer else None
        message = self.readings[index].message(text) if self.readings else AssistantMessage(text)
        return ChatChoice(message, self._finish_reason(index, answer.finish_reason), index, logprobs=told)

    def _chunk(
        self,
        index: int,
        delta: ChatDelta,
        finish_reason: FinishReason | None = None,
        logprobs: ChatLogprobs | None = None,
    ) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            **msgspec.structs.asdict(self.heading),
            choices=[ChatChunkChoice(delta, finish_reason, index, logprobs=logprobs)],
            usage=None if self.include_usage else msgspec.UNSET,
        )


@dataclass(frozen=True, slots=True)
class _DeltaFrames:
    """Frames of what a reading finds in the text."""

    reading: ChatReading
    chunk_of: Callable[[ChatDelta], ChatCompletionChunk]

    def of(self, text: str) -> bytes:
        return b"".join(frame(self.chunk_of(delta)) for delta in self.reading.push(text))

"""POST /v1/chat/completions: the shapes of chat. The way of the request is in `generation`."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody

from loraplex.adapters.profile import ServingProfile
from loraplex.engine.templates import TemplateError
from loraplex.engine.text import TextCodec
from loraplex.platform.errors import ApiError
from loraplex.platform.openai.answer import Answer
from loraplex.platform.openai.chat_types import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatDelta,
    ChatMessage,
)
from loraplex.platform.openai.choices import Choices, check_count, sequences_of
from loraplex.platform.openai.generation import choose_model, heading, prepare, reading, wording
from loraplex.platform.openai.generation_types import FinishReason, Heading, Usage
from loraplex.platform.openai.logprobs import ChatLogprobs, ScoredToken, Wording, chat_logprobs
from loraplex.platform.openai.response import respond
from loraplex.platform.openai.structured_output import grammar_of
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
    asked = prepare(
        data,
        request_id=f"chatcmpl-{uuid.uuid4().hex}",
        prompt=await render_conversation(services, principal, profile, text, data.messages),
        prompt_field="messages",
        max_tokens=data.token_limit,
        default_max_tokens=profile.max_tokens,
        model=model,
        profile=profile,
        text=text,
        principal=principal,
        ready=ready,
        grammar=await grammar_of(services.grammars, principal, data.response_format, data.structured_outputs),
    )
    shape = ChatShape(heading(asked, model, ready), data.include_usage, wording(data, text), data.choices)
    read = reading(data, profile)
    choices = Choices(
        sequences_of([asked], data.choices),
        lambda sequence: Answer(services, "chat", sequence, read, principal.tenant_id, text),
        per_prompt=data.choices,
        kept=data.choices,
    )
    return await respond(request.receive, choices, shape, stream=bool(data.stream), model=model)


async def render_conversation(
    services: Services, principal: Principal, profile: ServingProfile, text: TextCodec, messages: list[ChatMessage]
) -> list[int]:
    """By the version's template, begun with its system prompt where the conversation has no system message."""
    plain = [message.for_template() for message in messages]
    if profile.system_prompt is not None and all(message["role"] != "system" for message in plain):
        plain.insert(0, {"role": "system", "content": profile.system_prompt})
    template, owner = profile.chat_template, principal.tenant_id or ""
    try:
        return await chat_prompt(text, services.templates, plain, template=template, owner=owner)
    except TemplateError as error:
        raise ApiError(400, "invalid_value", f"Invalid value for 'messages': {error}.", param="messages") from error


@dataclass(frozen=True, slots=True)
class ChatShape:
    """Answers as chat completions. `include_usage`: a stream tells its usage in a last chunk of its own."""

    heading: Heading
    include_usage: bool
    wording: Wording
    num_choices: int

    def whole(self, choices: Sequence[tuple[Answer, str]], usage: Usage) -> ChatCompletion:
        return ChatCompletion(
            **msgspec.structs.asdict(self.heading),
            choices=[self._choice(index, *choice) for index, choice in enumerate(choices)],
            usage=usage,
            prompt_logprobs=self.wording.prompt(choices[0][0].prompt_scores),
        )

    def opening(self) -> list[ChatCompletionChunk]:
        return [self._chunk(index, ChatDelta(role="assistant", content="")) for index in range(self.num_choices)]

    def piece(self, index: int, text: str, scores: Sequence[ScoredToken] = ()) -> ChatCompletionChunk:
        told = chat_logprobs(scores, self.wording.text) if scores else None
        return self._chunk(index, ChatDelta(content=text), logprobs=told)

    def finish(self, index: int, answer: Answer) -> ChatCompletionChunk:
        return self._chunk(index, ChatDelta(), answer.finish_reason)

    def closing(self, usage: Usage) -> list[ChatCompletionChunk]:
        if not self.include_usage:
            return []
        return [ChatCompletionChunk(**msgspec.structs.asdict(self.heading), choices=[], usage=usage)]

    def _choice(self, index: int, answer: Answer, text: str) -> ChatChoice:
        assert answer.finish_reason is not None
        told = chat_logprobs(answer.take_scores(), self.wording.text) if self.wording.of_answer else None
        return ChatChoice(AssistantMessage(text), answer.finish_reason, index, logprobs=told)

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

"""POST /v1/completions: the shapes of plain completions. The way of the request is in `generation`."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import msgspec
from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody

from loraplex.engine.text import TextCodec
from loraplex.platform.openai.answer import Answer
from loraplex.platform.openai.completion_types import Completion, CompletionRequest, TextChoice
from loraplex.platform.openai.generation import choose_model, heading, prepare, respond, stop_strings
from loraplex.platform.openai.generation_types import FinishReason, Heading
from loraplex.platform.openai.sse import TextFrame
from loraplex.platform.prompts import tokenise
from loraplex.platform.services import Services
from loraplex.platform.tenants import Principal

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for this endpoint."""


@post(
    "/completions",
    status_code=200,
    opt={"scope": "inference"},
    tags=["openai"],
    responses={200: ResponseSpec(Completion, description="The completion, or events", generate_examples=False)},
)
async def create_completion(
    data: JSONBody[CompletionRequest],
    request: Request[Any, Principal, Any],
    services: NamedDependency[Services],
) -> Response[Any]:
    """Continue one prompt, given as text or as token ids, in one piece or as server-sent events."""
    prompt = data.single_prompt()
    principal = request.auth
    model = await choose_model(services.catalog, principal, data)
    profile, text = await services.profile_cache.of(model.version), await services.codecs.of(model.version)
    ready = services.engine.ready
    asked = prepare(
        data,
        request_id=f"cmpl-{uuid.uuid4().hex}",
        prompt=await _encode(text, prompt),
        prompt_field="prompt",
        max_tokens=data.max_tokens,
        default_max_tokens=profile.max_tokens or DEFAULT_MAX_TOKENS,
        model=model,
        profile=profile,
        text=text,
        principal=principal,
        ready=ready,
    )
    shape = CompletionShape(heading(asked, model, ready), data.include_usage)
    answer = Answer(services, "completions", asked, stop_strings(data, profile), principal.tenant_id, text)
    return await respond(request.receive, answer, shape, stream=bool(data.stream), model=model)


async def _encode(text: TextCodec, prompt: str | list[int]) -> list[int]:
    return prompt if isinstance(prompt, list) else await tokenise(lambda: text.encode(prompt), len(prompt))


@dataclass(frozen=True, slots=True)
class CompletionShape:
    """Answers as text completions. `include_usage`: a stream tells its usage in a last chunk of its own."""

    heading: Heading
    include_usage: bool

    def whole(self, answer: Answer, text: str) -> Completion:
        choices = [TextChoice(text, answer.finish_reason)]
        return Completion(**msgspec.structs.asdict(self.heading), choices=choices, usage=answer.usage)

    def opening(self) -> list[Completion]:
        return []

    def frames(self) -> TextFrame:
        return TextFrame(self._chunk)

    def closing(self, answer: Answer) -> list[Completion]:
        finish = self._chunk("", answer.finish_reason)
        if not self.include_usage:
            return [finish]
        return [finish, Completion(**msgspec.structs.asdict(self.heading), choices=[], usage=answer.usage)]

    def _chunk(self, text: str, finish_reason: FinishReason | None = None) -> Completion:
        return Completion(
            **msgspec.structs.asdict(self.heading),
            choices=[TextChoice(text, finish_reason)],
            usage=None if self.include_usage else msgspec.UNSET,
        )

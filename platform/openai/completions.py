"""POST /v1/completions: the shapes of plain completions. The way of the request is in `generation`."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import msgspec
from anyio import to_thread
from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody

from loraplex.engine.messages import Generate
from loraplex.engine.text import TextCodec
from loraplex.platform.errors import ApiError
from loraplex.platform.openai.answer import Answer
from loraplex.platform.openai.choices import Choices, check_count, sequences_of
from loraplex.platform.openai.completion_types import Completion, CompletionRequest, TextChoice
from loraplex.platform.openai.generation import choose_model, heading, prepare, stop_strings
from loraplex.platform.openai.generation_types import FinishReason, Heading, Usage
from loraplex.platform.openai.response import respond
from loraplex.platform.openai.structured_output import grammar_of
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
    """Continue prompts, given as text or as token ids, in one piece or as server-sent events."""
    prompts, per_prompt = data.prompts, data.best_of or data.choices
    check_count(len(prompts), per_prompt, services.settings.max_choices, "n" if data.best_of is None else "best_of")
    principal, ready = request.auth, services.engine.ready
    model = await choose_model(services.catalog, principal, data)
    profile, text = await services.profile_cache.of(model.version), await services.codecs.of(model.version)
    grammar = await grammar_of(services.grammars, principal, data.response_format, data.structured_outputs)
    request_id = f"cmpl-{uuid.uuid4().hex}"
    asked = [
        prepare(
            data,
            request_id=request_id,
            prompt=token_ids,
            prompt_field=field,
            max_tokens=data.max_tokens,
            default_max_tokens=profile.max_tokens or DEFAULT_MAX_TOKENS,
            model=model,
            profile=profile,
            text=text,
            principal=principal,
            ready=ready,
            grammar=grammar,
        )
        for field, token_ids in await _encoded(text, prompts)
    ]
    if per_prompt > data.choices:
        asked = _ranked(asked)
    echoes = [await _echo(text, prompt) if data.echo else "" for prompt in prompts]
    stops = stop_strings(data, profile)
    choices = Choices(
        sequences_of(asked, per_prompt),
        lambda sequence: Answer(services, "completions", sequence, stops, principal.tenant_id, text),
        per_prompt=per_prompt,
        kept=data.choices,
    )
    shape = CompletionShape(heading(asked[0], model, ready), data.include_usage, echoes, data.choices)
    return await respond(request.receive, choices, shape, stream=bool(data.stream), model=model)


def _ranked(asked: list[Generate]) -> list[Generate]:
    """With the log-probabilities by which the best are chosen. Raises ApiError where all would be the same."""
    if asked[0].sampling.temperature == 0:
        message = "At temperature 0 all candidates are the same, so none is the best. Leave out 'best_of', or raise it."
        raise ApiError(400, "invalid_value", message, param="best_of")
    return [msgspec.structs.replace(sequence, sampling=replace(sequence.sampling, logprobs=True)) for sequence in asked]


async def _encoded(text: TextCodec, prompts: Sequence[str | list[int]]) -> list[tuple[str, list[int]]]:
    """(field, token ids) of each prompt."""
    chars = sum(map(len, prompts))  # together they hold up the event loop
    encoded = []
    for index, prompt in enumerate(prompts):
        field = "prompt" if len(prompts) == 1 else f"prompt[{index}]"
        token_ids = await tokenise(partial(text.encode, prompt), chars) if isinstance(prompt, str) else prompt
        encoded.append((field, token_ids))
    return encoded


async def _echo(text: TextCodec, prompt: str | list[int]) -> str:
    """The prompt as it is given back: text as it came."""
    return prompt if isinstance(prompt, str) else await to_thread.run_sync(text.decode, prompt)


@dataclass(frozen=True, slots=True)
class CompletionShape:
    """Answers as text completions. `include_usage`: a stream tells its usage in a last chunk of its own.

    echoes: of each prompt, what its choices begin with.
    """

    heading: Heading
    include_usage: bool
    echoes: Sequence[str]
    per_prompt: int

    def whole(self, choices: Sequence[tuple[Answer, str]], usage: Usage) -> Completion:
        worded = [
            TextChoice(self._echo(index) + text, answer.finish_reason, index)
            for index, (answer, text) in enumerate(choices)
        ]
        return Completion(**msgspec.structs.asdict(self.heading), choices=worded, usage=usage)

    def opening(self) -> list[Completion]:
        indices = range(len(self.echoes) * self.per_prompt)
        return [self.piece(index, self._echo(index)) for index in indices if self._echo(index)]

    def piece(self, index: int, text: str) -> Completion:
        return self._chunk(index, text)

    def finish(self, index: int, answer: Answer) -> Completion:
        return self._chunk(index, "", answer.finish_reason)

    def closing(self, usage: Usage) -> list[Completion]:
        if not self.include_usage:
            return []
        return [Completion(**msgspec.structs.asdict(self.heading), choices=[], usage=usage)]

    def _echo(self, index: int) -> str:
        return self.echoes[index // self.per_prompt]

    def _chunk(self, index: int, text: str, finish_reason: FinishReason | None = None) -> Completion:
        return Completion(
            **msgspec.structs.asdict(self.heading),
            choices=[TextChoice(text, finish_reason, index)],
            usage=None if self.include_usage else msgspec.UNSET,
        )

"""POST /v1/completions: the shapes of plain completions. The way of the request is in `generation`."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
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
from loraplex.platform.audit_rules import INFERENCE
from loraplex.platform.errors import ApiError
from loraplex.platform.ledger.meter import METERED, meter_of
from loraplex.platform.openai.answer import Answer
from loraplex.platform.openai.choices import Choices, check_count, sequences_of
from loraplex.platform.openai.completion_types import Completion, CompletionRequest, TextChoice
from loraplex.platform.openai.generation import choose_model, demand_of, heading, prepare, reading, wording
from loraplex.platform.openai.generation_types import FinishReason, Heading, Reading, Usage
from loraplex.platform.openai.logprobs import ScoredToken, TextLogprobs, Wording, text_logprobs
from loraplex.platform.openai.response import Frames, respond
from loraplex.platform.openai.sse import DONE, ChangingFrame, TextFrame, error_body, frame, framed
from loraplex.platform.openai.structured_output import grammar_of
from loraplex.platform.prompts import tokenise
from loraplex.platform.services import Services
from loraplex.platform.tenants import Principal

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for this endpoint."""


@post(
    "/completions",
    status_code=200,
    opt=INFERENCE | {METERED: "completions"},
    tags=["openai"],
    responses={200: ResponseSpec(Completion, description="The completion, or events", generate_examples=False)},
)
async def create_completion(
    data: JSONBody[CompletionRequest],
    request: Request[Any, Principal, Any],
    services: NamedDependency[Services],
) -> Response[Any]:
    """Continue prompts, given as text or as token ids, in one piece or as server-sent events."""
    meter = meter_of(request.scope)
    meter.asked = data.model
    prompts, per_prompt = data.prompts, data.best_of or data.choices
    check_count(len(prompts), per_prompt, services.settings.max_choices, "n" if data.best_of is None else "best_of")
    principal, ready = request.auth, services.engine.ready
    model = await choose_model(services.catalog, principal, data)
    profile, text = await services.profile_cache.of(model.version), await services.codecs.of(model.version)
    grammar = await grammar_of(services.grammars, principal, data.response_format, data.structured_outputs)
    request_id = f"cmpl-{uuid.uuid4().hex}"
    with services.tracing.span("tokenise"):
        encoded = await _encoded(text, prompts)
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
        for field, token_ids in encoded
    ]
    if per_prompt > data.choices:
        asked = _ranked(asked)
    reads = [reading(data, profile)] * len(prompts)
    if data.echo:
        came = prompts if data.truncate_prompt_tokens is None else [sequence.prompt for sequence in asked]
        reads = [await _echoing(read, text, prompt) for read, prompt in zip(reads, came, strict=True)]
    echoes = [read.echo or "" for read in reads]
    sequences = sequences_of(asked, per_prompt)
    read_by_id = {sequence.request_id: reads[index // per_prompt] for index, sequence in enumerate(sequences)}
    demand = demand_of(asked, per_prompt, is_open=False)
    await meter.open(principal, model, len(sequences), demand)
    meter.keep_request(lambda: prompts)
    with services.tracing.span("admission"):
        admission = await services.limiter.admit(principal, model, demand)
    choices = Choices(
        sequences,
        lambda sequence: Answer(
            services, "completions", sequence, read_by_id[sequence.request_id], principal, model, text
        ),
        per_prompt=per_prompt,
        kept=data.choices,
        admission=admission,
        meter=meter,
    )
    shape = CompletionShape(
        heading(asked[0], model, ready),
        data.include_usage,
        wording(data, text),
        echoes,
        data.choices,
        choices.usage_of if data.tells_usage_so_far else None,
    )
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


async def _echoing(read: Reading, text: TextCodec, prompt: str | list[int]) -> Reading:
    """That gives the prompt back: text as it came."""
    if isinstance(prompt, str):
        return replace(read, echo=prompt)
    return replace(read, echo=await to_thread.run_sync(text.decode, prompt), echoes_special_tokens=True)


@dataclass(frozen=True, slots=True)
class CompletionShape:
    """Answers as text completions. `include_usage`: a stream tells its usage in a last chunk of its own.

    echoes: of each prompt, what its choices begin with. usage_of: what a choice has used so far, where every chunk
    tells it.
    """

    heading: Heading
    include_usage: bool
    wording: Wording
    echoes: Sequence[str]
    per_prompt: int
    usage_of: Callable[[int], Usage] | None = None

    def whole(self, choices: Sequence[tuple[Answer, str]], usage: Usage) -> Completion:
        worded = [self._choice(index, *choice) for index, choice in enumerate(choices)]
        return Completion(**msgspec.structs.asdict(self.heading), choices=worded, usage=usage)

    def opening(self) -> bytes:
        indices = range(len(self.echoes) * self.per_prompt)
        return framed(self._chunk(index, self._echo(index)) for index in indices if self._echo(index))

    def frames(self, index: int) -> Frames:
        of_text = TextFrame if self.usage_of is None else ChangingFrame
        return of_text(partial(self._chunk, index))

    def scored(self, index: int, text: str, scores: Sequence[ScoredToken]) -> bytes:
        return frame(self._chunk(index, text, logprobs=text_logprobs(scores, self.wording.text)))

    def finish(self, index: int, answer: Answer) -> bytes:
        return frame(self._chunk(index, "", answer.finish_reason))

    def closing(self, usage: Usage) -> bytes:
        last = Completion(**msgspec.structs.asdict(self.heading), choices=[], usage=usage)
        return (frame(last) if self.include_usage else b"") + DONE

    def failure(self, error: Exception) -> bytes:
        return frame(error_body(error)) + DONE

    def _echo(self, index: int) -> str:
        return self.echoes[index // self.per_prompt]

    def _choice(self, index: int, answer: Answer, text: str) -> TextChoice:
        return TextChoice(
            self._echo(index) + text,
            answer.finish_reason,
            index,
            logprobs=text_logprobs(answer.take_scores(), self.wording.text) if self.wording.of_answer else None,
            prompt_logprobs=self.wording.prompt(answer.prompt_scores),
        )

    def _chunk(
        self, index: int, text: str, finish_reason: FinishReason | None = None, logprobs: TextLogprobs | None = None
    ) -> Completion:
        return Completion(
            **msgspec.structs.asdict(self.heading),
            choices=[TextChoice(text, finish_reason, index, logprobs=logprobs)],
            usage=self.usage_of(index) if self.usage_of else None if self.include_usage else msgspec.UNSET,
        )

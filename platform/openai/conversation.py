"""The way of a conversation from a request to running sequences, whichever endpoint's shapes it came in.

Knows requests as chat completions have them, to which other endpoints translate theirs. Knows no shape of an answer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from loraplex.adapters.profile import ServingProfile
from loraplex.engine.messages import Grammar, SamplingParams
from loraplex.engine.templates import Messages, TemplateError
from loraplex.engine.text import TextCodec
from loraplex.platform.catalog import ResolvedModel
from loraplex.platform.errors import ApiError
from loraplex.platform.ledger.meter import Meter
from loraplex.platform.openai.answer import Answer, Endpoint
from loraplex.platform.openai.answer_parts import PartReader
from loraplex.platform.openai.chat_plan import ChatPlan, plan_chat
from loraplex.platform.openai.chat_types import ChatCompletionRequest
from loraplex.platform.openai.choices import Choices, check_count, sequences_of
from loraplex.platform.openai.generation import choose_model, demand_of, heading, prepare, reading, wording
from loraplex.platform.openai.generation_types import Heading
from loraplex.platform.openai.logprobs import Wording
from loraplex.platform.openai.structured_output import checked, grammar_of
from loraplex.platform.prompts import chat_prompt
from loraplex.platform.services import Services
from loraplex.platform.tenants import Principal


@dataclass(frozen=True, slots=True)
class Conversation:
    """One that is being answered. Whoever opened it closes its `choices`, whatever happens.

    sampling: what it is sampled by. readers: for each choice, what finds thoughts and tool calls in its text; none: it
    is all text.
    """

    model: ResolvedModel
    heading: Heading
    wording: Wording
    sampling: SamplingParams
    choices: Choices
    readers: list[PartReader]


@dataclass(frozen=True, slots=True)
class RenderedRequest:
    """The prompt that a request makes, and by what."""

    model: ResolvedModel
    profile: ServingProfile
    text: TextCodec
    plan: ChatPlan
    prompt: list[int]


async def render_request(services: Services, principal: Principal, data: ChatCompletionRequest) -> RenderedRequest:
    """Raises what its model or its conversation is refused with."""
    model = await choose_model(services.catalog, principal, data)
    profile, text = await services.profile_cache.of(model.version), await services.codecs.of(model.version)
    plan = plan_of(services, data, profile, text)
    with services.tracing.span("tokenise"):
        prompt = await render_conversation(services, principal, profile, text, plan)
    return RenderedRequest(model, profile, text, plan, prompt)


async def open_conversation(
    services: Services,
    principal: Principal,
    data: ChatCompletionRequest,
    *,
    endpoint: Endpoint,
    request_id: str,
    meter: Meter,
    most_tokens: int | None = None,
) -> Conversation:
    """Have it answered. Raises what any part of the request is refused with; then nothing runs.

    most_tokens: of the answer, where the request sets no limit: less if the context has no room for so many.
    """
    meter.asked = data.model
    check_count(1, data.choices, services.settings.max_choices, "n")
    rendered = await render_request(services, principal, data)
    model, profile, text, plan = rendered.model, rendered.profile, rendered.text, rendered.plan
    prompt, ready = rendered.prompt, services.engine.ready
    asked = prepare(
        data,
        request_id=request_id,
        prompt=prompt,
        prompt_field="messages",
        max_tokens=data.token_limit,
        default_max_tokens=most_tokens or profile.max_tokens,
        model=model,
        profile=profile,
        text=text,
        principal=principal,
        ready=ready,
        grammar=await _grammar(services, principal, data, plan),
    )
    readers = [reader for _ in range(data.choices) if (reader := plan.reader(text, prompt)) is not None]
    read = reading(data, profile)
    is_open = data.token_limit is None and most_tokens is None and profile.max_tokens is None
    demand = demand_of([asked], data.choices, is_open=is_open)
    await meter.open(principal, model, data.choices, demand)
    meter.keep_request(lambda: data.messages)
    with services.tracing.span("admission"):
        admission = await services.limiter.admit(principal, model, demand)
    choices = Choices(
        sequences_of([asked], data.choices),
        lambda sequence: Answer(services, endpoint, sequence, read, principal, model, text, plan.markers),
        per_prompt=data.choices,
        kept=data.choices,
        admission=admission,
        meter=meter,
    )
    return Conversation(model, heading(asked, model, ready), wording(data, text), asked.sampling, choices, readers)


def plan_of(services: Services, data: ChatCompletionRequest, profile: ServingProfile, text: TextCodec) -> ChatPlan:
    """profile, text: of the version that is asked."""
    return plan_chat(
        data,
        profile,
        text,
        base=services.text,
        tool_call_format=services.settings.tool_call_format,
        reasoning_format=services.settings.reasoning_format,
    )


async def _grammar(
    services: Services, principal: Principal, data: ChatCompletionRequest, plan: ChatPlan
) -> Grammar | None:
    """That the answer has to follow: what the request asks for, what makes its tool calls calls, or either of both."""
    asked = await grammar_of(services.grammars, principal, data.response_format, data.structured_outputs)
    if plan.grammar is None:
        return asked
    otherwise = None if plan.must_call else asked
    return await checked(services.grammars, principal, "tools", replace(plan.grammar, otherwise=otherwise))


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

"""The way of a request that text endpoints share until the engine has it: everything is refused before it runs.

Knows the bounds that depend on the model. `response` is the rest of the way.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Sequence

from loraplex.adapters.names import WeightedName
from loraplex.adapters.profile import ServingProfile
from loraplex.engine.messages import Generate, Grammar, Ready
from loraplex.engine.text import TextCodec
from loraplex.platform.catalog import Catalog, ResolvedModel
from loraplex.platform.errors import ApiError
from loraplex.platform.limits.account import Demand
from loraplex.platform.openai.generation_types import GenerationRequest, Heading, Reading
from loraplex.platform.openai.invocation import uses_of
from loraplex.platform.openai.logprobs import Wording
from loraplex.platform.openai.model_bounds import ModelBounds
from loraplex.platform.openai.sampling import sampling_params
from loraplex.platform.tenants import Principal

OPEN_TOKENS = 256
"""What is taken from limits beforehand for an answer that may be as long as fits; what it uses beyond them is charged
when it ends."""

ADAPTER_FIELDS = ("adapters", "adapter_id", "lora_path")
"""Fields beside `model` that name adapters."""


async def choose_model(catalog: Catalog, principal: Principal, request: GenerationRequest) -> ResolvedModel:
    """What `model` names or, where that is the base, what `adapters`, LoRAX's `adapter_id` or SGLang's `lora_path` do.

    Raises ApiError: 404 for a name that means nothing to the caller, 400 where two of them name different versions;
    InvalidName.
    """
    chosen = await catalog.resolve(principal, request.model, request.user)
    for field in ADAPTER_FIELDS:
        names = getattr(request, field)
        if names is None:
            continue
        if isinstance(names, str):
            named = await catalog.resolve(principal, names, request.user, field)
        else:
            terms = [WeightedName(adapter.model, adapter.weight) for adapter in names]
            named = await catalog.resolve_sum(principal, terms, request.user, field)
        if chosen.adapters and chosen.name != named.name:
            message = (
                f"The request names two models: `{chosen.name}`, and `{named.name}` in '{field}'. Send one of them."
            )
            raise ApiError(400, "invalid_value", message, param=field)
        chosen = named
    return chosen


def prepare(
    request: GenerationRequest,
    *,
    request_id: str,
    prompt: list[int],
    prompt_field: str,
    max_tokens: int | None,
    default_max_tokens: int | None,
    model: ResolvedModel,
    profile: ServingProfile,
    text: TextCodec,
    principal: Principal,
    ready: Ready,
    grammar: Grammar | None = None,
) -> Generate:
    """What the engine is asked. Without `max_tokens`, the default or as many as fit; a default is cut to what fits.

    profile, text: of the model. grammar: one that was checked. Raises ApiError for a prompt that cannot run.
    """
    bounds = ModelBounds.of(ready, model.version, profile)
    bounds.check_prompt(prompt, prompt_field)
    limit = bounds.max_tokens
    prompt = truncated(prompt, request.truncate_prompt_tokens, limit - (max_tokens or 1))
    room = limit - len(prompt)
    if room < 1 or (max_tokens is not None and max_tokens > room):
        asked = "" if max_tokens is None else f" and {max_tokens} in the completion"
        message = (
            f"This model's maximum context length is {limit} tokens. However, you asked for "
            f"{len(prompt)} tokens in the {prompt_field}{asked}. Send less, or ask for less."
        )
        raise ApiError(400, "context_length_exceeded", message, param=prompt_field)
    most = min(default_max_tokens or room, room) if max_tokens is None else max_tokens
    return Generate(
        request_id=request_id,
        prompt=prompt,
        sampling=sampling_params(request, profile, text, most, bounds, ready),
        adapters=uses_of(model.adapters, prompt),
        salt=_salt(principal, request.cache_salt),
        grammar=grammar,
        priority=max(request.priority or 0, principal.priority),
        timeout_seconds=request.timeout,
        owner=principal.tenant_id or "",
    )


def demand_of(prompts: Sequence[Generate], per_prompt: int, *, is_open: bool) -> Demand:
    """What a request takes from limits until it ends: its prompts once, and for each choice as many tokens as it may
    have. is_open: nobody has said how many that are, so it is what fits."""
    prompt_tokens = sum(len(asked.prompt) for asked in prompts)
    most = [min(asked.sampling.max_tokens, OPEN_TOKENS) if is_open else asked.sampling.max_tokens for asked in prompts]
    return Demand(prompt_tokens + per_prompt * sum(most), prompt_tokens)


def truncated(prompt: list[int], most: int | None, room: int) -> list[int]:
    """The last `most` tokens, with -1 as many as there is room for."""
    if most is None:
        return prompt
    return prompt[-(most if most > 0 else max(room, 1)) :]


def heading(asked: Generate, model: ResolvedModel, ready: Ready) -> Heading:
    """What all parts of an answer begin with. `system_fingerprint` tells the weights, of base and adapters."""
    return Heading(
        id=asked.request_id,
        created=int(time.time()),
        model=model.name,
        system_fingerprint=f"fp_{ready.model_digest[:8]}{_fingerprint(model)}",
    )


def _fingerprint(model: ResolvedModel) -> str:
    """The beginning of the adapter's digest; of adapters that are weighted or added up, of a hash over all of it."""
    if not model.adapters:
        return ""
    if len(model.adapters) == 1 and model.adapters[0].weight == 1:
        return f"_{model.adapters[0].version.digest[:8]}"
    terms = [f"{adapter.version.digest}*{adapter.weight!r}" for adapter in model.adapters]
    return f"_{hashlib.sha256('+'.join(terms).encode()).hexdigest()[:8]}"


def reading(request: GenerationRequest, profile: ServingProfile) -> Reading:
    """Stop strings are the request's and the profile's."""
    return Reading(
        stops=tuple(dict.fromkeys((*request.stop_strings, *profile.stop))),
        includes_stop=bool(request.include_stop_str_in_output),
        special_tokens=request.skip_special_tokens is False,
    )


def wording(request: GenerationRequest, text: TextCodec) -> Wording:
    """What the answer is to tell of log-probabilities. text: of the model that is asked."""
    return Wording(text, request.scored_tokens is not None, request.prompt_logprobs is not None)


def _salt(principal: Principal, cache_salt: str | None) -> bytes:
    """`cache_salt` narrows who shares cached prefixes, inside the tenant and never beyond it."""
    return principal.salt if cache_salt is None else hmac.digest(principal.salt, cache_salt.encode(), "sha256")

"""From a request's and a profile's fields to what the engine samples by, all checked against the model's vocabulary.

Knows fields, a codec and the vocabulary. Knows no engine.
"""

from __future__ import annotations

from typing import TypeVar

from loraplex.adapters.profile import ServingProfile
from loraplex.engine.messages import LogitRules, Ready, SamplingParams
from loraplex.engine.text import TextCodec
from loraplex.platform.errors import ApiError
from loraplex.platform.openai.generation_types import GenerationRequest
from loraplex.platform.openai.model_bounds import ModelBounds

MAX_BIAS = 100.0

T = TypeVar("T")


def sampling_params(
    request: GenerationRequest,
    profile: ServingProfile,
    text: TextCodec,
    max_tokens: int,
    bounds: ModelBounds,
    ready: Ready,
) -> SamplingParams:
    """profile, text, bounds: of the model that is asked. Raises ApiError for what cannot be done with it."""
    ends = () if request.ignore_eos or text.end is None else (text.end,)
    stops = tuple(dict.fromkeys((*(request.stop_token_ids or ()), *profile.stop_token_ids, *ends)))
    rules = _rules(request, text, max_tokens, bounds)
    if rules is not None:
        _check_choice(rules, {*stops, *(() if request.ignore_eos else ready.eos_token_ids)})
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=_first_given(request.temperature, profile.temperature, 1.0),
        top_p=_first_given(request.top_p, profile.top_p, 1.0),
        top_k=max(_first_given(request.top_k, profile.top_k, 0), 0),
        min_p=_first_given(request.min_p, profile.min_p, 0.0),
        seed=None if request.seed is None else request.seed % (1 << 63),
        stop_token_ids=stops,
        ignore_eos=bool(request.ignore_eos),
        logprobs=request.scored_tokens is not None,
        top_logprobs=request.scored_tokens or 0,
        prompt_logprobs=request.scored_prompt_tokens,
        rules=rules,
    )


def _rules(request: GenerationRequest, text: TextCodec, max_tokens: int, bounds: ModelBounds) -> LogitRules | None:
    """None where nothing is asked for."""
    bias, allowed = request.logit_bias or {}, request.allowed_token_ids
    bounds.check_ids(bias, "logit_bias")
    bounds.check_ids(allowed or (), "allowed_token_ids")
    if (request.min_tokens or 0) > max_tokens:
        message = f"'min_tokens' is {request.min_tokens}, more than the {max_tokens} tokens that are generated at most."
        raise ApiError(400, "invalid_value", message, param="min_tokens")
    rules = LogitRules(
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=_first_given(request.repetition_penalty, None, 1.0),
        logit_bias={token: min(max(value, -MAX_BIAS), MAX_BIAS) for token, value in bias.items()},
        allowed_token_ids=None if allowed is None else tuple(allowed),
        bad_words=tuple(
            tokens
            for index, word in enumerate(request.bad_words or ())
            for tokens in _spellings(word, text, f"bad_words[{index}]")
        ),
        min_tokens=request.min_tokens or 0,
    )
    return None if rules == LogitRules() else rules


def _check_choice(rules: LogitRules, ends: set[int]) -> None:
    """Something must be left to choose from."""
    if rules.allowed_token_ids is None:
        return
    excluded = {word[0] for word in rules.bad_words if len(word) == 1} | (ends if rules.min_tokens else set())
    if excluded.issuperset(rules.allowed_token_ids):
        message = "'bad_words' or 'min_tokens' exclude all of 'allowed_token_ids'. Allow another token."
        raise ApiError(400, "invalid_value", message, param="allowed_token_ids")


def _spellings(word: str, text: TextCodec, field: str) -> list[tuple[int, ...]]:
    """A bad word as tokens, at the beginning of a text and after a space; the latter, as in vLLM, only where it begins
    with another token and is as long: else it holds the former, or begins with a token that is a space alone."""
    plain = tuple(text.encode_rendered(word.lstrip()))
    if not plain:
        raise ApiError(400, "invalid_value", f"Invalid value for '{field}': there is no word in it.", param=field)
    spaced = tuple(text.encode_rendered(" " + word.lstrip()))
    return [plain, spaced] if len(spaced) == len(plain) and spaced[0] != plain[0] else [plain]


def _first_given(asked: T | None, profiled: T | None, default: T) -> T:
    return asked if asked is not None else profiled if profiled is not None else default

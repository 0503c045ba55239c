"""The way of a request that chat and completions share: everything is refused before it runs, then it is answered.

Knows the bounds that depend on the model, and when text is written. The endpoint words the answer.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections.abc import Iterable
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec
from litestar import Response
from litestar.types import Receive

from loraplex.adapters.names import WeightedName
from loraplex.adapters.profile import ServingProfile
from loraplex.engine.messages import Generate, Ready, SamplingParams
from loraplex.engine.text import TextCodec
from loraplex.platform.catalog import Catalog, ResolvedModel
from loraplex.platform.errors import ApiError
from loraplex.platform.openai.answer import Answer
from loraplex.platform.openai.connection import while_connected
from loraplex.platform.openai.generation_types import GenerationRequest, Heading
from loraplex.platform.openai.invocation import uses_of
from loraplex.platform.openai.sse import DONE, EventStream, Write, error_frame, frame
from loraplex.platform.tenants import Principal

T = TypeVar("T")

ADAPTER_FIELDS = ("adapters", "adapter_id", "lora_path")
"""Fields beside `model` that name adapters."""


class Frames(Protocol):
    """Words text as frames, of which there may be none."""

    def of(self, text: str) -> bytes: ...


class Shape(Protocol):
    """How an endpoint words an answer."""

    def whole(self, answer: Answer, text: str) -> msgspec.Struct:
        """The body of an answer in one piece."""

    def opening(self) -> Iterable[msgspec.Struct]:
        """The chunks of a stream before any text."""

    def frames(self) -> Frames:
        """What chunks that add text are written with."""

    def closing(self, answer: Answer) -> Iterable[msgspec.Struct]:
        """The chunks after all text."""


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
) -> Generate:
    """What the engine is asked. Without `max_tokens`, the default or as many as fit; a default is cut to what fits.

    profile, text: of the model. Raises ApiError for a prompt that cannot run.
    """
    if not prompt:
        raise ApiError(400, "invalid_value", f"'{prompt_field}' has no tokens; send some text.", param=prompt_field)
    vocab_size = ready.vocab_size if model.version is None else model.version.vocab_size or ready.vocab_size
    if max(prompt) >= vocab_size:
        message = f"'{prompt_field}' has a token id outside of the vocabulary of {vocab_size}."
        raise ApiError(400, "invalid_value", message, param=prompt_field)
    limit = min(ready.max_model_len, profile.context_limit or ready.max_model_len)
    room = limit - len(prompt)
    if room < 1 or (max_tokens is not None and max_tokens > room):
        asked = "" if max_tokens is None else f" and {max_tokens} in the completion"
        message = (
            f"This model's maximum context length is {limit} tokens. However, you asked for "
            f"{len(prompt)} tokens in the {prompt_field}{asked}. Send less, or ask for less."
        )
        raise ApiError(400, "context_length_exceeded", message, param=prompt_field)
    return Generate(
        request_id=request_id,
        prompt=prompt,
        sampling=_sampling(request, profile, text, max_tokens or min(default_max_tokens or room, room)),
        adapters=uses_of(model.adapters, prompt),
        salt=_salt(principal, request.cache_salt),
    )


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


async def respond(
    receive: Receive, answer: Answer, shape: Shape, *, stream: bool, model: ResolvedModel
) -> Response[Any]:
    """Wait for the whole answer or, of a stream, for the first token: what fails until then has its own HTTP status."""
    try:
        if stream:
            await while_connected(receive, answer.begin())
            produce = partial(_stream, answer, shape)
            return EventStream(produce, on_close=answer.close, headers=_headers(answer, model))
        text = await while_connected(receive, answer.text())
    except BaseException:
        answer.close()
        raise
    answer.close()
    return Response(shape.whole(answer, text), headers=_headers(answer, model))


def _headers(answer: Answer, model: ResolvedModel) -> dict[str, str]:
    """Which version answers; if it acts on this prompt, whether it was on the device when the request came to the
    engine, and in milliseconds how long the request waited for it, and for the rest until its first step."""
    if not model.adapters:
        return {}
    headers = {"x-adapter-version": model.name}
    if (started := answer.started) is not None and answer.has_adapter:
        headers["x-loraplex-adapter-state"] = "cold" if started.loads else "warm"
        headers["x-loraplex-load-ms"] = str(math.ceil(started.load_seconds * 1000))
        headers["x-loraplex-queue-ms"] = str(round(started.queue_seconds * 1000))
    return headers


async def _stream(answer: Answer, shape: Shape, write: Write) -> None:
    """Write chunks as their text becomes certain, those that are due at the same time together: a write costs most."""
    frames = shape.frames()
    due = b"".join(map(frame, shape.opening()))
    try:
        while answer.finish_reason is None:
            if text := await answer.next_text():
                due += frames.of(text)
            if due and answer.finish_reason is None:
                await write(due, more=True)
                due = b""
        due += b"".join(map(frame, shape.closing(answer)))
    except Exception as error:
        due += error_frame(error)
    await write(due + DONE, more=False)


def stop_strings(request: GenerationRequest, profile: ServingProfile) -> tuple[str, ...]:
    """The request's and the profile's."""
    return tuple(dict.fromkeys((*request.stop_strings, *profile.stop)))


def _sampling(request: GenerationRequest, profile: ServingProfile, text: TextCodec, max_tokens: int) -> SamplingParams:
    ends = () if request.ignore_eos or text.end is None else (text.end,)
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=_first_given(request.temperature, profile.temperature, 1.0),
        top_p=_first_given(request.top_p, profile.top_p, 1.0),
        top_k=max(_first_given(request.top_k, profile.top_k, 0), 0),
        min_p=_first_given(request.min_p, profile.min_p, 0.0),
        seed=None if request.seed is None else request.seed % (1 << 63),
        stop_token_ids=tuple(dict.fromkeys((*(request.stop_token_ids or ()), *profile.stop_token_ids, *ends))),
        ignore_eos=bool(request.ignore_eos),
    )


def _first_given(asked: T | None, profiled: T | None, default: T) -> T:
    return asked if asked is not None else profiled if profiled is not None else default


def _salt(principal: Principal, cache_salt: str | None) -> bytes:
    """`cache_salt` narrows who shares cached prefixes, inside the tenant and never beyond it."""
    return principal.salt if cache_salt is None else hmac.digest(principal.salt, cache_salt.encode(), "sha256")

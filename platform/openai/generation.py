"""The way of a request that chat and completions share: everything is refused before it runs, then it is answered.

Knows the bounds that depend on the model, and when text is written. The endpoint words the answer.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

import anyio.to_thread
import msgspec
from litestar import Response
from litestar.types import Receive

from loraplex.engine.messages import Generate, Ready, SamplingParams
from loraplex.platform.catalog import Catalog, ResolvedModel
from loraplex.platform.errors import ApiError
from loraplex.platform.openai.answer import Answer
from loraplex.platform.openai.connection import while_connected
from loraplex.platform.openai.invocation import uses_of
from loraplex.platform.openai.sse import DONE, EventStream, TextFrame, Write, error_frame, frame
from loraplex.platform.openai.types import GenerationRequest, Heading
from loraplex.platform.tenants import Principal

INLINE_TOKENISE_CHARS = 4096
"""About a millisecond of tokenising. More goes to a thread, so that the event loop turns."""

ADAPTER_FIELDS = ("adapter_id", "lora_path")
"""Fields beside `model` that name an adapter."""


class Shape(Protocol):
    """How an endpoint words an answer."""

    def whole(self, answer: Answer, text: str) -> msgspec.Struct:
        """The body of an answer in one piece."""

    def opening(self) -> Iterable[msgspec.Struct]:
        """The chunks of a stream before any text."""

    def piece(self, text: str) -> msgspec.Struct:
        """The chunk that adds this text."""

    def closing(self, answer: Answer) -> Iterable[msgspec.Struct]:
        """The chunks after all text."""


async def choose_model(catalog: Catalog, principal: Principal, request: GenerationRequest) -> ResolvedModel:
    """What `model` names or, where that is the base, what LoRAX's `adapter_id` or SGLang's `lora_path` names.

    Raises ApiError: 404 for a name that means nothing to the caller, 400 where two of them name different versions.
    """
    chosen = await catalog.resolve(principal, request.model, request.user)
    for field in ADAPTER_FIELDS:
        name = getattr(request, field)
        if name is None:
            continue
        try:
            named = await catalog.resolve(principal, name, request.user)
        except ApiError as error:
            error.param = field
            raise
        if chosen.digest is not None and chosen.name != named.name:
            message = (
                f"The request names two models: `{chosen.name}`, and `{named.name}` in '{field}'. Send one of them."
            )
            raise ApiError(400, "invalid_value", message, param=field)
        chosen = named
    return chosen


async def tokenise(encode: Callable[[], list[int]], chars: int) -> list[int]:
    """Run `encode`, which turns `chars` characters into token ids."""
    return encode() if chars <= INLINE_TOKENISE_CHARS else await anyio.to_thread.run_sync(encode)


def prepare(
    request: GenerationRequest,
    *,
    request_id: str,
    prompt: list[int],
    prompt_field: str,
    max_tokens: int | None,
    model: ResolvedModel,
    principal: Principal,
    ready: Ready,
) -> Generate:
    """What the engine is asked. `max_tokens` None: as many as fit. Raises ApiError for a prompt that cannot run."""
    if not prompt:
        raise ApiError(400, "invalid_value", f"'{prompt_field}' has no tokens; send some text.", param=prompt_field)
    if max(prompt) >= ready.vocab_size:
        message = f"'{prompt_field}' has a token id outside of the vocabulary of {ready.vocab_size}."
        raise ApiError(400, "invalid_value", message, param=prompt_field)
    room = ready.max_model_len - len(prompt)
    if room < 1 or (max_tokens is not None and max_tokens > room):
        asked = "" if max_tokens is None else f" and {max_tokens} in the completion"
        message = (
            f"This model's maximum context length is {ready.max_model_len} tokens. However, you asked for "
            f"{len(prompt)} tokens in the {prompt_field}{asked}. Send less, or ask for less."
        )
        raise ApiError(400, "context_length_exceeded", message, param=prompt_field)
    return Generate(
        request_id=request_id,
        prompt=prompt,
        sampling=_sampling(request, max_tokens or room),
        adapters=uses_of(model.version, prompt),
        salt=_salt(principal, request.cache_salt),
    )


def heading(asked: Generate, model: ResolvedModel, ready: Ready) -> Heading:
    """What all parts of an answer begin with. `system_fingerprint` tells the weights, of base and adapter."""
    adapter = f"_{model.digest[:8]}" if model.digest else ""
    return Heading(
        id=asked.request_id,
        created=int(time.time()),
        model=model.name,
        system_fingerprint=f"fp_{ready.model_digest[:8]}{adapter}",
    )


async def respond(
    receive: Receive, answer: Answer, shape: Shape, *, stream: bool, model: ResolvedModel
) -> Response[Any]:
    """Wait for the whole answer or, of a stream, for the first token: what fails until then has its own HTTP status."""
    headers = {"x-adapter-version": model.name} if model.digest else {}
    try:
        if stream:
            await while_connected(receive, answer.begin())
            return EventStream(partial(_stream, answer, shape), on_close=answer.close, headers=headers)
        text = await while_connected(receive, answer.text())
    except BaseException:
        answer.close()
        raise
    answer.close()
    return Response(shape.whole(answer, text), headers=headers)


async def _stream(answer: Answer, shape: Shape, write: Write) -> None:
    """Write chunks as their text becomes certain, those that are due at the same time together: a write costs most."""
    piece = TextFrame(shape.piece)
    due = b"".join(map(frame, shape.opening()))
    try:
        while answer.finish_reason is None:
            if text := await answer.next_text():
                due += piece.of(text)
            if due and answer.finish_reason is None:
                await write(due, more=True)
                due = b""
        due += b"".join(map(frame, shape.closing(answer)))
    except Exception as error:
        due += error_frame(error)
    await write(due + DONE, more=False)


def _sampling(request: GenerationRequest, max_tokens: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=max(request.top_k or 0, 0),
        min_p=request.min_p or 0.0,
        seed=None if request.seed is None else request.seed % (1 << 63),
        stop_token_ids=tuple(request.stop_token_ids or ()),
        ignore_eos=bool(request.ignore_eos),
    )


def _salt(principal: Principal, cache_salt: str | None) -> bytes:
    """`cache_salt` narrows who shares cached prefixes, inside the tenant and never beyond it."""
    return principal.salt if cache_salt is None else hmac.digest(principal.salt, cache_salt.encode(), "sha256")

"""POST /v1/embeddings: prompts as vectors, by the base or an adapter.

The vector is the mean of the prompt's last hidden states, after the final norm, of length 1: all that a model that was
trained to generate has to offer. It was not trained to place like meanings near each other as an embedding model was,
so nearness says less. An adapter that was trained for it (with mean pooling) gives embeddings of its own.
"""

from __future__ import annotations

import base64
import sys
import time
import uuid
from array import array
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from itertools import islice
from typing import Any, cast

import msgspec
from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from loraplex.engine.client import EngineUnavailable, GenerationFailed
from loraplex.engine.messages import Embed
from loraplex.engine.text import TextCodec
from loraplex.platform.audit_rules import INFERENCE
from loraplex.platform.catalog import ResolvedModel
from loraplex.platform.errors import ApiError
from loraplex.platform.ledger.meter import METERED, Course, Meter, meter_of
from loraplex.platform.ledger.record import NO_TOKENS, Tokens
from loraplex.platform.limits.account import Demand
from loraplex.platform.observability.tracing import SequenceEnd
from loraplex.platform.openai.connection import while_connected
from loraplex.platform.openai.embedding_types import Embedding, EmbeddingList, EmbeddingRequest, EmbeddingUsage
from loraplex.platform.openai.generation import truncated
from loraplex.platform.openai.invocation import uses_of
from loraplex.platform.openai.model_bounds import ModelBounds
from loraplex.platform.prompts import tokenise
from loraplex.platform.services import Services
from loraplex.platform.tenants import Principal

MAX_TOKENS = 300_000
"""Of all prompts of a request together, as OpenAI has it."""

MAX_AT_ONCE = 16
"""Prompts of one request that the engine has in hand."""


@post("/embeddings", status_code=200, opt=INFERENCE | {METERED: "embeddings"}, tags=["openai"])
async def create_embeddings(
    data: JSONBody[EmbeddingRequest],
    request: Request[Any, Principal, Any],
    services: NamedDependency[Services],
) -> Response[EmbeddingList]:
    """A vector of length 1 for every input: the mean of the model's last hidden states over its tokens.

    These are the hidden states of a model that generates text, which was not trained for embeddings. `dimensions` may
    only be the model's own number.
    """
    answer, headers = await while_connected(
        request.receive, embed(services, request.auth, data, meter_of(request.scope))
    )
    is_base = answer.model == services.base_model_name
    return Response(answer, headers={**headers} if is_base else {**headers, "x-adapter-version": answer.model})


async def embed(
    services: Services, principal: Principal, request: EmbeddingRequest, meter: Meter
) -> tuple[EmbeddingList, Mapping[str, str]]:
    """The answer to a request, and headers that tell what is left of limits. Raises ApiError for one that cannot run;
    GenerationFailed, EngineUnavailable."""
    meter.asked = request.model
    given = request.prompts()
    model = await services.catalog.resolve(principal, request.model, request.user)
    _check_dimensions(request.dimensions, services.engine.ready.hidden_size)
    with services.tracing.span("tokenise"):
        prompts = await _tokens(services, model, given, request.truncate_prompt_tokens)
    tokens = sum(map(len, prompts))
    demand = Demand(tokens, tokens)
    await meter.open(principal, model, len(prompts), demand)
    meter.keep_request(lambda: given)
    with services.tracing.span("admission"):
        admission = await services.limiter.admit(principal, model, demand)
    course = _Course()
    meter.watch(course)
    used = tokens
    try:
        embeddings = await _embeddings(services, request, principal, model, prompts)
        course.told_tokens = tokens
    except (GenerationFailed, EngineUnavailable):
        used, course.has_failed = 0, True
        raise
    finally:
        admission.settle(used)
    answer = EmbeddingList(data=embeddings, model=model.name, usage=EmbeddingUsage(tokens, tokens))
    return answer, admission.headers


class _Course:
    """What the ledger is told: of embeddings all or none."""

    has_failed = False
    told_tokens = 0

    def told(self) -> Tokens:
        return NO_TOKENS._replace(prompt_tokens=self.told_tokens)

    def course(self) -> Course:
        return Course("stop" if self.told_tokens else None, self.has_failed, None, None, None)

    def said(self) -> str:
        return ""


async def _embeddings(
    services: Services, request: EmbeddingRequest, principal: Principal, model: ResolvedModel, prompts: list[list[int]]
) -> list[Embedding]:
    asked = [
        Embed(
            request_id=f"embd-{uuid.uuid4().hex}",
            prompt=prompt,
            adapters=uses_of(model.adapters, prompt),
            priority=principal.priority,
            share=principal.share,
        )
        for prompt in prompts
    ]
    encode = _base64 if request.encoding_format == "base64" else _floats
    embeddings: list[Embedding] = []
    async with aclosing(_vectors(services, asked, principal, model)) as vectors:
        async for vector in vectors:
            embedding = Embedding(index=len(embeddings), embedding=encode(vector))
            # Written at once, since writing millions of numbers in the end would hold up the event loop.
            embeddings.append(cast("Embedding", msgspec.Raw(msgspec.json.encode(embedding))))
    return embeddings


def _check_dimensions(asked: int | None, hidden_size: int) -> None:
    if asked not in (None, hidden_size):
        message = (
            f"This model's embeddings have {hidden_size} dimensions and were not trained to be cut. Leave it out, "
            f"or send {hidden_size}."
        )
        raise ApiError(400, "unsupported_value", message, param="dimensions")


async def _tokens(
    services: Services, model: ResolvedModel, given: Sequence[str | list[int]], most: int | None
) -> list[list[int]]:
    """Token ids of every input, or the last `most` of them. Raises ApiError for one that cannot run, and for too many
    in all."""
    profile, text = await services.profile_cache.of(model.version), await services.codecs.of(model.version)
    bounds = ModelBounds.of(services.engine.ready, model.version, profile)
    prompts = [truncated(prompt, most, bounds.max_tokens) for prompt in await _encode(text, given)]
    for index, prompt in enumerate(prompts):
        _check(prompt, "input" if len(given) == 1 else f"input[{index}]", bounds)
    if sum(map(len, prompts)) > MAX_TOKENS:
        message = f"'input' has more than {MAX_TOKENS} tokens in all. Send several requests."
        raise ApiError(400, "invalid_value", message, param="input")
    return prompts


async def _encode(text: TextCodec, given: Sequence[str | list[int]]) -> list[list[int]]:
    chars = sum(len(item) for item in given if isinstance(item, str))
    return await tokenise(lambda: [item if isinstance(item, list) else text.encode(item) for item in given], chars)


def _check(prompt: list[int], field: str, bounds: ModelBounds) -> None:
    bounds.check_prompt(prompt, field)
    if len(prompt) > bounds.max_tokens:
        message = (
            f"This model's maximum context length is {bounds.max_tokens} tokens. However, '{field}' has {len(prompt)} "
            "tokens. Send less."
        )
        raise ApiError(400, "context_length_exceeded", message, param=field)


async def _vectors(
    services: Services, asked: Sequence[Embed], principal: Principal, model: ResolvedModel
) -> AsyncGenerator[bytes]:
    """In order. Of many prompts some wait here, so that one request cannot fill the engine's queue."""
    running: deque[_PromptRun] = deque()
    waiting = iter(asked)
    try:
        while True:
            for embed in islice(waiting, MAX_AT_ONCE - len(running)):
                running.append(_PromptRun(services, embed, principal, model))
            if not running:
                return
            yield await running[0].vector()
            running.popleft().close()
    finally:
        for run in running:
            run.close()


class _PromptRun:
    """One prompt in the engine. Whoever starts it closes it, whatever happens; `close` also counts it."""

    def __init__(self, services: Services, asked: Embed, principal: Principal, model: ResolvedModel) -> None:
        """Raises EngineUnavailable or GenerationFailed when the engine cannot take it."""
        self._services = services
        self._prompt_tokens = len(asked.prompt)
        self._outcome = "client_closed"
        self._started_at = time.monotonic()
        self._generation = services.engine.generate(asked)
        self._used = (principal.tenant_id or "", {use.digest for use in asked.adapters})
        services.uses.begin(*self._used)
        self._in_hand = services.metrics.request_begun(principal, model, self._generation)
        self._span = services.tracing.sequence("embeddings", asked, model.name, principal.tenant_id)

    async def vector(self) -> bytes:
        """Raises GenerationFailed, EngineUnavailable."""
        try:
            chunk = await anext(self._generation)
        except GenerationFailed:
            self._outcome = "error"
            raise
        if chunk.embedding is None:
            self._outcome = "error"
            raise EngineUnavailable("the engine gave this request up; send it again")
        self._outcome = "stop"
        return chunk.embedding

    def close(self) -> None:
        """Abort it if it still runs, and count it."""
        self._generation.abort()
        started = self._generation.started
        self._services.uses.end(*self._used, started)
        if started is not None:
            load_seconds = started.load_seconds if self._used[1] else None
            self._services.metrics.request_started(started.queue_seconds, load_seconds)
        now = time.monotonic()
        seconds = now - self._started_at
        self._services.metrics.request_finished(
            "embeddings", self._outcome, self._prompt_tokens, 0, 0, None, seconds, self._in_hand
        )
        self._span.end(SequenceEnd(self._outcome, 0, 0, started, None, now))


def _base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode()


def _floats(vector: bytes) -> list[float]:
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()

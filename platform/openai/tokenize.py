"""POST /tokenize and /detokenize, as vLLM has them: what a model's tokenizer makes of text, and of its tokens.

A model with tokens of its own uses them. Unlike vLLM's they need a key, since they tell of a tenant's adapters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from anyio import to_thread
from litestar import post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from loraplex.engine.text import TextCodec
from loraplex.platform.audit_rules import INFERENCE
from loraplex.platform.catalog import ResolvedModel
from loraplex.platform.openai.chat_types import ChatCompletionRequest
from loraplex.platform.openai.conversation import plan_of, render_conversation
from loraplex.platform.openai.model_bounds import ModelBounds
from loraplex.platform.openai.tokenize_types import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest
from loraplex.platform.prompts import tokenise
from loraplex.platform.services import Services
from loraplex.platform.tenants import Principal

INLINE_TOKENS = 1024
"""About a millisecond of work. More goes to a thread, so that the event loop turns."""

T = TypeVar("T")


@post("/tokenize", status_code=200, opt=INFERENCE, tags=["openai"])
async def tokenize(
    data: JSONBody[TokenizeRequest], services: NamedDependency[Services], principal: NamedDependency[Principal]
) -> Tokenized:
    """The token ids of a text, or of a conversation as a chat completion would run it."""
    model, text = await _model(services, principal, data.model)
    profile = await services.profile_cache.of(model.version)
    if data.messages is not None:
        asked = ChatCompletionRequest(model=model.name, messages=data.messages)
        tokens = await render_conversation(services, principal, profile, text, plan_of(services, asked, profile, text))
    else:
        prompt = data.prompt or ""
        encode = text.encode_rendered if data.add_special_tokens is False else text.encode
        tokens = await tokenise(lambda: encode(prompt), len(prompt))
    return Tokenized(
        count=len(tokens),
        max_model_len=ModelBounds.of(services.engine.ready, model.version, profile).max_tokens,
        tokens=tokens,
        token_strs=await _run(lambda: text.spell(tokens), len(tokens)) if data.return_token_strs else None,
    )


@post("/detokenize", status_code=200, opt=INFERENCE, tags=["openai"])
async def detokenize(
    data: JSONBody[DetokenizeRequest], services: NamedDependency[Services], principal: NamedDependency[Principal]
) -> Detokenized:
    """The text of token ids."""
    model, text = await _model(services, principal, data.model)
    profile = await services.profile_cache.of(model.version)
    ModelBounds.of(services.engine.ready, model.version, profile).check_ids(data.tokens, "tokens")
    return Detokenized(await _run(lambda: text.decode(data.tokens), len(data.tokens)))


async def _model(services: Services, principal: Principal, name: str | None) -> tuple[ResolvedModel, TextCodec]:
    model = await services.catalog.resolve(principal, services.base_model_name if name is None else name)
    return model, await services.codecs.of(model.version)


async def _run(work: Callable[[], T], tokens: int) -> T:
    return work() if tokens <= INLINE_TOKENS else await to_thread.run_sync(work)

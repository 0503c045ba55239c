"""OpenAI's Python client: everything that openai_*.py try, and its asynchronous half, its lists and its errors."""

from __future__ import annotations

import asyncio

import openai
from openai import AsyncOpenAI
from openai_asking import GREEDY, MESSAGES, client, text_of
from openai_chat import chat, completions, sampling
from openai_files import batches, embeddings
from openai_responses import responses
from openai_structure import several_calls, structured, tools
from report import ADAPTER, BASE, MODELS, SPARE, feature, finish, holds, same


def models() -> None:
    with feature("models: list, retrieve, delete"):
        listed = [model.id for model in client.models.list()]
        holds(BASE in listed and any(name.split("@")[0].endswith(ADAPTER) for name in listed), listed)
        same(client.models.retrieve(BASE).id, BASE)
        holds(client.models.retrieve(ADAPTER).id, "the adapter is there")
        same(client.models.delete(SPARE).deleted, True)
        try:
            client.models.retrieve(SPARE)
        except openai.NotFoundError:
            pass
        else:
            raise AssertionError("a deleted model is there")


def errors() -> None:
    with feature("errors become the client's classes"):
        for model, options, kind, code in (
            ("absent", {}, openai.NotFoundError, "model_not_found"),
            (BASE, {"temperature": 9}, openai.BadRequestError, None),
        ):
            try:
                client.chat.completions.create(model=model, messages=MESSAGES, **options)
            except kind as error:
                holds(error.type == "invalid_request_error" and code in (None, error.code), error.body)
            else:
                raise AssertionError(f"no {kind.__name__}")
        try:
            client.with_options(api_key="wrong").models.list()
        except openai.AuthenticationError as error:
            same(error.code, "invalid_api_key")
        else:
            raise AssertionError("a wrong key was taken")
    with feature("request id and processing time in headers"):
        raw = client.chat.completions.with_raw_response.create(model=BASE, **GREEDY)
        same(raw.parse()._request_id, raw.headers["x-request-id"])
        holds(float(raw.headers["openai-processing-ms"]) > 0, raw.headers)


async def asynchronous() -> None:
    async with AsyncOpenAI(max_retries=0, timeout=120) as asynchronous_client:
        with feature("async, sixteen streams of both models at once"):

            async def run(model: str) -> str:
                stream = await asynchronous_client.chat.completions.create(model=model, stream=True, **GREEDY)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            texts = await asyncio.gather(*[run(model) for model in MODELS * 8])
            same(texts, [text_of(model) for model in MODELS] * 8)


for name in MODELS:
    for part in (chat, sampling, completions, tools, structured, embeddings, responses):
        part(name)
several_calls()
asyncio.run(asynchronous())
batches()
errors()
models()
finish()

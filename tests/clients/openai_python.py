"""OpenAI's Python client: chat, streams, tools, parsed answers, embeddings, responses, files and batches."""

from __future__ import annotations

import asyncio
import io
import json
import time
from typing import Literal

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel
from report import ADAPTER, BASE, DESK, DESKS, MODELS, TICKET, Refused, feature, finish, holds, same

client = OpenAI(max_retries=0, timeout=120)
MESSAGES = [{"role": "user", "content": TICKET}]
GREEDY = {"messages": MESSAGES, "max_tokens": 8, "temperature": 0}
BATCH_SECONDS = 120


class Routing(BaseModel):
    desk: Literal["billing", "delivery", "returns", "account", "technical", "sales"]
    urgent: bool


ROUTE = {
    "type": "function",
    "function": {
        "name": "route",
        "description": "Send a ticket to a desk.",
        "parameters": {
            "type": "object",
            "properties": {"desk": {"type": "string", "enum": list(DESKS)}},
            "required": ["desk"],
            "additionalProperties": False,
        },
    },
}


def text_of(model: str) -> str:
    return client.chat.completions.create(model=model, **GREEDY).choices[0].message.content


def chat(model: str) -> None:
    with feature("chat", model):
        completion = client.chat.completions.create(model=model, **GREEDY)
        usage = completion.usage
        same(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
        holds(completion.choices[0].finish_reason in ("stop", "length"), completion)
        holds(completion.choices[0].message.content, completion)
        if model == ADAPTER:
            same(completion.choices[0].message.content.strip(), DESK)
    with feature("chat, stream with usage", model):
        options = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = list(client.chat.completions.create(model=model, **GREEDY, **options))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        same(text, text_of(model))
        holds(chunks[-1].usage.completion_tokens > 0, chunks[-1])
    with feature("chat, stream helper", model):
        # the helper raises where an answer ends at its limit
        with client.chat.completions.stream(model=model, **GREEDY, stop=[" "]) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_completion()
        same(final.choices[0].message.content, text_of(model).split(" ")[0])
        holds("content.delta" in kinds, kinds)
        same(kinds[-1], "content.done")
    with feature("chat, answer sent back as a message", model):
        first = client.chat.completions.create(model=model, **GREEDY).choices[0].message
        thread = [*MESSAGES, first, {"role": "user", "content": "And now?"}]
        holds(client.chat.completions.create(model=model, messages=thread, max_tokens=4).choices, "an answer")
    with feature("chat, developer message and text parts", model):
        parts = [{"type": "text", "text": TICKET}]
        thread = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
        holds(client.chat.completions.create(model=model, messages=thread, max_completion_tokens=4).choices, "one")


def sampling(model: str) -> None:
    with feature("penalties and logit_bias", model, needs="sampling"):
        client.chat.completions.create(
            model=model, **GREEDY, frequency_penalty=0.5, presence_penalty=0.5, logit_bias={"5": -100}
        )
    with feature("n", model, needs="n"):
        choices = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=8, n=2).choices
        same([choice.index for choice in choices], [0, 1])
    with feature("chat logprobs", model, needs="logprobs"):
        choice = client.chat.completions.create(model=model, **GREEDY, logprobs=True, top_logprobs=3).choices[0]
        first = choice.logprobs.content[0]
        same(len(first.top_logprobs), 3)
        same(first.top_logprobs[0].token, first.token)
        text = b"".join(bytes(item.bytes) for item in choice.logprobs.content).decode()
        holds(text.startswith(choice.message.content), text)


def completions(model: str) -> None:
    with feature("completions, whole and streamed", model):
        whole = client.completions.create(model=model, prompt="Once upon a time", max_tokens=8, temperature=0)
        stream = client.completions.create(
            model=model, prompt="Once upon a time", max_tokens=8, temperature=0, stream=True
        )
        same("".join(chunk.choices[0].text for chunk in stream), whole.choices[0].text)
        same(whole.usage.completion_tokens, 8)
    with feature("completions, several prompts", model, needs="n"):
        choices = client.completions.create(model=model, prompt=["One", "Two"], max_tokens=2, n=2).choices
        same([choice.index for choice in choices], [0, 1, 2, 3])
    with feature("completions, echo and logprobs", model, needs="logprobs"):
        choice = client.completions.create(
            model=model, prompt="Once upon a time", max_tokens=1, temperature=0, echo=True, logprobs=2
        ).choices[0]
        logprobs = choice.logprobs
        same(logprobs.token_logprobs[0], None)
        same(logprobs.text_offset[0], 0)
        same("".join(logprobs.tokens), choice.text)
        holds(choice.text.startswith("Once upon a time"), choice.text)


def tools(model: str) -> None:
    forced = {"tools": [ROUTE], "tool_choice": {"type": "function", "function": {"name": "route"}}}
    options = {"messages": MESSAGES, "max_tokens": 64, "temperature": 0} | forced
    with feature("tools, a named function", model, needs="tools"):
        choice = client.chat.completions.create(model=model, **options).choices[0]
        same(choice.message.tool_calls[0].function.name, "route")
        holds(json.loads(choice.message.tool_calls[0].function.arguments)["desk"] in DESKS, choice)
    with feature("tools, required", model, needs="tools"):
        choice = client.chat.completions.create(model=model, **options | {"tool_choice": "required"}).choices[0]
        same((choice.finish_reason, choice.message.tool_calls[0].type), ("tool_calls", "function"))
    with feature("tools, auto", model, needs="tools"):
        holds(client.chat.completions.create(model=model, **options | {"tool_choice": "auto"}).choices, "an answer")
    with feature("tools, streamed", model, needs="tools"):
        with client.chat.completions.stream(model=model, **options) as stream:
            for _ in stream:
                pass
            call = stream.get_final_completion().choices[0].message.tool_calls[0]
        holds(json.loads(call.function.arguments)["desk"] in DESKS, call)
    with feature("tools, the result sent back", model, needs="tools"):
        message = client.chat.completions.create(model=model, **options).choices[0].message
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "done"}
        thread = [*MESSAGES, message, result]
        holds(client.chat.completions.create(model=model, messages=thread, tools=[ROUTE], max_tokens=4).choices, "one")


def structured(model: str) -> None:
    with feature("parse with pydantic", model, needs="response_format"):
        parsed = client.chat.completions.parse(model=model, messages=MESSAGES, response_format=Routing, max_tokens=64)
        holds(isinstance(parsed.choices[0].message.parsed, Routing), parsed)
    with feature("parse with pydantic, streamed", model, needs="response_format"):
        options = {"messages": MESSAGES, "response_format": Routing, "max_tokens": 64}
        with client.chat.completions.stream(model=model, **options) as stream:
            for _ in stream:
                pass
            final = stream.get_final_completion()
        holds(isinstance(final.choices[0].message.parsed, Routing), final)


def embeddings(model: str) -> None:
    with feature("embeddings, base64 and float", model, needs="embeddings"):
        packed = client.embeddings.create(model=model, input=["one", "two"]).data
        plain = client.embeddings.create(model=model, input=["one", "two"], encoding_format="float").data
        same([item.index for item in packed], [0, 1])
        holds(max(abs(a - b) for a, b in zip(packed[1].embedding, plain[1].embedding, strict=True)) < 1e-4, "equal")


def responses(model: str) -> None:
    with feature("responses", model, needs="responses"):
        response = client.responses.create(model=model, input=TICKET, max_output_tokens=16, temperature=0)
        holds(response.output_text, response)
    with feature("responses, stored and continued", model, needs="responses"):
        first = client.responses.create(model=model, input=TICKET, max_output_tokens=16)
        second = client.responses.create(
            model=model, input="And now?", previous_response_id=first.id, max_output_tokens=16
        )
        same(client.responses.retrieve(second.id).previous_response_id, first.id)
    with feature("responses, stream", model, needs="responses"):
        with client.responses.stream(model=model, input=TICKET, max_output_tokens=16) as stream:
            kinds = [event.type for event in stream]
        same(kinds[:2], ["response.created", "response.in_progress"])
        holds(kinds[-1] in ("response.completed", "response.incomplete"), kinds)
    with feature("responses, parse with pydantic", model, needs="responses"):
        parsed = client.responses.parse(model=model, input=TICKET, text_format=Routing, max_output_tokens=64)
        holds(isinstance(parsed.output_parsed, Routing), parsed)


def batches() -> None:
    lines = [
        {
            "custom_id": str(index),
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": MODELS[index % 2], **GREEDY},
        }
        for index in range(4)
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    with feature("files", needs="files"):
        file = client.files.create(file=("lines.jsonl", io.BytesIO(content)), purpose="batch")
        same(client.files.content(file.id).read(), content)
        holds(file.id in [listed.id for listed in client.files.list()], "listed")
        same(client.files.delete(file.id).deleted, True)
    with feature("batches", needs="batches"):
        file = client.files.create(file=("lines.jsonl", io.BytesIO(content)), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        deadline = time.monotonic() + BATCH_SECONDS
        while batch.status in ("validating", "in_progress", "finalizing") and time.monotonic() < deadline:
            time.sleep(0.5)
            batch = client.batches.retrieve(batch.id)
        same(batch.status, "completed")
        answers = map(json.loads, client.files.content(batch.output_file_id).text.splitlines())
        texts = {a["custom_id"]: a["response"]["body"]["choices"][0]["message"]["content"] for a in answers}
        same(texts, {str(index): text_of(MODELS[index % 2]) for index in range(4)})


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
    with feature("request id and processing time in headers", needs="processing time"):
        raw = client.chat.completions.with_raw_response.create(model=BASE, **GREEDY)
        same(raw.parse()._request_id, raw.headers["x-request-id"])
        if "openai-processing-ms" not in raw.headers:
            raise Refused("no header openai-processing-ms")


async def asynchronous() -> None:
    async with AsyncOpenAI(max_retries=0, timeout=120) as asynchronous_client:
        with feature("async, sixteen streams of both models at once"):

            async def run(model: str) -> str:
                stream = await asynchronous_client.chat.completions.create(model=model, stream=True, **GREEDY)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            texts = await asyncio.gather(*[run(model) for model in MODELS * 8])
            same(texts, [text_of(model) for model in MODELS] * 8)


def main() -> None:
    with feature("models: list, retrieve"):
        same(client.models.retrieve(BASE).id, BASE)
        holds(BASE in [model.id for model in client.models.list()], "the base is listed")
        holds(client.models.retrieve(ADAPTER).id, "the adapter is there")
    for model in MODELS:
        for part in (chat, sampling, completions, tools, structured, embeddings, responses):
            part(model)
    asyncio.run(asynchronous())
    batches()
    errors()
    finish()


if __name__ == "__main__":
    main()

"""Anthropic's Python client: messages, streams, tools, counted tokens and errors."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
from anthropic import Anthropic, AsyncAnthropic
from report import ADAPTER, BASE, DESK, DESKS, KEY, MODELS, TICKET, URL, feature, finish, holds, same

SERVER = {"base_url": URL.removesuffix("/v1"), "api_key": KEY, "max_retries": 0, "timeout": 120}
client = Anthropic(**SERVER)
THREAD: list[Any] = [{"role": "user", "content": TICKET}]
# the client has no argument for a temperature any more; the API has
GREEDY: dict[str, Any] = {"messages": THREAD, "max_tokens": 8, "extra_body": {"temperature": 0}}
ROUTE = {
    "name": "route",
    "description": "Send a ticket to a desk.",
    "input_schema": {
        "type": "object",
        "properties": {"desk": {"type": "string", "enum": list(DESKS)}},
        "required": ["desk"],
    },
}


def text_of(model: str, **options: Any) -> str:
    return "".join(block.text for block in client.messages.create(model=model, **GREEDY | options).content)


def messages(model: str) -> None:
    with feature("messages", model):
        message = client.messages.create(model=model, **GREEDY)
        same((message.type, message.role, message.content[0].type), ("message", "assistant", "text"))
        holds(message.content[0].text and message.usage.output_tokens > 0, message)
        same(message.stop_reason, "end_turn" if model == ADAPTER else "max_tokens")
        if model == ADAPTER:
            same(message.content[0].text.strip(), DESK)
        blocks = [{"type": "text", "text": TICKET, "cache_control": {"type": "ephemeral"}}]
        same(text_of(model, messages=[{"role": "user", "content": blocks}]), message.content[0].text)
    with feature("messages, system prompt and a thread", model):
        thread = [*THREAD, {"role": "assistant", "content": "billing"}, {"role": "user", "content": "And now?"}]
        asked = {"system": "Be brief.", "messages": thread}
        same(text_of(model, **asked), text_of(model, **asked | {"system": [{"type": "text", "text": "Be brief."}]}))
    with feature("messages, stop sequences", model):
        stop = text_of(model)[2:4]
        message = client.messages.create(model=model, **GREEDY, stop_sequences=[stop])
        same((message.stop_reason, message.stop_sequence), ("stop_sequence", stop))
        same(message.content[0].text, text_of(model).split(stop)[0])
    with feature("messages, stream helper", model):
        with client.messages.stream(model=model, **GREEDY) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        whole = client.messages.create(model=model, **GREEDY)
        same((text, final.content[0].text, final.stop_reason), (whole.content[0].text,) * 2 + (whole.stop_reason,))
        same(final.usage.output_tokens, whole.usage.output_tokens)
    with feature("messages, raw events", model):
        kinds = [event.type for event in client.messages.create(model=model, **GREEDY, stream=True)]
        kinds = [kind for kind in kinds if kind != "ping"]
        same(kinds[:2], ["message_start", "content_block_start"])
        same(kinds[-3:], ["content_block_stop", "message_delta", "message_stop"])
        same(set(kinds[2:-3]), {"content_block_delta"})


def tools(model: str) -> None:
    forced = {"tools": [ROUTE], "tool_choice": {"type": "tool", "name": "route"}}
    asked = GREEDY | {"model": model, "max_tokens": 96} | forced
    with feature("messages, tools", model):
        message = client.messages.create(**asked)
        (call,) = [block for block in message.content if block.type == "tool_use"]
        same((message.stop_reason, call.name, call.input["desk"] in DESKS), ("tool_use", "route", True))
        with client.messages.stream(**asked) as stream:
            streamed = stream.get_final_message().content[-1]
        same((streamed.type, streamed.input), ("tool_use", call.input))
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "done"}
        thread = [
            *THREAD,
            {"role": "assistant", "content": message.content},
            {"role": "user", "content": [result, {"type": "text", "text": "Which desk was it?"}]},
        ]
        free = asked | {"messages": thread, "tool_choice": {"type": "auto"}, "max_tokens": 8}
        holds(client.messages.create(**free).content, "an answer to the tool's result")
    with feature("messages, count_tokens", model):
        for more in ({}, {"tools": [ROUTE]}, {"system": "Be brief."}):
            counted = client.messages.count_tokens(model=model, messages=THREAD, **more)
            usage = client.messages.create(model=model, **GREEDY, **more).usage
            cached = (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
            same(counted.input_tokens, usage.input_tokens + cached)


async def asynchronous() -> None:
    with feature("async, eight streams of both models at once"):
        async with AsyncAnthropic(**SERVER) as many:

            async def run(model: str) -> str:
                async with many.messages.stream(model=model, **GREEDY) as stream:
                    return await stream.get_final_text()

            texts = await asyncio.gather(*[run(model) for model in MODELS * 4])
        same(texts, [text_of(model) for model in MODELS] * 4)


def errors() -> None:
    with feature("errors become the client's classes"):
        for options, kind, told in (
            ({"model": "absent"}, anthropic.NotFoundError, "not_found_error"),
            ({"model": BASE, "extra_body": {"temperature": 9}}, anthropic.BadRequestError, "invalid_request_error"),
        ):
            try:
                client.messages.create(**GREEDY | options)
            except kind as error:
                same(error.body["error"]["type"], told)
                holds(error.request_id, error.response.headers)
            else:
                raise AssertionError(f"no {kind.__name__}")
        try:
            client.with_options(api_key="wrong").messages.create(model=BASE, **GREEDY)
        except anthropic.AuthenticationError as error:
            same(error.body["error"]["type"], "authentication_error")
        else:
            raise AssertionError("a wrong key was taken")


for name in MODELS:
    messages(name)
    tools(name)
asyncio.run(asynchronous())
errors()
finish()

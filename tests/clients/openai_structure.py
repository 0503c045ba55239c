"""OpenAI's Python client: answers in a form, as calls of tools or by a schema."""

from __future__ import annotations

import json
from typing import Any

from openai_asking import DESK_PARAMETERS, MESSAGES, ROOMY, Routing, client
from report import BASE, DESKS, feature, holds, same

ROUTE = {
    "type": "function",
    "function": {"name": "route", "description": "Send a ticket to a desk.", "parameters": DESK_PARAMETERS},
}
NAMED = {"type": "function", "function": {"name": "route"}}


def desk_in(call: Any) -> str:
    """What the call asks for; raises KeyError if that is no call of `route`."""
    holds(call.id and call.type == "function", call)
    same(call.function.name, "route")
    return str(json.loads(call.function.arguments)["desk"])


def tools(model: str) -> None:
    options = ROOMY | {"model": model, "tools": [ROUTE], "tool_choice": NAMED}
    create, stream_of = client.chat.completions.create, client.chat.completions.stream
    with feature("tools, a named function", model):
        choice = create(**options).choices[0]
        (call,) = choice.message.tool_calls
        holds(desk_in(call) in DESKS and not choice.message.content, choice)
    with feature("tools, required, one call", model):
        choice = create(**options | {"tool_choice": "required", "parallel_tool_calls": False}).choices[0]
        (call,) = choice.message.tool_calls
        same((choice.finish_reason, desk_in(call) in DESKS), ("tool_calls", True))
    with feature("tools, auto, whole and streamed", model):
        asked = options | {"tool_choice": "auto", "max_tokens": 32}
        message = create(**asked).choices[0].message
        deltas = [chunk.choices[0].delta for chunk in create(**asked, stream=True)]
        same("".join(delta.content or "" for delta in deltas), message.content or "")
        names = [call.function.name for delta in deltas for call in delta.tool_calls or [] if call.function.name]
        same(names, [call.function.name for call in message.tool_calls or []])
    with feature("tools, none", model):
        same(create(**options | {"tool_choice": "none", "max_tokens": 8}).choices[0].message.tool_calls, None)
    with feature("tools, streamed", model):
        with stream_of(**options) as stream:
            kinds = {event.type for event in stream}
            (call,) = stream.get_final_completion().choices[0].message.tool_calls
        holds(desk_in(call) in DESKS, call)
        holds({"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds, kinds)
    with feature("tools, the result sent back", model):
        message = create(**options).choices[0].message
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "done"}
        thread = [*MESSAGES, message, result]
        answer = create(model=model, messages=thread, tools=[ROUTE], max_tokens=8, temperature=0)
        holds(answer.choices[0].message.content or answer.choices[0].message.tool_calls, answer)


def several_calls() -> None:
    """Of the base alone: an answer of hundreds of tokens."""
    with feature("tools, required, several calls", BASE):
        other = {"type": "function", "function": {"name": "close", "description": "Close a ticket."}}
        many = {"model": BASE, "tools": [ROUTE, other], "tool_choice": "required", "max_tokens": 480}
        choice = client.chat.completions.create(**ROOMY | many).choices[0]
        same(choice.finish_reason, "tool_calls")
        for call in choice.message.tool_calls:
            arguments = json.loads(call.function.arguments)
            holds(arguments.get("desk") in DESKS if call.function.name == "route" else arguments == {}, call)
        same(len({call.id for call in choice.message.tool_calls}), len(choice.message.tool_calls))


def structured(model: str) -> None:
    options = ROOMY | {"model": model}
    with feature("parse with pydantic", model):
        parsed = client.chat.completions.parse(**options, response_format=Routing)
        holds(isinstance(parsed.choices[0].message.parsed, Routing), parsed)
    with feature("parse with pydantic, streamed", model):
        with client.chat.completions.stream(**options, response_format=Routing) as stream:
            for _ in stream:
                pass
            final = stream.get_final_completion()
        same(final.choices[0].message.parsed, parsed.choices[0].message.parsed)
    with feature("a schema that leaves objects open", model):
        schema = {key: value for key, value in DESK_PARAMETERS.items() if key != "additionalProperties"}
        form = {"type": "json_schema", "json_schema": {"name": "routing", "schema": schema}}
        answer = client.chat.completions.create(**options, response_format=form).choices[0].message.content
        same(json.loads(answer).keys(), {"desk"})
    with feature("JSON mode", model):
        # what a small model writes may have no end: its beginning is an object, whether it is done or not
        choice = client.chat.completions.create(**options, response_format={"type": "json_object"}).choices[0]
        holds(choice.message.content.startswith("{"), choice)
        holds(choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict), choice)

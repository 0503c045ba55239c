"""OpenAI's Python client: the API of responses, stateless and stored."""

from __future__ import annotations

import json
from typing import Any

import openai
from openai_asking import DESK_PARAMETERS, Routing, client
from report import ADAPTER, DESK, DESKS, TICKET, feature, holds, same

ROUTE = {"type": "function", "name": "route", "description": "Send a ticket to a desk.", "parameters": DESK_PARAMETERS}


def responses(model: str) -> None:
    greedy: dict[str, Any] = {"model": model, "input": TICKET, "max_output_tokens": 16, "temperature": 0}
    create = client.responses.create
    with feature("responses", model):
        response = create(**greedy)
        holds(response.output_text and response.id.startswith("resp_"), response)
        same((response.output[0].type, response.output[0].role), ("message", "assistant"))
        same(response.usage.total_tokens, response.usage.input_tokens + response.usage.output_tokens)
        if model == ADAPTER:
            same((response.status, response.output_text.strip()), ("completed", DESK))
        parts = [{"role": "user", "content": [{"type": "input_text", "text": TICKET}]}]
        same(create(**greedy | {"input": parts}).output_text, response.output_text)
    with feature("responses, stream", model):
        with client.responses.stream(**greedy) as stream:
            events = list(stream)
        kinds = [event.type for event in events]
        same(kinds[:2], ["response.created", "response.in_progress"])
        same(kinds[2:4], ["response.output_item.added", "response.content_part.added"])
        holds(kinds[-1] in ("response.completed", "response.incomplete"), kinds)
        same([event.sequence_number for event in events], list(range(len(events))))
        deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        same((deltas, events[-1].response.output_text), (create(**greedy).output_text,) * 2)
    with feature("responses, stored and continued", model):
        first = create(**greedy)
        second = create(**greedy | {"input": "And now?"}, previous_response_id=first.id)
        thread = [
            {"role": "user", "content": TICKET},
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "And now?"},
        ]
        same(second.output_text, create(**greedy | {"input": thread}).output_text)
        found = client.responses.retrieve(second.id)
        same((found.previous_response_id, found.output_text), (first.id, second.output_text))
        client.responses.delete(second.id)
        gone(second.id)
        gone(create(**greedy, store=False).id)
    with feature("responses, parse with pydantic", model):
        parsed = client.responses.parse(**greedy | {"max_output_tokens": 96}, text_format=Routing)
        holds(isinstance(parsed.output_parsed, Routing), parsed)
    with feature("responses, tools", model):
        options = greedy | {"tools": [ROUTE], "tool_choice": "required", "max_output_tokens": 96}
        response = create(**options, parallel_tool_calls=False)
        (call,) = [item for item in response.output if item.type == "function_call"]
        same((call.name, json.loads(call.arguments)["desk"] in DESKS), ("route", True))
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
        again = greedy | {"input": [result], "tools": [ROUTE], "previous_response_id": response.id}
        holds(create(**again).output, "an answer to the tool's result")


def gone(response_id: str) -> None:
    try:
        client.responses.retrieve(response_id)
    except openai.NotFoundError:
        return
    raise AssertionError(f"{response_id} is there")

"""Responses as the openai package sees them: every object and event by its own models, in OpenAI's order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from litestar.testing import TestClient
from openai import BadRequestError, OpenAI
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter
from scripted_engine import Api, ByteText, Script, Scripts
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from loraplex.engine.client import EngineUnavailable, GenerationFailed
from loraplex.engine.templates import TemplateError

HERMES = "{% if tools %}<tools>{% endif %}<tool_call>"
THINKS = HERMES + "{{ '</think>' }}"
TOOL = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>'
SAYS = f"<think>\nHm.\n</think>\n\nLet me see.\n{CALL}\n{CALL}"

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)

TEXT_EVENTS = ["output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done"]
CALL_EVENTS = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]


def api(says: str, template: str = "", *, finish: str = "stop") -> Api:
    return Api(Script(*[bytes([byte]) for byte in says.encode()], finish=finish), ByteText(template))


def unknown_fields(model: Any) -> set[str]:
    """Names of fields that the package's models do not have, at any depth."""
    if isinstance(model, list):
        return set().union(*map(unknown_fields, model))
    if not isinstance(model, BaseModel):
        return set()
    values = [getattr(model, name) for name in type(model).model_fields]
    return set(model.model_extra or {}).union(*map(unknown_fields, values))


def whole(running: Api, **fields: Any) -> dict[str, Any]:
    """A response that is what the package's model says, to the field."""
    response = running.respond(**fields)
    assert response.status_code == 200, response.text
    model = Response.model_validate_json(response.content, strict=True)
    assert unknown_fields(model) == {"store"}, "OpenAI sends it, too"
    return response.json()


def events(running: Api, **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream: each what the package's models say, and numbered."""
    response = running.respond(stream=True, **fields)
    assert response.status_code == 200, response.text
    *frames, rest = response.text.split("\n\n")
    assert rest == ""
    told = []
    for number, frame in enumerate(frames):
        name, data = frame.split("\n")
        assert unknown_fields(EVENT.validate_json(data.removeprefix("data: "), strict=True)) <= {"store"}
        told.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {told[-1]['type']}"
        assert told[-1]["sequence_number"] == number
    return told


def kinds(told: list[dict[str, Any]]) -> list[str]:
    """Types without their beginning, neighbours that are equal once."""
    names = [event["type"].removeprefix("response.") for event in told]
    return [name for before, name in zip([None, *names], names, strict=False) if name != before]


def without_ids(output: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in item.items() if key not in ("id", "call_id")} for item in output]


def test_a_response_is_openais() -> None:
    """All its fields, with what was asked told again."""
    format = {"type": "json_schema", "name": "city", "schema": {"type": "object"}, "strict": False}
    asked = {
        "instructions": "Be brief.", "max_output_tokens": 40, "temperature": 0.5, "top_p": 0.9, "tools": [TOOL],
        "tool_choice": "none", "parallel_tool_calls": False, "metadata": {"a": "b"}, "user": "u", "max_tool_calls": 3,
        "safety_identifier": "s", "prompt_cache_key": "k",
    }  # fmt: skip

    response = whole(api("hello"), **asked, text={"format": format}, truncation="disabled", reasoning={"effort": None})

    for name, value in asked.items():
        assert response[name] == ([{**TOOL, "description": None}] if name == "tools" else value)
    assert response["text"]["format"] == {**format, "description": None}
    assert (response["status"], response["store"], response["error"]) == ("completed", False, None)
    [message] = response["output"]
    part = {"type": "output_text", "text": "hello", "annotations": [], "logprobs": []}
    assert without_ids([message]) == [
        {"type": "message", "role": "assistant", "status": "completed", "content": [part]}
    ]
    assert response["usage"]["input_tokens"] == len("Be brief.hello")
    assert response["usage"]["output_tokens"] == 5


def test_a_stream_of_text_has_openais_events_in_their_order() -> None:
    """From created to completed, which has what the whole response has."""
    told = events(api("hello"))

    assert kinds(told) == ["created", "in_progress", *TEXT_EVENTS, "output_item.done", "completed"]
    assert "".join(event["delta"] for event in told if event["type"].endswith("delta")) == "hello"
    assert told[0]["response"]["status"] == "in_progress"
    assert without_ids(told[-1]["response"]["output"]) == without_ids(whole(api("hello"))["output"])


def test_thoughts_text_and_calls_are_items_of_their_own() -> None:
    """In a stream and in one piece the same ones, each begun and ended before the next; thoughts are counted."""
    told = events(api(SAYS, THINKS), tools=[TOOL])

    reasoning = [name.replace("output_text", "reasoning_text") for name in TEXT_EVENTS]
    items = [*reasoning, "output_item.done", *TEXT_EVENTS, "output_item.done", *CALL_EVENTS, *CALL_EVENTS]
    assert kinds(told) == ["created", "in_progress", *items, "completed"]
    response = told[-1]["response"]
    thought, said, *calls = response["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert said["content"][0]["text"] == "Let me see."
    assert [json.loads(call["arguments"]) for call in calls] == [{"city": "Köln"}] * 2
    assert calls[0]["call_id"] != calls[1]["call_id"]
    assert len({item["id"] for item in response["output"]}) == 4
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] == 3
    assert without_ids(whole(api(SAYS, THINKS), tools=[TOOL])["output"]) == without_ids(response["output"])


def test_what_is_cut_off_is_incomplete() -> None:
    """The response says why; of its items the last alone is incomplete."""
    says = SAYS[: SAYS.rindex("ln")]
    for response in (
        whole(api(says, THINKS, finish="length"), tools=[TOOL]),
        events(api(says, THINKS, finish="length"), tools=[TOOL])[-1]["response"],
    ):
        assert (response["status"], response["completed_at"]) == ("incomplete", None)
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
        assert [item["status"] for item in response["output"]] == ["completed"] * 3 + ["incomplete"]


def test_an_answer_without_text_is_an_empty_message() -> None:
    """There is always an item, so that clients find the text that they look for."""
    [message] = whole(Api(Script(b"")))["output"]
    assert message["content"][0]["text"] == ""
    assert kinds(events(Api(Script(b""))))[2] == "output_item.added"


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (EngineUnavailable("down", retry_after_seconds=5), "server_error"),
        (GenerationFailed("invalid_grammar", "no"), "invalid_prompt"),
        (ValueError("a secret"), "server_error"),
        (OperationalError("a secret", {}, OSError("down")), "server_error"),
    ],
)
def test_a_stream_that_breaks_off_ends_with_an_error_and_a_failed_response(failure: Exception, code: str) -> None:
    """Of which nothing tells what is our own, and our own log no more than once."""
    with capture_logs() as logged:
        told = events(Api(Script(b"hel", failure)))

    assert len(logged) == isinstance(failure, ValueError | OperationalError)

    assert kinds(told)[-2:] == ["error", "failed"]
    failed = told[-1]["response"]
    assert (failed["status"], failed["error"]["code"]) == ("failed", code)
    assert failed["error"]["message"] == told[-2]["message"]
    assert "secret" not in json.dumps(told)


CONVERSATION = [
    {"role": "developer", "content": "Use tools."},
    {"role": "user", "content": [{"type": "input_text", "text": "Weather"}, {"type": "input_text", "text": "?"}]},
    {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
    {
        "type": "message", "role": "assistant", "id": "msg_1", "status": "completed", "phase": "commentary",
        "content": [{"type": "output_text", "text": "Let me see.", "annotations": []}],
    },
    {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": '{"city": "Oslo"}', "caller": None},
    {"type": "function_call", "call_id": "c2", "name": "get_weather", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1", "output": "rain"},
    {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "sun"}]},
    {"role": "assistant", "content": "Rain."},
    {"role": "user", "content": "Thanks."},
]  # fmt: skip


def test_items_become_the_messages_of_a_chat() -> None:
    """What the assistant thinks, says and calls in one go is one message; instructions are part of the first one."""
    running = api("hello", HERMES)

    whole(running, input=CONVERSATION, instructions="Be brief.", tools=[TOOL])

    [(messages, _)] = running.text.rendered
    assert [message["role"] for message in messages] == [
        "system", "user", "assistant", "tool", "tool", "assistant", "user",
    ]  # fmt: skip
    assert messages[0]["content"] == "Be brief.\n\nUse tools."
    assert messages[1]["content"] == "Weather?"
    assert (messages[2]["content"], messages[2]["reasoning_content"]) == ("Let me see.", "Hm.")
    assert [call["function"]["arguments"] for call in messages[2]["tool_calls"]] == [{"city": "Oslo"}, {}]
    assert [(message["tool_call_id"], message["content"]) for message in messages[3:5]] == [
        ("c1", "rain"),
        ("c2", "sun"),
    ]


def test_only_allowed_tools_are_offered() -> None:
    """`allowed_tools` is a choice of its own."""
    running = api("hello", HERMES)
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "get_weather"}]}

    response = whole(running, tools=[{**TOOL, "name": "other"}, TOOL], tool_choice=allowed)

    assert [tool["function"]["name"] for tool in running.text.rendered[0][1].tools] == ["get_weather"]
    assert response["tool_choice"] == allowed
    assert len(response["tools"]) == 2


def test_the_package_runs_a_tool() -> None:
    """Its documented loop: the output goes back as input, with what the tool said."""
    running = Api(Scripts(Script(SAYS.encode()), Script(b"Rain.")), ByteText(THINKS))
    with TestClient(running.app) as http:
        client = OpenAI(base_url="http://testserver.local/v1", api_key="k", http_client=http, max_retries=0)
        sent: list[Any] = [{"role": "user", "content": "Weather?"}]
        with client.responses.stream(model="base", input=sent, tools=[TOOL], store=False) as stream:
            list(stream)
            first = stream.get_final_response()
        sent += first.output
        calls = [item for item in first.output if item.type == "function_call"]
        sent += [{"type": "function_call_output", "call_id": call.call_id, "output": "rain"} for call in calls]

        second = client.responses.create(model="base", input=sent, tools=[TOOL], store=False)

    assert second.output_text == "Rain."
    last = running.text.rendered[-1][0]
    assert [message["role"] for message in last] == ["user", "assistant", "tool", "tool"]
    assert last[1]["reasoning_content"] == "Hm."


def nested(depth: int) -> dict[str, Any]:
    return {"x": nested(depth - 1)} if depth else {}


ALLOWED = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "get_weather"}]}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"background": True}, "background"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"truncation": "auto"}, "truncation"),
    ({"max_tokens": 5}, "max_tokens"),
    ({"response_format": {"type": "text"}}, "response_format"),
    ({"messages": []}, "messages"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools[0].type"),
    ({"tools": [TOOL, TOOL]}, "tools[1].name"),
    ({"tool_choice": {"type": "file_search"}}, "tool_choice.type"),
    ({"text": {"format": {"type": "json_object"}}, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ({"tools": [{**TOOL, "parameters": nested(70)}]}, "tools[0].parameters"),
    ({"tools": [{**TOOL, "name": "f"}, TOOL, TOOL], "tool_choice": ALLOWED}, "tools[2].name"),
    ({"tools": [TOOL, {**TOOL, "name": "f", "parameters": nested(70)}], "tool_choice": ALLOWED}, "tools[1].parameters"),
    ({"text": {"format": {"type": "json_schema", "name": "x", "schema": nested(70)}}}, "text.format.schema"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
    ({"stream_options": {"include_obfuscation": True}}, "stream_options"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
    ({"metadata": {"k": "v" * 513}}, "metadata[...]"),
    ({"max_output_tokens": 100_000}, "input"),
    ({"input": []}, "input"),
    ({"input": [{"type": "computer_call"}]}, "input[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "output_text", "text": "x"}]}]}, "input[0].content[0].type"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input"),
    ({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]}, "input[0].encrypted_content"),
    ({"chat_template_kwargs": {"x": 1}}, "chat_template_kwargs"),
]


@pytest.fixture(scope="module")
def http() -> Iterator[TestClient[Any]]:
    """One application for requests that do not come as far as the engine."""
    with TestClient(api("hello").app) as client:
        yield client


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_refused_is_named_as_it_was_sent(http: TestClient[Any], fields: dict[str, Any], param: str) -> None:
    """The field of this API, and the message knows no other, whatever it is called in a chat."""
    response = http.post("/v1/responses", json={"model": "base", "input": "hello", "store": False} | fields)

    assert response.status_code in (400, 404), response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert "response_format" not in error["message"] or "response_format" in fields
    assert "'messages" not in error["message"] or "messages" in fields


def function(name: str) -> dict[str, Any]:
    return {"type": "function", "name": name}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tools": [function("messages")] * 2}, "'messages'"),
        ({"tools": [TOOL], "tool_choice": function("max_tokens")}, "'max_tokens'"),
        ({"tools": [TOOL], "tool_choice": {**ALLOWED, "tools": [function("response_format")]}}, "'response_format'"),
        ({"input": [{"type": "item_reference", "id": "messages"}]}, "'messages'"),
    ],
)
def test_a_clients_own_words_are_not_taken_for_fields(
    http: TestClient[Any], fields: dict[str, Any], words: str
) -> None:
    """What it calls as a chat calls a field is told as it has sent it."""
    response = http.post("/v1/responses", json={"model": "base", "input": "hello", "store": False} | fields)
    assert words in response.json()["error"]["message"]


def test_a_template_that_refuses_is_said_in_fields_of_this_api() -> None:
    """But not what the template says, even if it speaks of the same field."""
    running = api("hello")

    def refuse(*_: Any) -> None:
        raise TemplateError("'messages' in the messages")

    running.text.render_chat = refuse
    assert running.respond().json()["error"]["message"] == "Invalid value for 'input': 'messages' in the messages."


def test_a_request_without_input_is_refused(http: TestClient[Any]) -> None:
    client = OpenAI(base_url="http://testserver.local/v1", api_key="k", http_client=http, max_retries=0)
    with pytest.raises(BadRequestError) as refused:
        client.responses.create(model="base")
    assert refused.value.param == "input"

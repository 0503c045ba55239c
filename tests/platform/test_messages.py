"""Anthropic's Messages API over an engine that says what it is told to: what its model reads, and what clients get."""

import asyncio
import json

import anthropic
import httpx2
import pytest
from anthropic_events import events_of, message_of, shape_of
from litestar.testing import TestClient
from scripted_engine import Api, ByteText, Script, Scripts

from loraplex.adapters.profile import ServingProfile
from loraplex.engine.client import EngineUnavailable, GenerationFailed
from loraplex.engine.templates import TemplateError

HERMES = "{% if tools %}<tools>{% endif %}<tool_call>"
THINKS = HERMES + "{{ '</think>' }}"
TOOLS = [{"name": "get_weather", "description": "Tells it.", "input_schema": {"type": "object", "properties": {}}}]
USER = {"role": "user", "content": "hello"}
CALL = b'<tool_call>\n{"name": "get_weather", "arguments": {"city": "K\xc3\xb6ln"}}\n</tool_call>'
TWO = b"<think>\nHm.\n</think>\n\nLet me see.\n" + CALL + b"\n" + CALL.replace(b"K\xc3\xb6ln", b"Oslo")


def api(*says, template=THINKS, **options):
    return Api(Script(*says, **options), ByteText(template))


def bytes_of(says):
    return [bytes([byte]) for byte in says]


def post(running, path="/v1/messages", **fields):
    body = {"model": "base", "max_tokens": 1000, "messages": [USER]} | fields
    with TestClient(running.app) as http:
        return http.post(path, json={name: value for name, value in body.items() if value is not None})


def answer(running, **fields):
    response = post(running, **fields)
    assert response.status_code == 200, response.text
    return message_of(response.text)


def streamed(running, **fields):
    response = post(running, stream=True, **fields)
    assert response.status_code == 200, response.text
    return events_of(response.text)


def told(running, **fields):
    """What the chat template was given: messages and options."""
    answer(running, **fields)
    return running.text.rendered[-1]


def without_ids(content):
    return [{key: value for key, value in block.items() if key != "id"} for block in content]


CONTENT = [
    {"type": "thinking", "thinking": "Hm.", "signature": "unsigned"},
    {"type": "text", "text": "Let me see."},
    {"type": "tool_use", "name": "get_weather", "input": {"city": "Köln"}},
    {"type": "tool_use", "name": "get_weather", "input": {"city": "Oslo"}},
]


def test_an_answer_is_blocks_of_thoughts_text_and_calls():
    """In one piece, as Anthropic's own types have it; cached tokens are not counted twice."""
    message = answer(api(*bytes_of(TWO)), tools=TOOLS)
    calls = message["content"][2:]

    assert without_ids(message["content"]) == CONTENT
    assert message["stop_reason"] == "tool_use"
    assert message["id"].startswith("msg_")
    assert all(call["id"].startswith("toolu_") for call in calls)
    assert calls[0]["id"] != calls[1]["id"]
    assert message["usage"] == {
        "input_tokens": 3,
        "output_tokens": len(TWO),
        "cache_read_input_tokens": 2,
        "cache_creation_input_tokens": 0,
    }


def test_a_stream_has_anthropics_events_in_their_order():
    """To the letter, whatever pieces the text comes in."""
    events = streamed(api(*bytes_of(TWO)), tools=TOOLS)

    assert shape_of(events) == [
        "message_start",
        "content_block_start 0 thinking",
        "content_block_delta 0 thinking_delta",
        "content_block_delta 0 signature_delta",
        "content_block_stop 0",
        "content_block_start 1 text",
        "content_block_delta 1 text_delta",
        "content_block_stop 1",
        "content_block_start 2 tool_use",
        "content_block_delta 2 input_json_delta",
        "content_block_stop 2",
        "content_block_start 3 tool_use",
        "content_block_delta 3 input_json_delta",
        "content_block_stop 3",
        "message_delta",
        "message_stop",
    ]
    start, delta = events[0]["message"], events[-2]
    assert (start["content"], start["stop_reason"]) == ([], None)
    assert (start["usage"]["input_tokens"], start["usage"]["cache_read_input_tokens"]) == (3, 2)
    assert delta["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert delta["usage"]["output_tokens"] == len(TWO)


@pytest.mark.parametrize("says", [TWO, b"Just text.", b"", b"<think>Hm.</think>", CALL[:60]])
def test_the_client_puts_a_stream_together_to_the_whole_answer(says):
    """Anthropic's own package, from both."""
    running = api(*bytes_of(says) or [b""])

    async def both():
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(running.app)) as http:
            client = anthropic.AsyncAnthropic(base_url="http://api", api_key="k", http_client=http, max_retries=0)
            asked = {"model": "base", "max_tokens": 1000, "messages": [USER], "tools": TOOLS}
            async with client.messages.stream(**asked) as events:
                final = await events.get_final_message()
            return await client.messages.create(**asked), final

    whole, final = asyncio.run(both())
    contents = [[block.to_dict() for block in message.content] for message in (whole, final)]

    assert without_ids(contents[0]) == without_ids(contents[1])
    assert (whole.stop_reason, whole.usage) == (final.stop_reason, final.usage)


def test_the_clients_own_loop_over_tools_runs():
    """Its tool runner wants the server to keep the conversation, is told that it does not, and goes on without."""
    script = Scripts(Script(TWO), Script(b"It rains."))
    script.ready = Script.ready
    running = Api(script, ByteText(THINKS))

    @anthropic.beta_async_tool
    async def get_weather(city: str) -> str:
        """Tells it."""
        return f"rain in {city}"

    async def run():
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(running.app)) as http:
            client = anthropic.AsyncAnthropic(base_url="http://api", api_key="k", http_client=http, max_retries=0)
            asked = {"model": "base", "max_tokens": 1000, "messages": [USER], "tools": [get_weather]}
            return [message async for message in client.beta.messages.tool_runner(**asked)]

    *_, last = asyncio.run(run())
    messages, _ = running.text.rendered[-1]

    assert last.content[0].text == "It rains."
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool"]
    assert messages[1]["reasoning_content"] == "Hm."
    assert [message["content"] for message in messages[2:]] == ["rain in Köln", "rain in Oslo"]


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        (b'{"city": "K', {"INVALID_JSON": '{"city": "K'}),
        (b"{'city': 1}}</tool_call>", {"INVALID_JSON": "{'city': 1}"}),
        (b'{"x": ' + b"[" * 70 + b"]" * 70 + b"}}</tool_call>", {"INVALID_JSON": '{"x": ' + "[" * 70 + "]" * 70 + "}"}),
        (b"null}</tool_call>", {}),
    ],
)
def test_the_input_of_a_call_is_an_object_always(arguments, read):
    """What the model cut off or got wrong is in a field that says so, whole and streamed."""
    says = b'<tool_call>{"name": "get_weather", "arguments": ' + arguments
    [block] = answer(api(says), tools=TOOLS)["content"]
    events = streamed(api(says), tools=TOOLS)

    assert block["input"] == read
    [json_delta] = [event for event in events if (event.get("delta") or {}).get("type") == "input_json_delta"]
    assert json.loads(json_delta["delta"]["partial_json"]) == read


@pytest.mark.parametrize(
    ("fields", "engine", "expected"),
    [
        ({"stop_sequences": ["lo", "###"]}, {}, ("stop_sequence", "lo", "hel")),
        ({"stop_sequences": ["###"]}, {}, ("end_turn", None, "hello")),
        ({"max_tokens": 5}, {"finish": "length"}, ("max_tokens", None, "hello")),
        ({"max_tokens": 9000}, {"finish": "length"}, ("model_context_window_exceeded", None, "hello")),
    ],
)
def test_why_an_answer_ended(fields, engine, expected):
    """Which stop sequence it was; the limit that was asked for, or the context's, to which a larger one is cut."""
    message = answer(api(b"hello", **engine), **fields)
    delta = streamed(api(b"hello", **engine), **fields)[-2]["delta"]

    assert (message["stop_reason"], message["stop_sequence"], message["content"][0]["text"]) == expected
    assert (delta["stop_reason"], delta["stop_sequence"]) == expected[:2]


def test_a_stop_of_the_versions_profile_ends_a_turn():
    """The client has not asked for it, and is not told of it."""
    message = answer(Api(Script(b"hello"), profile=ServingProfile(stop=("lo",))))

    assert (message["stop_reason"], message["stop_sequence"]) == ("end_turn", None)
    assert message["content"] == [{"type": "text", "text": "hel"}]


def test_thoughts_that_are_not_to_be_shown_are_not():
    """Their block is there, and empty."""
    fields = {"thinking": {"type": "adaptive", "display": "omitted"}}

    assert answer(api(TWO), **fields)["content"][0] == {"type": "thinking", "thinking": "", "signature": "unsigned"}
    assert "content_block_delta 0 thinking_delta" not in shape_of(streamed(api(TWO), **fields))


def test_a_conversation_becomes_what_chat_templates_know():
    """Turns are joined, results of tools are messages, thoughts are reasoning, ids are the ones that the model saw."""
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "unsigned"}
    use = {"type": "tool_use", "id": "toolu_abcdefghi", "name": "get_weather", "input": {"city": "Köln"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_abcdefghi", "content": [{"type": "text", "text": "rain"}]}
    failed = {"type": "tool_result", "tool_use_id": "other", "content": "no such city", "is_error": True}
    cached = {"cache_control": {"type": "ephemeral"}}
    messages, options = told(
        api(b"ok"),
        system=[
            {"type": "text", "text": "x-anthropic-billing-header: cch=1"},
            {"type": "text", "text": "Be brief.", **cached},
            {"type": "text", "text": "Be kind."},
        ],
        messages=[
            USER,
            {"role": "user", "content": [{"type": "text", "text": "there", **cached}]},
            {"role": "assistant", "content": [thought, {"type": "redacted_thinking", "data": "x"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Let me see."}, use]},
            {"role": "user", "content": [result, failed, {"type": "text", "text": "well?"}]},
            {"role": "system", "content": "Hurry."},
        ],
        tools=[{**TOOLS[0], **cached, "type": "custom"}],
        thinking={"type": "enabled", "budget_tokens": 2000},
        output_config={"effort": "high"},
    )
    function = {"name": "get_weather", "arguments": {"city": "Köln"}}

    assert messages == [
        {"role": "system", "content": "Be brief.\nBe kind."},
        {"role": "user", "content": "hello\nthere"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [{"type": "function", "id": "abcdefghi", "function": function}],
            "reasoning_content": "Hm.",
        },
        {"role": "tool", "content": "rain", "tool_call_id": "abcdefghi"},
        {"role": "tool", "content": "Error: no such city", "tool_call_id": "other"},
        {"role": "user", "content": "well?"},
        {"role": "system", "content": "Hurry."},
    ]
    assert options.tools == [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "Tells it.",
                "parameters": {"type": "object", "properties": {}},
            },
        }
    ]
    assert options.variables == {
        "enable_thinking": True,
        "thinking": True,
        "thinking_budget": 2000,
        "reasoning_effort": "high",
    }


def test_a_last_message_of_the_assistant_is_continued():
    """It is a prefill, unless there is nothing in it."""
    _, options = told(api(b"ok"), messages=[USER, {"role": "assistant", "content": "Well,"}])
    messages, fresh = told(api(b"ok"), messages=[USER, {"role": "assistant", "content": ""}])

    assert (options.continue_final_message, options.add_generation_prompt) == (True, False)
    assert (fresh.continue_final_message, fresh.add_generation_prompt) == (False, True)
    assert messages == [USER]


@pytest.mark.parametrize(
    ("choice", "content", "max_calls"),
    [({"type": "auto"}, CONTENT, 2), ({"type": "auto", "disable_parallel_tool_use": True}, CONTENT[:3], 1)],
)
def test_calls_may_be_held_to_one(choice, content, max_calls):
    """disable_parallel_tool_use: what is called beyond the first is left out."""
    assert without_ids(answer(api(TWO), tools=TOOLS, tool_choice=choice)["content"]) == content


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (EngineUnavailable("down", retry_after_seconds=7), 503, "overloaded_error"),
        (GenerationFailed("deadline_exceeded", "too late"), 504, "timeout_error"),
        (GenerationFailed("who_knows", "a secret"), 500, "api_error"),
    ],
)
def test_what_fails_has_anthropics_body(error, status, kind):
    """With a status before the first text, as an event after it."""
    failed = post(api(error))
    *_, last = streamed(api(b"he", error))
    body = failed.json()

    assert (failed.status_code, body["type"], body["error"]["type"]) == (status, "error", kind)
    assert "secret" not in failed.text
    assert body["request_id"].startswith("req_")
    assert last["error"] == body["error"]
    assert set(last) == {"type", "error", "request_id"}
    assert failed.headers.get("retry-after") == ("7" if status == 503 else None)


def test_a_template_that_refuses_is_named_by_a_field_of_this_api():
    """As everything that the way of a chat completion refuses."""
    running = api(b"ok")

    def refuse(*_):
        raise TemplateError("no")

    running.text.render_chat = refuse
    refused = post(running).json()["error"]["message"]
    too_long = post(api(b"ok"), messages=[{"role": "user", "content": "x" * 5000}]).json()["error"]

    assert refused == "Invalid value for 'messages': no."
    assert too_long["message"].startswith("prompt is too long: This model's maximum context length is 4000 tokens")


def test_urls_and_bodies_that_are_none_have_anthropics_body_too():
    """What no route takes, what is no JSON, and what is too large."""
    with TestClient(api(b"ok").app) as http:
        answers = [
            http.get("/v1/messages"),
            http.post("/v1/messages/batches"),
            http.post("/v1/messages", content=b"{", headers={"content-type": "application/json"}),
            http.post("/v1/messages", content=b'"' + b"x" * (11 << 20) + b'"'),
        ]
        other = http.post("/v1/messages2")

    assert [(a.status_code, a.json()["error"]["type"]) for a in answers] == [
        (405, "invalid_request_error"),
        (404, "not_found_error"),
        (400, "invalid_request_error"),
        (413, "request_too_large"),
    ]
    assert other.json()["error"]["code"] == "unknown_url"

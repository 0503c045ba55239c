"""The official anthropic client works against a real server by changing the URL, the key and the model name."""

from __future__ import annotations

import json

import anthropic
import pytest
from anthropic_events import events_of, message_of, shape_of
from e2e.server import BASE, checked

USER = {"role": "user", "content": "Say something."}
CACHED = {"cache_control": {"type": "ephemeral"}}
GREEDY = {"temperature": 0}  # not in the client's own signature any more
CITY = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Bonn"]}}, "required": ["city"]}
TOOLS = [
    {"name": "get_weather", "description": "Tells it.", "input_schema": {**CITY, "additionalProperties": False}},
    {"name": "get_time", "input_schema": {"type": "object", "additionalProperties": False}},
]
CALLING = (
    "{% if tools %}{{ tools | length }} <tool_call>{% endif %}{% for message in messages %}<|im_start|>"
    "{{ message.role }}\n{{ message.content }}{% for call in message.tool_calls or [] %}{{ call.function | tojson }}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template that knows tools, and takes no more room than there is in the context of the tests' model."""


def anthropic_client(site, key):
    return anthropic.Anthropic(base_url=site.server.url, api_key=key, max_retries=0)


@pytest.fixture(scope="module")
def client(site):
    with anthropic_client(site, site.acme) as client:
        yield client


@pytest.fixture(scope="module")
def caller(site):
    """A client of a tenant whose adapter `caller` has a chat template of its own."""
    key = site.server.create_tenant("anthropic")
    site.server.upload(key, "caller", site.loras / "a")
    with site.server.http(key) as http:
        path = "/api/v1/adapters/caller/versions/1/profile"
        checked(http.put(path, json={"chat_template": CALLING}))
    with anthropic_client(site, key) as client:
        yield client


def ask(client, model=BASE, **options):
    asked = {"messages": [USER], "max_tokens": 24, "extra_body": GREEDY} | options
    return client.messages.create(model=model, **asked)


def post(site, path="/v1/messages", **fields):
    body = {"model": BASE, "messages": [USER], "max_tokens": 24, **GREEDY}
    with site.server.http(site.acme) as http:
        return http.post(path, json=body | fields)


@pytest.mark.parametrize(
    ("model", "canonical"), [(BASE, BASE), ("tickets", "acme/tickets@1"), ("acme/short", "acme/short@1")]
)
def test_a_message_is_what_a_chat_completion_says(site, client, model, canonical):
    """Base and adapters answer under their resolved names, with the same text and the same usage as by OpenAI's API."""
    chat = site.server.openai(site.acme).chat.completions.create(
        model=model, messages=[USER], max_tokens=24, temperature=0
    )

    raw = client.messages.with_raw_response.create(model=model, messages=[USER], max_tokens=24, extra_body=GREEDY)
    message = raw.parse()

    assert message.model == canonical
    assert message.content[0].text == chat.choices[0].message.content
    assert message.stop_reason == "max_tokens"
    assert message.usage.input_tokens + message.usage.cache_read_input_tokens == chat.usage.prompt_tokens
    assert message.usage.output_tokens == 24
    assert message._request_id == raw.headers["x-request-id"]
    assert raw.headers.get("x-adapter-version") == (None if model == BASE else canonical)


@pytest.mark.parametrize("model", [BASE, "tickets"])
def test_a_stream_adds_up_to_the_whole_message(site, client, model):
    """In the client, and on the wire: every event and its order are Anthropic's."""
    whole = message_of(post(site, model=model).text)
    events = events_of(post(site, model=model, stream=True).text)

    with client.messages.stream(model=model, messages=[USER], max_tokens=24, extra_body=GREEDY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()

    assert [{"type": "text", "text": text}] == whole["content"]
    assert (final.content[0].text, final.model, final.stop_reason) == (text, whole["model"], "max_tokens")
    assert final.usage.output_tokens == whole["usage"]["output_tokens"]
    assert shape_of(events) == [
        "message_start",
        "content_block_start 0 text",
        "content_block_delta 0 text_delta",
        "content_block_stop 0",
        "message_delta",
        "message_stop",
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_the_stop_sequence_that_was_found_is_told(client, stream):
    """Also where it lies across tokens; the text ends before it."""
    text = ask(client).content[0].text
    stop = text[5:9]
    options = {"messages": [USER], "max_tokens": 24, "stop_sequences": ["never said", stop], "extra_body": GREEDY}

    if stream:
        with client.messages.stream(model=BASE, **options) as events:
            message = events.get_final_message()
    else:
        message = client.messages.create(model=BASE, **options)

    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert message.content[0].text == text[: text.index(stop)]


def test_system_blocks_and_a_prefill_are_a_conversation(site, client):
    """The same as a system message and a continued final message of a chat completion."""
    chat = site.server.openai(site.acme).chat.completions.create(
        model="tickets",
        messages=[{"role": "system", "content": "Be\nbrief."}, USER, {"role": "assistant", "content": "Well"}],
        max_tokens=24,
        temperature=0,
        extra_body={"continue_final_message": True},
    )

    system = [
        {"type": "text", "text": "Be", **CACHED},
        {"type": "text", "text": "brief."},
    ]
    message = ask(client, "tickets", system=system, messages=[USER, {"role": "assistant", "content": "Well"}])

    assert message.content[0].text == chat.choices[0].message.content


def test_counted_tokens_are_those_that_a_message_reads(client, caller):
    """With a system prompt, a prefill, tools and results, by base and adapters with a template of their own."""
    used = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Oslo"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "rain"}
    conversation = [USER, {"role": "assistant", "content": [used]}, {"role": "user", "content": [result]}]
    asked = [
        (client, {"model": BASE, "messages": [USER]}),
        (client, {"model": "tickets", "messages": [USER, {"role": "assistant", "content": "Well"}], "system": "Hm."}),
        (caller, {"model": "caller", "messages": conversation, "tools": TOOLS}),
    ]

    for of, fields in asked:
        usage = of.messages.create(max_tokens=1, **fields).usage
        assert of.messages.count_tokens(**fields).input_tokens == usage.input_tokens + usage.cache_read_input_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_call_is_answered_and_goes_on(caller, stream):
    """tool_choice any and tool: a call whose input follows the schema; its result goes back, and text comes."""
    one = {"disable_parallel_tool_use": True}
    options = {"model": "caller", "messages": [USER], "max_tokens": 200, "tools": TOOLS, "extra_body": {"seed": 3}}

    def message(**more):
        if not stream:
            return caller.messages.create(**options, **more)
        with caller.messages.stream(**options, **more) as events:
            return events.get_final_message()

    named = message(tool_choice={"type": "tool", "name": "get_weather"})
    anyone = message(tool_choice={"type": "any", **one})
    [call] = named.content
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "rain"}]}
    conversation = [USER, {"role": "assistant", "content": named.content}, {"role": "user", "content": [result]}]
    options["messages"] = conversation
    told = message(tool_choice={"type": "none"})

    assert (named.stop_reason, call.name, call.input["city"] in ("Oslo", "Bonn")) == ("tool_use", "get_weather", True)
    assert [block.name in ("get_weather", "get_time") for block in anyone.content] == [True]
    assert [block.type for block in told.content] == ["text"]


def test_an_answer_is_held_to_a_schema(client):
    """`output_config.format`, which the client's newer versions send; one that is no schema is refused by that name."""

    def schema(value):
        return {"format": {"type": "json_schema", "schema": value}}

    message = ask(client, "tickets", max_tokens=200, output_config=schema(TOOLS[0]["input_schema"]))

    assert json.loads(message.content[0].text)["city"] in ("Oslo", "Bonn")
    with pytest.raises(anthropic.BadRequestError, match=r"'output_config\.format\.schema'"):
        ask(client, output_config=schema({"type": "nonsense"}))


def test_an_adapter_may_be_named_beside_the_model(client):
    """As in a chat completion."""
    beside = ask(client, extra_body=GREEDY | {"adapters": [{"model": "tickets"}]})

    assert beside.model == "acme/tickets@1"
    assert beside.content == ask(client, "tickets").content


@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_the_clients_exceptions(site, client, stream):
    """Each by its status, with Anthropic's body; names of other tenants are as unknown as any."""

    def error(kind, client=client, model=BASE, **options):
        with pytest.raises(kind) as refused:
            client.messages.create(**{"messages": [USER], "max_tokens": 5, "stream": stream, "model": model} | options)
        body = refused.value.body
        assert body["type"] == "error"
        assert body["request_id"] == refused.value.request_id
        return body["error"]["type"], body["error"]["message"]

    assert error(anthropic.AuthenticationError, client.copy(api_key="lk_wrong"))[0] == "authentication_error"
    operator = client.copy(api_key=site.server.admin_key)
    assert error(anthropic.PermissionDeniedError, operator)[0] == "permission_error"
    kind, message = error(anthropic.NotFoundError, model="globex/tickets")
    assert (kind, "globex/tickets" in message) == ("not_found_error", True)
    kind, message = error(anthropic.BadRequestError, max_tokens=0)
    assert (kind, "'max_tokens'" in message) == ("invalid_request_error", True)
    long = {"role": "user", "content": "long " * 200}
    assert error(anthropic.BadRequestError, messages=[long])[1].startswith("prompt is too long: ")


def test_the_context_bounds_an_answer_that_asks_for_more(client):
    """Agents ask for tens of thousands of tokens: they get what there is room for, and are told."""
    message = ask(client, max_tokens=10_000)
    usage = message.usage

    assert message.stop_reason == "model_context_window_exceeded"
    assert usage.input_tokens + usage.cache_read_input_tokens + usage.output_tokens == 512


def test_both_headers_and_agents_extras_are_taken(site):
    """x-api-key as older clients send it, a version, betas, and what agents add that asks for nothing."""
    body = {
        "model": "tickets",
        "max_tokens": 4,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi", **CACHED}]}],
        "metadata": {"user_id": "someone"},
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "service_tier": "auto",
    }
    headers = {"x-api-key": site.acme, "anthropic-version": "2023-06-01", "anthropic-beta": "claude-code-20250219"}
    with site.server.http() as http:
        del http.headers["authorization"]
        response = http.post("/v1/messages?beta=true", json=body, headers=headers)

    assert message_of(response.text)["usage"]["output_tokens"] == 4
    assert response.headers["request-id"] == response.headers["x-request-id"]

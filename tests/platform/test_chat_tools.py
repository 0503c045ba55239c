"""Tools and thoughts in chat, as the openai package sees them: what the model is told, and what its answer becomes."""

import json

import msgspec
import pytest
from litestar.testing import TestClient
from llguidance import LLTokenizer
from openai import OpenAI
from scripted_engine import Api, ByteText, Script

from loraplex.adapters.profile import ServingProfile
from loraplex.engine.grammars import compile_grammar
from loraplex.engine.templates import TemplateError, TemplateOptions
from loraplex.platform.openai import tool_formats, tool_grammar
from loraplex.platform.openai.chat_plan import plan_chat
from loraplex.platform.openai.chat_types import ChatCompletionRequest
from loraplex.platform.openai.tool_types import FunctionTool

HERMES = "{% if tools %}<tools>{% endif %}<tool_call>"
LLAMA3 = "{% if tools is not none %}<|python_tag|>{% endif %}"
MISTRAL = "{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]"
THINKS = HERMES + "{{ '</think>' }}"
NO_TOOLS = "{{ messages }}"

WEATHER = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
TOOLS = [{"type": "function", "function": WEATHER}]
USER = {"role": "user", "content": "hello"}

CALL = b'<tool_call>\n{"name": "get_weather", "arguments": {"city": "K\xc3\xb6ln"}}\n</tool_call>'
TWO = CALL + b"\n" + CALL.replace(b"K\xc3\xb6ln", b"Oslo")
SAYS = {
    HERMES: b"Let me see.\n" + TWO,
    LLAMA3: b'{"name": "get_weather", "parameters": {"city": "K\xc3\xb6ln"}}; '
    b'{"name": "get_weather", "parameters": {"city": "Oslo"}}',
    MISTRAL: b'[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "K\xc3\xb6ln"}}, '
    b'{"name": "get_weather", "arguments": {"city": "Oslo"}}]',
    NO_TOOLS: TWO,
    THINKS: b"<think>\nHm.\n</think>\n\nLet me see.\n" + TWO,
}


def bytes_of(says):
    return [bytes([byte]) for byte in says]


def api(template, *says, finish="stop", **settings):
    return Api(Script(*says, finish=finish), ByteText(template), **settings)


def ask(running, **fields):
    """The openai package's own view of one answer."""
    with TestClient(running.app) as http:
        client = OpenAI(base_url="http://testserver.local/v1", api_key="k", http_client=http, max_retries=0)
        return client.chat.completions.create(**{"model": "base", "messages": [USER], "tools": TOOLS} | fields)


def stream(running, **fields):
    with TestClient(running.app) as http:
        client = OpenAI(base_url="http://testserver.local/v1", api_key="k", http_client=http, max_retries=0)
        asked = {"model": "base", "messages": [USER], "tools": TOOLS} | fields
        with client.chat.completions.stream(**asked) as events:
            list(events)
            return events.get_final_completion()


def calls_of(message):
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or ()]


@pytest.mark.parametrize("template", SAYS)
@pytest.mark.parametrize("how", [ask, stream])
def test_calls_reach_the_openai_client(template, how):
    """In every format, whole and as a stream of single bytes that the client puts together."""
    choice = how(api(template, *bytes_of(SAYS[template]))).choices[0]

    assert calls_of(choice.message) == [("get_weather", {"city": "Köln"}), ("get_weather", {"city": "Oslo"})]
    assert choice.finish_reason == "tool_calls"
    assert (choice.message.content or None) == ("Let me see." if b"Let me" in SAYS[template] else None)
    assert len({call.id for call in choice.message.tool_calls}) == 2
    assert all(call.id.isalnum() and len(call.id) == 9 for call in choice.message.tool_calls)
    if template == THINKS:
        assert choice.message.reasoning_content == "Hm."


def test_a_stream_tells_the_name_first_and_then_the_arguments():
    """To the letter: role, text, the call's id, type and name, pieces of arguments, and why it ended."""
    says = [b"So. ", b'<tool_call>{"name": "get_weather", "arguments": {"ci', b'ty": 1', b"}}</tool_call>"]
    payloads, done = api(HERMES, *says).streamed(tools=TOOLS)
    deltas = [payload["choices"][0]["delta"] for payload in payloads]
    call_id = deltas[2]["tool_calls"][0]["id"]

    assert done
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"content": "So."},
        {
            "tool_calls": [
                {"index": 0, "function": {"arguments": "", "name": "get_weather"}, "id": call_id, "type": "function"}
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"ci'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": 'ty": 1'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]},
        {},
    ]
    assert [payload["choices"][0]["finish_reason"] for payload in payloads] == [None] * 6 + ["tool_calls"]


@pytest.mark.parametrize("how", [ask, stream])
def test_what_is_no_call_is_content(how):
    """A call that never was one: all of its text, and no failure. What breaks off at the limit says so."""
    broken = how(api(HERMES, b"So <tool_call>{'name'", b": 1}</tool_call>")).choices[0]
    cut = ask(api(HERMES, CALL[:60], finish="length")).choices[0]

    assert broken.message.content == "So <tool_call>{'name': 1}</tool_call>"
    assert (broken.message.tool_calls or None, broken.finish_reason) == (None, "stop")
    assert (cut.message.tool_calls[0].function.arguments, cut.finish_reason) == ('{"city": "K', "length")


@pytest.mark.parametrize("fields", [{"tools": None}, {"tools": []}, {"tool_choice": "none"}])
def test_without_tools_nothing_is_looked_for(fields):
    """Text that looks like a call is text, and the template gets no tools."""
    running = api(HERMES, CALL)

    body = running.chat(**{"tools": TOOLS} | fields).json()

    assert body["choices"][0]["message"]["content"] == CALL.decode()
    assert running.text.rendered[0][1] == TemplateOptions()


def test_one_call_where_no_more_are_wanted():
    """parallel_tool_calls false: the first one."""
    choice = ask(api(HERMES, TWO), parallel_tool_calls=False).choices[0]

    assert calls_of(choice.message) == [("get_weather", {"city": "Köln"})]


def test_thoughts_are_told_apart():
    """In a field of their own, whole and streamed, whether the answer or the prompt opens them."""
    says = bytes_of(b"<think>\nHm, so.\n</think>\n\nYes.")
    message = api(THINKS, *says).chat().json()["choices"][0]["message"]
    payloads, _ = api(THINKS, *says).streamed()
    deltas = [payload["choices"][0]["delta"] for payload in payloads]
    opened = api(THINKS, b"Hm.</think>Yes.").chat(messages=[{"role": "user", "content": "x<think>\n"}]).json()

    assert message == {
        "role": "assistant",
        "content": "Yes.",
        "refusal": None,
        "reasoning_content": "Hm, so.",
    }
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm, so."
    assert "".join(delta.get("content", "") for delta in deltas) == "Yes."
    assert opened["choices"][0]["message"]["reasoning_content"] == "Hm."


def test_a_template_gets_messages_and_tools_as_transformers_gives_them():
    """Arguments are objects, contents text or None, ids and names stay; what the request sets goes along."""
    running = api(HERMES, b"ok")
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
    odd = {"id": "c2", "type": "function", "function": {"name": "get_weather", "arguments": '{"city'}}
    messages = [
        {"role": "developer", "content": "Be brief.", "name": "boss"},
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call, odd], "refusal": None},
        {
            "role": "tool",
            "tool_call_id": "c1",
            "content": [{"type": "text", "text": "4"}, {"type": "text", "text": "°"}],
        },
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}], "reasoning_content": "Hm."},
        {"role": "assistant", "content": None, "refusal": "Never."},
        {"role": "assistant", "content": "It is"},
    ]

    response = running.chat(
        messages=messages,
        tools=[{"type": "function", "function": {"strict": True, "name": "f"}}],
        chat_template_kwargs={"enable_thinking": False},
        continue_final_message=True,
    )

    assert response.status_code == 200, response.text
    assert running.text.rendered == [
        (
            [
                {"role": "system", "content": "Be brief.", "name": "boss"},
                USER,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        call | {"function": {"name": "get_weather", "arguments": {"city": "Oslo"}}},
                        odd,
                    ],
                },
                {"role": "tool", "content": "4°", "tool_call_id": "c1"},
                {"role": "assistant", "content": "No.", "reasoning_content": "Hm."},
                {"role": "assistant", "content": "Never."},
                {"role": "assistant", "content": "It is"},
            ],
            TemplateOptions(
                tools=[
                    {
                        "type": "function",
                        "function": {"name": "f", "parameters": {"type": "object", "properties": {}}},
                    }
                ],
                add_generation_prompt=False,
                continue_final_message=True,
                variables={"enable_thinking": False},
            ),
        )
    ]


def test_a_model_without_tools_is_told_of_them():
    """In the system message; calls and results of the conversation become text that its template can write."""
    running = api(NO_TOOLS, b"ok")
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
    messages = [
        {"role": "system", "content": "Be brief."},
        USER,
        {"role": "assistant", "content": "Well.", "tool_calls": [call, call]},
        {"role": "tool", "tool_call_id": "c1", "content": "4"},
        {"role": "tool", "tool_call_id": "c1", "content": "5"},
    ]

    running.chat(messages=messages, tools=TOOLS)
    (system, user, assistant, results), options = running.text.rendered[0]

    assert options == TemplateOptions()
    assert system["content"].startswith("Be brief.\n\nYou can call functions.")
    assert json.dumps(WEATHER) in system["content"]
    assert user == USER
    written = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    assert assistant == {"role": "assistant", "content": f"Well.\n{written}\n{written}"}
    assert results == {
        "role": "user",
        "content": "<tool_response>\n4\n</tool_response>\n<tool_response>\n5\n</tool_response>",
    }


def test_a_template_that_refuses_system_messages_is_told_in_the_users():
    """Only where it says so itself."""

    class NoSystem(ByteText):
        def render_chat(self, messages, options):
            if messages[0]["role"] == "system":
                raise TemplateError("System role not supported", refused=True)
            return super().render_chat(messages, options)

    running = Api(Script(CALL), NoSystem(NO_TOOLS))

    assert calls_of(ask(running).choices[0].message)
    assert running.text.rendered[0][0][0]["content"].endswith("in plain text.\n\nhello")


@pytest.mark.parametrize("template", [HERMES, NO_TOOLS, THINKS])
@pytest.mark.parametrize("how", [ask, stream])
def test_forced_calls_are_a_list_that_the_engine_is_held_to(template, how):
    """The grammar is a schema of the tools that may be called, and what comes are calls, thoughts or not."""
    other = {"type": "function", "function": {"name": "add", "parameters": {"$ref": "#/$defs/A", "$defs": {"A": {}}}}}
    running = api(template, *bytes_of(b'[{"name": "add", "arguments": {"a": 1}}]'))

    choice = how(running, tools=[*TOOLS, other], tool_choice={"type": "function", "function": {"name": "add"}}).choices[
        0
    ]
    asked = running.engine.asked[0].grammar

    assert (calls_of(choice.message), choice.finish_reason) == ([("add", {"a": 1})], "tool_calls")
    assert asked.kind == "json_schema"
    assert json.loads(asked.source) == {
        "x-guidance": {"lenient": True},
        "type": "array",
        "minItems": 1,
        "maxItems": 1,
        "items": {
            "type": "object",
            "properties": {"name": {"const": "add"}, "arguments": {"$ref": "#/$defs/tool0"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        },
        "$defs": {"tool0": {"$ref": "#/$defs/tool0/$defs/A", "$defs": {"A": {}}}},
    }
    how(running, tools=[*TOOLS, other], tool_choice="required")
    required = json.loads(running.engine.asked[1].grammar.source)
    names = [call["properties"]["name"]["const"] for call in required["items"]["anyOf"]]
    assert (names, required["maxItems"]) == (["get_weather", "add"], tool_grammar.MAX_FORCED_CALLS)
    running.chat(tools=TOOLS)
    left_to_the_model = running.engine.asked[2].grammar
    assert (left_to_the_model is None) == (template != NO_TOOLS)
    if template == NO_TOOLS:  # held to our form, in which it has no practice
        assert left_to_the_model.kind == "lark"
        assert '"const": "get_weather"' in left_to_the_model.source


def allows(grammar, text):
    tokenizer = LLTokenizer("byte")
    tokens, matcher = tokenizer.tokenize_str(text), compile_grammar(tokenizer, grammar)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


GRAMMAR_CASES = [
    (
        "list",
        '[{"name": "add", "arguments": {"a": 1}}, {"name": "tree", "arguments": {"l": {"l": {}}, "v": {"v": 2}}}]',
        True,
    ),
    ("list", '[{"name": "tree", "arguments": {"v": {"v": "2', False),
    ("list", '[{"name": "no', False),
    ("list", "[]", False),
    ("list", '[{"name": "open", "arguments": {"a": 1, "b": 2}}]', False),
    ("list", '[{"name": "mixed", "arguments": {"a": 1, "b": 2}}]', True),
    ("tags", '<tool_call>{"name": "open", "arguments": {"a": 1, "b', False),
    ("tags", "Just <b>text</b> and <tool_ca", True),
    ("tags", 'So.\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call> Done.', True),
    ("tags", '<tool_call>{"name": "add", "arguments": {"a": "', False),
]


@pytest.mark.parametrize(("kind", "text", "is_allowed"), GRAMMAR_CASES)
def test_grammars_mean_what_they_say_to_llguidance(kind, text, is_allowed):
    """Calls follow the schemas of their tools, references inside of these included; all other text is free. What one
    tool lists is all that it takes, though another's schema is composed of several."""
    tree = {
        "type": "object",
        "properties": {"l": {"$ref": "#"}, "v": {"$ref": "#/$defs/V"}},
        "additionalProperties": False,
        "$defs": {"V": {"type": "object", "properties": {"v": {"type": "integer"}}, "additionalProperties": False}},
    }
    add = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
    named = {
        "add": add,
        "tree": tree,
        "open": {"type": "object", "properties": {"a": {"type": "integer"}}},
        "mixed": {"allOf": [{"properties": {"a": {"type": "integer"}}}, {"properties": {"b": {"type": "integer"}}}]},
    }
    functions = [{"name": name, "parameters": parameters} for name, parameters in named.items()]
    tools = msgspec.convert([{"type": "function", "function": each} for each in functions], list[FunctionTool])
    grammar = tool_grammar.forced_calls(tools, is_one=False) if kind == "list" else tool_grammar.tagged_calls(tools)
    assert allows(grammar, text) == is_allowed


def test_a_version_goes_by_its_own_template():
    """Settings speak of the base's; a template that an adapter brought decides for its answers."""

    def form_of(template, **settings):
        formats = {"tool_call_format": "auto", "reasoning_format": "auto"} | settings
        request = msgspec.convert({"model": "m", "messages": [USER], "tools": TOOLS}, ChatCompletionRequest)
        plan = plan_chat(request, ServingProfile(chat_template=template), ByteText(MISTRAL), base=ByteText(), **formats)
        return plan.form, plan.thinks, plan.options.tools is not None

    assert form_of(None) == (tool_formats.MISTRAL, False, True)
    assert form_of(None, tool_call_format="llama3") == (tool_formats.LLAMA3, False, True)
    assert form_of(THINKS, tool_call_format="llama3", reasoning_format="none") == (tool_formats.HERMES, True, True)
    assert form_of(NO_TOOLS, tool_call_format="llama3") == (tool_formats.HERMES, False, False)


def test_settings_decide_for_the_base():
    """A format that the template does not show, or thoughts that it does not mention."""
    says = b'[TOOL_CALLS][{"name": "get_weather", "arguments": {}}]'
    running = api("{% if tools %}{% endif %}", says, tool_call_format="mistral")
    thinking = api(NO_TOOLS, b"<think>Hm.</think>Yes.", reasoning_format="think")
    plain = api(THINKS, b"<think>Hm.</think>Yes.", reasoning_format="none")

    assert calls_of(ask(running).choices[0].message) == [("get_weather", {})]
    assert thinking.chat().json()["choices"][0]["message"]["reasoning_content"] == "Hm."
    assert plain.chat().json()["choices"][0]["message"]["content"] == "<think>Hm.</think>Yes."


CITY = {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"]}
AS_CITY = {"response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}}
ONE_OR_OTHER = {
    HERMES: ['<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'] * 2,
    NO_TOOLS: ['<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>'],
    LLAMA3: [
        '{"name": "get_weather", "parameters": {"city": "Rome"}}',
        '; {"name": "get_weather", "parameters": {"city": "Rome"}}',
    ],
    MISTRAL: ['[TOOL_CALLS]get_weather[ARGS]{"city": "Rome"}', '[TOOL_CALLS]get_weather{"city": "Rome"}'],
    MISTRAL + " ": ['[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Rome"}}]'],
}


@pytest.mark.parametrize("template", ONE_OR_OTHER)
def test_an_answer_in_a_form_may_be_calls_instead(template):
    """As OpenAI means it: what has the form, or calls and nothing else, in the form that the model has learned."""
    calls = ONE_OR_OTHER[template]
    running = api(template, "".join(calls).encode())

    choice = ask(running, **AS_CITY).choices[0]
    (asked,) = running.engine.asked

    assert calls_of(choice.message) == [("get_weather", {"city": "Rome"})] * len(calls)
    assert choice.finish_reason == "tool_calls"
    assert allows(asked.grammar, "".join(calls))
    assert allows(asked.grammar, '{"city": "Oslo"}')
    for text in ("Oslo", '{"city": "Rome"}', "".join(calls) + '{"city": "Oslo"}', calls[0].replace("get_w", "w")):
        assert not allows(asked.grammar, text)
    ask(running, **AS_CITY, parallel_tool_calls=False)
    assert allows(running.engine.asked[1].grammar, calls[0])
    assert len(calls) == 1 or not allows(running.engine.asked[1].grammar, "".join(calls))


@pytest.mark.parametrize("form", [{"structured_outputs": {"regex": "Oslo|Rome"}}, AS_CITY])
def test_a_choice_decides_what_a_form_is_of(form):
    """none: the answer alone; required: calls alone, which are then the answer."""
    running = api(HERMES, b"Oslo")
    running.chat(tools=TOOLS, **form)
    running.chat(tools=TOOLS, tool_choice="none", **form)
    running.chat(tools=TOOLS, tool_choice="required", **form)
    either, answer, calls = (asked.grammar for asked in running.engine.asked)

    assert either.otherwise == answer
    assert (answer.otherwise, calls.otherwise) == (None, None)
    assert allows(calls, '[{"name": "get_weather", "arguments": {}}]')


def test_an_answer_in_a_form_has_no_thoughts():
    """It has the form from its first token on, wherever the template has opened a thought."""
    opened = [{"role": "user", "content": "x<think>\n"}]
    running = api(THINKS, b'{"city": "Oslo"}')
    message = running.chat(messages=opened, **AS_CITY).json()["choices"][0]["message"]

    assert (message["content"], "reasoning_content" in message) == ('{"city": "Oslo"}', False)


def test_what_a_schema_asks_that_cannot_be_enforced_is_passed_over():
    """In tools, for which `strict` changes nothing; and names of arguments may be JSON schema's own words."""
    odd = {"type": "object", "properties": {"default": {"$ref": "#/$defs/V"}}, "uniqueItems": True,
           "$defs": {"V": {"const": 1}}}  # fmt: skip
    tools = msgspec.convert([{"type": "function", "function": {"name": "f", "parameters": odd}}], list[FunctionTool])
    call = '{"name": "f", "arguments": {"default": 1}}'

    assert allows(tool_grammar.tagged_calls(tools), f"<tool_call>{call}</tool_call>")
    assert not allows(tool_grammar.tagged_calls(tools), f"<tool_call>{call.replace('1', '2')}</tool_call>")
    assert allows(tool_grammar.forced_calls(tools, is_one=True), f"[{call}]")


def test_a_marker_may_be_one_token():
    """As which the model writes it, where the base has it; as text it counts as well."""
    tools = msgspec.convert(TOOLS, list[FunctionTool])
    grammar = tool_grammar.calls_alone(tool_formats.MISTRAL, tools, is_one=True, token_id=lambda _: 0)
    tokenizer = LLTokenizer("byte")
    call = tokenizer.tokenize_str('[{"name": "get_weather", "arguments": {}}]')

    for opening in ([0], tokenizer.tokenize_str("[TOOL_CALLS]")):
        tokens = [*opening, *call]
        assert compile_grammar(tokenizer, grammar).try_consume_tokens(tokens) == len(tokens)


def test_a_conversation_is_tokenized_as_it_would_run():
    """Calls and results too, for a template that knows none; and what chat refuses is refused by the same field."""
    running = api(NO_TOOLS, b"ok")
    call = {"id": "c1", "type": "function", "function": WEATHER | {"arguments": "{}"}}
    del call["function"]["parameters"]
    messages = [
        USER,
        {"role": "assistant", "tool_calls": [call], "annotations": []},
        {"role": "tool", "tool_call_id": "c1", "content": "4"},
    ]
    running.chat(messages=messages)
    with TestClient(running.app) as http:
        tokenized = http.post("/tokenize", json={"messages": messages}).json()
        refused = http.post("/tokenize", json={"messages": [{"role": "user"}]})

    assert running.text.rendered[1] == running.text.rendered[0]
    assert tokenized["tokens"] == running.engine.asked[0].prompt
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages[0].content")

"""What is read of Anthropic's Messages API is bounded and complete: a field is served, neutral, or refused by name."""

import json

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loraplex.platform.anthropic.errors import error_body
from loraplex.platform.anthropic.message_types import CountTokensRequest, MessagesRequest
from loraplex.platform.anthropic.translation import chat_request
from loraplex.platform.anthropic.unserved import UNSERVED
from loraplex.platform.errors import to_api_error
from loraplex.platform.openai.body import read_body

USER = {"role": "user", "content": "hi"}
TOOL = {"name": "f", "input_schema": {"type": "object"}}


def read(target=MessagesRequest, **fields):
    body = {"model": "m", "messages": [USER]} | ({"max_tokens": 5} if target is MessagesRequest else {}) | fields
    return chat_request(read_body(json.dumps(body).encode(), target))


def refusal(target=MessagesRequest, **fields):
    """What the client is told."""
    with pytest.raises(Exception) as refused:
        read(target, **fields)
    error = to_api_error(refused.value)
    assert error.status == 400
    return error_body(error, "r")["error"]["message"]


def said(role, *blocks):
    return {"messages": [{"role": role, "content": list(blocks)}, USER]}


def final(*blocks):
    return {"messages": [USER, {"role": "assistant", "content": list(blocks)}]}


def nested(depth):
    return {"x": nested(depth - 1)} if depth else {}


def text(value, **more):
    return {"type": "text", "text": value, **more}


USE = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
IMAGE = {"type": "image", "source": {"type": "url", "url": "https://x"}}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": 0}, "'max_tokens'"),
        ({"max_tokens": None}, "'max_tokens'"),
        ({"messages": []}, "'messages'"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "'messages[0].role'"),
        ({"messages": [{"role": "user"}]}, "'messages[0].content'"),
        ({"messages": [{"role": "user", "content": []}]}, "'messages[0].content'"),
        ({"temperature": 1.1}, "'temperature'"),
        ({"top_p": 0}, "'top_p'"),
        ({"top_k": "5"}, "'top_k'"),
        ({"stop_sequences": [""]}, "'stop_sequences[0]'"),
        ({"stop_sequences": ["a"] * 33}, "'stop_sequences'"),
        ({"stop": "x"}, "Unknown parameter: 'stop'."),
        ({"system": [{"type": "text"}]}, "'system[0].text'"),
        ({"system": [IMAGE]}, "'system[0]'"),
        (said("user", IMAGE), "'messages[0].content[0]': this server reads text alone"),
        (said("user", {"type": "document", "source": {}}), "'document'"),
        (
            said("user", {"type": "tool_result", "tool_use_id": "c", "content": [IMAGE]}),
            "'messages[0].content[0].content[0]'",
        ),
        (said("user", USE), "'messages[0].content[0]'"),
        (said("assistant", {"type": "tool_result", "tool_use_id": "c"}), "'messages[0].content[0]'"),
        (said("assistant", {**USE, "input": "{}"}), "'messages[0].content[0].input'"),
        (said("assistant", {**USE, "input": nested(70)}), "'messages[0].content[0].input'"),
        (said("user", text("x", citations=[{}])), "'messages[0].content[0].citations'"),
        (final(USE), "'messages[1].content'"),
        (final({"type": "thinking", "thinking": "Hm."}), "'messages[1].content'"),
        (final(text("Well, ")), "'messages[1].content': the final assistant content cannot end with trailing"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 3}]}, "'tools[0].type'"),
        ({"tools": [{"name": "f"}]}, "'tools[0].input_schema'"),
        ({"tools": [TOOL, {**TOOL, "name": "a b"}]}, "'tools[1].name'"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name: "),
        ({"tools": [{**TOOL, "input_schema": nested(70)}]}, "tools[0].input_schema: "),
        ({"tools": [{**TOOL, "defer_loading": True}]}, "'tools[0].defer_loading'"),
        ({"tools": [{**TOOL, "parameters": {}}]}, "'tools[0].parameters'"),
        ({"tool_choice": {"type": "any"}}, "'tool_choice'"),
        ({"tool_choice": {"type": "tool"}, "tools": [TOOL]}, "'tool_choice'"),
        ({"tool_choice": {"type": "tool", "name": "g"}, "tools": [TOOL]}, "'tool_choice'"),
        ({"tool_choice": "auto"}, "'tool_choice'"),
        ({"thinking": {"type": "on"}}, "'thinking.type'"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "'thinking.budget_tokens'"),
        ({"metadata": {"user_id": "u" * 513}}, "'metadata.user_id'"),
        ({"output_config": {"format": {"type": "json"}}}, "'output_config.format.type'"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "'context_management'"),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_name(fields, words):
    """Every refusal names the field as this API calls it."""
    assert words in refusal(**fields)


@pytest.mark.parametrize("target", [MessagesRequest, CountTokensRequest])
@pytest.mark.parametrize("field", sorted(UNSERVED))
def test_a_field_that_is_not_served_is_neutral_or_refused(field, target):
    """No field is ignored in silence."""
    for neutral in UNSERVED[field]:
        read(target, **{field: neutral})
    assert f"'{field}'" in refusal(target, **{field: {"something": 1}})


def test_null_is_the_same_as_leaving_a_field_out():
    """For every field that may be left out."""
    optional = [field.name for field in msgspec.structs.fields(MessagesRequest) if not field.required]

    assert read(**dict.fromkeys(optional)) == read()


def test_options_reach_the_chat_completion():
    """Those that are called the same, and those that are not."""
    asked = read(
        temperature=0.5,
        top_k=5,
        stop_sequences=["x"],
        metadata={"user_id": "u"},
        adapters=[{"model": "a", "weight": 0.5}],
        tools=[TOOL],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}},
        thinking={"type": "disabled"},
    )

    assert (asked.temperature, asked.top_k, asked.stop_strings, asked.user) == (0.5, 5, ("x",), "u")
    assert (asked.adapters[0].weight, asked.tool_choice, asked.parallel_tool_calls) == (0.5, "required", False)
    assert asked.response_format.json_schema.schema == {"type": "object"}
    assert asked.chat_template_kwargs == {"enable_thinking": False, "thinking": False}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from([USE, IMAGE, TOOL, text("x ")]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = sorted({*MessagesRequest.__struct_fields__, *UNSERVED})


@settings(suppress_health_check=[HealthCheck.too_slow])  # its first values take seconds on a busy machine
@given(body=st.dictionaries(st.sampled_from(FIELDS), JSON), content=JSON)
def test_any_body_is_read_or_refused_with_a_400(body, content):
    """No value in any field makes anything else happen."""
    body = {"model": "m", "max_tokens": 3, "messages": [{"role": "assistant", "content": content}], **body}
    status = 200
    try:
        chat_request(read_body(json.dumps(body).encode(), MessagesRequest))
    except Exception as error:
        status = to_api_error(error).status
    assert status in (200, 400)

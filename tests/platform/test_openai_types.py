"""What is read from a request is bounded and complete: a field is served, neutral, or refused by name."""

import itertools
import json

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loraplex.platform.errors import ApiError, to_api_error
from loraplex.platform.openai.body import read_body
from loraplex.platform.openai.chat_types import ChatCompletionRequest, ChatMessage
from loraplex.platform.openai.completion_types import CompletionRequest
from loraplex.platform.openai.stop_strings import StopStrings
from loraplex.platform.openai.unserved import UNSERVED, UNSERVED_IN_MESSAGES

USER = {"role": "user", "content": "hi"}


def chat(**fields):
    return read_body(json.dumps({"model": "m", "messages": [USER], **fields}).encode(), ChatCompletionRequest)


def completion(**fields):
    return read_body(json.dumps({"model": "m", "prompt": "hi", **fields}).encode(), CompletionRequest)


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def message(**fields):
    return {"messages": [{"role": "assistant", "content": "hi", **fields}]}


def tools(*functions):
    return {"tools": [{"type": "function", "function": function} for function in functions]}


def choose(name):
    return {"type": "function", "function": {"name": name}}


def nested(depth):
    return {"x": nested(depth - 1)} if depth else {}


def refusal(make, **fields):
    """(code, param) of the ApiError that the client would see."""
    with pytest.raises(Exception) as refused:
        make(**fields)
    error = to_api_error(refused.value)
    assert error.status == 400
    return error.code, error.param


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 0}, ("invalid_value", "max_tokens")),
        ({"max_tokens": -1}, ("invalid_value", "max_tokens")),
        ({"max_tokens": 10**9}, ("invalid_value", "max_tokens")),
        ({"max_tokens": 1.5}, ("invalid_type", "max_tokens")),
        ({"max_tokens": True}, ("invalid_type", "max_tokens")),
        ({"max_tokens": 3, "max_completion_tokens": 4}, ("invalid_value", "max_tokens")),
        ({"temperature": "hot"}, ("invalid_type", "temperature")),
        ({"temperature": "1"}, ("invalid_type", "temperature")),
        ({"temperature": -0.1}, ("invalid_value", "temperature")),
        ({"temperature": 2.1}, ("invalid_value", "temperature")),
        ({"top_p": 0}, ("invalid_value", "top_p")),
        ({"min_p": 2}, ("invalid_value", "min_p")),
        ({"top_k": -2}, ("invalid_value", "top_k")),
        ({"seed": 1 << 70}, ("invalid_value", "seed")),
        ({"stop": ["a"] * 33}, ("invalid_value", "stop")),
        ({"stop": ""}, ("invalid_value", "stop")),
        ({"stop": [""]}, ("invalid_value", "stop[0]")),
        ({"stop_token_ids": [-1]}, ("invalid_value", "stop_token_ids[0]")),
        ({"presence_penalty": 2.1}, ("invalid_value", "presence_penalty")),
        ({"frequency_penalty": -2.1}, ("invalid_value", "frequency_penalty")),
        ({"repetition_penalty": 0}, ("invalid_value", "repetition_penalty")),
        ({"logit_bias": {"a": 1}}, ("invalid_type", "logit_bias")),
        ({"logit_bias": {"-1": 1}}, ("invalid_value", "logit_bias")),
        ({"logit_bias": {"5": "x"}}, ("invalid_type", "logit_bias[...]")),
        ({"logit_bias": {str(i): 1 for i in range(5000)}}, ("invalid_value", "logit_bias")),
        ({"allowed_token_ids": []}, ("invalid_value", "allowed_token_ids")),
        ({"bad_words": ["w"] * 129}, ("invalid_value", "bad_words")),
        ({"bad_words": [""]}, ("invalid_value", "bad_words[0]")),
        ({"min_tokens": -1}, ("invalid_value", "min_tokens")),
        ({"logprobs": 3}, ("invalid_type", "logprobs")),
        ({"logprobs": True, "top_logprobs": 21}, ("invalid_value", "top_logprobs")),
        ({"top_logprobs": 2}, ("invalid_value", "top_logprobs")),
        ({"prompt_logprobs": -1}, ("invalid_value", "prompt_logprobs")),
        ({"prompt_logprobs": 1, "stream": True}, ("invalid_value", "prompt_logprobs")),
        ({"truncate_prompt_tokens": 0}, ("invalid_value", "truncate_prompt_tokens")),
        ({"priority": -1}, ("invalid_value", "priority")),
        ({"timeout": 0}, ("invalid_value", "timeout")),
        ({"n": 0}, ("invalid_value", "n")),
        ({"n": 1 << 30}, ("invalid_value", "n")),
        ({"best_of": 2}, ("unsupported_parameter", "best_of")),
        ({"stream": "yes"}, ("invalid_type", "stream")),
        ({"stream_options": {"include_usage": True}}, ("invalid_value", "stream_options")),
        ({"stream": True, "stream_options": {"x": 1}}, ("unknown_parameter", "stream_options.x")),
        ({"user": "u" * 513}, ("invalid_value", "user")),
        ({"cache_salt": ""}, ("invalid_value", "cache_salt")),
        ({"model": None}, ("invalid_type", "model")),
        ({"messages": []}, ("invalid_value", "messages")),
        ({"messages": "hi"}, ("invalid_type", "messages")),
        ({"messages": [USER, {"role": "user"}]}, ("missing_required_parameter", "messages[1].content")),
        ({"messages": [{"role": "user", "content": None}]}, ("missing_required_parameter", "messages[0].content")),
        ({"messages": [{"role": "function", "content": "x"}]}, ("invalid_value", "messages[0].role")),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            ("invalid_value", "messages[0].content[0].type"),
        ),
        ({"colour": "red"}, ("unknown_parameter", "colour")),
        ({"messages": [{"role": "tool", "content": "x"}]}, ("missing_required_parameter", "messages[0].tool_call_id")),
        (message(role="tool", content=None, tool_call_id="c"), ("missing_required_parameter", "messages[0].content")),
        (message(role="user", tool_call_id="c"), ("invalid_value", "messages[0].tool_call_id")),
        (message(role="user", tool_calls=[CALL]), ("invalid_value", "messages[0].tool_calls")),
        (message(role="system", refusal="no"), ("invalid_value", "messages[0].refusal")),
        (
            message(role="user", content=[{"type": "refusal", "refusal": "no"}]),
            ("invalid_value", "messages[0].content"),
        ),
        (message(content=None, tool_calls=[]), ("missing_required_parameter", "messages[0].content")),
        (message(tool_calls=[{}]), ("missing_required_parameter", "messages[0].tool_calls[0].id")),
        (message(tool_calls=[CALL] * 129), ("invalid_value", "messages[0].tool_calls")),
        (message(tool_calls=[{**CALL, "type": "custom"}]), ("invalid_value", "messages[0].tool_calls[0].type")),
        (message(name="n" * 257), ("invalid_value", "messages[0].name")),
        (tools({"name": "a b"}), ("invalid_value", "tools[0].function.name")),
        (tools({"name": "f", "return": {}}), ("unknown_parameter", "tools[0].function.return")),
        (tools({"name": "f", "parameters": []}), ("invalid_type", "tools[0].function.parameters")),
        (tools({"name": "f", "parameters": nested(99)}), ("invalid_value", "tools[0].function.parameters")),
        (tools({"name": "f", "parameters": {"x": "y" * 600_000}}), ("invalid_value", "tools")),
        (tools({"name": "f"}, {"name": "f"}), ("invalid_value", "tools[1].function.name")),
        (tools(*({"name": f"f{n}"} for n in range(129))), ("invalid_value", "tools")),
        ({"tools": [{"type": "custom", "custom": {}}]}, ("invalid_value", "tools[0].type")),
        ({"tool_choice": "required"}, ("invalid_value", "tool_choice")),
        ({"tool_choice": "any"}, ("invalid_value", "tool_choice")),
        (tools({"name": "f"}) | {"tool_choice": choose("g")}, ("invalid_value", "tool_choice")),
        ({"parallel_tool_calls": "yes"}, ("invalid_type", "parallel_tool_calls")),
        ({"chat_template_kwargs": {"tokenize": True}}, ("invalid_value", "chat_template_kwargs")),
        ({"chat_template_kwargs": {"messages": "x"}}, ("invalid_value", "chat_template_kwargs")),
        ({"chat_template_kwargs": {"thinking": []}}, ("invalid_type", "chat_template_kwargs[...]")),
        ({"chat_template_kwargs": {"date_string": "x" * 257}}, ("invalid_value", "chat_template_kwargs[...]")),
        ({"continue_final_message": True}, ("invalid_value", "continue_final_message")),
        (message(tool_calls=[CALL]) | {"continue_final_message": True}, ("invalid_value", "continue_final_message")),
        (
            message() | {"continue_final_message": True, "add_generation_prompt": True},
            ("invalid_value", "add_generation_prompt"),
        ),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_name(fields, expected):
    """Every bound of a chat request, with the code and the path that the client sees."""
    assert refusal(chat, **fields) == expected


@pytest.mark.parametrize("make", [chat, completion])
@pytest.mark.parametrize("field", sorted(UNSERVED))
def test_a_field_that_is_not_served_is_neutral_or_refused(field, make):
    """No field of OpenAI's API is ignored in silence."""
    for neutral in UNSERVED[field]:
        make(**{field: neutral})
    if field not in {chat: ChatCompletionRequest, completion: CompletionRequest}[make].__struct_fields__:
        assert refusal(make, **{field: {"something": 1}}) == ("unsupported_parameter", field)


def test_served_and_unserved_fields_are_different_ones():
    """What no endpoint refuses has no place among the unserved."""
    assert not set(ChatCompletionRequest.__struct_fields__) & set(CompletionRequest.__struct_fields__) & UNSERVED.keys()
    assert not set(ChatMessage.__struct_fields__) & UNSERVED_IN_MESSAGES.keys()


def test_null_is_the_same_as_leaving_a_field_out():
    """OpenAI's clients send null for what was not given."""
    optional = [f.name for f in msgspec.structs.fields(ChatCompletionRequest) if not f.required]

    assert chat(**dict.fromkeys(optional)) == chat()


def test_an_answer_of_the_client_library_can_be_sent_back():
    """The openai package dumps an assistant's message with all its empty fields."""
    message = {"role": "assistant", "content": "yes", "refusal": None, "tool_calls": None, "annotations": []}

    assert chat(messages=[USER, message]).messages[1].content == "yes"


def test_parts_are_joined_and_developers_are_systems():
    """Chat templates know strings and the old role."""
    parts = [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]
    request = chat(messages=[{"role": "developer", "content": parts}, USER])

    assert request.messages[0].for_template() == {"role": "system", "content": "be brief"}


def test_prompts_are_texts_or_token_ids_one_or_several():
    """A list of token ids is one prompt; where they stand among prompts, the message says how to write them."""
    assert completion(prompt="hi").prompts == ["hi"]
    assert completion(prompt=["hi"]).prompts == ["hi"]
    assert completion(prompt=["a", "b"]).prompts == ["a", "b"]
    assert completion(prompt=[5, 6]).prompts == [[5, 6]]
    assert completion(prompt=[[5, 6], [7]]).prompts == [[5, 6], [7]]
    assert refusal(lambda: completion(prompt=[5, "b"]).prompts) == ("invalid_value", "prompt")
    assert refusal(completion, prompt=[[5], [-1]]) == ("invalid_value", "prompt[1][0]")
    for prompt in ([], [[]], [[[5]]], [True], [-1], {"a": 1}):
        assert refusal(completion, prompt=prompt)[0] in ("invalid_value", "invalid_type")


def test_a_suffix_is_refused_with_the_reason():
    """And with what can be done instead."""
    with pytest.raises(ApiError, match="fill-in-the-middle"):
        completion(suffix="end")


@pytest.mark.parametrize(
    "fields", [{"n": 3, "best_of": 2}, {"best_of": 0}, {"n": 1, "best_of": 2, "stream": True}, {"best_of": 1 << 30}]
)
def test_a_best_of_without_sense_is_refused(fields):
    """Fewer candidates than choices, none, or a stream of what is known at the end."""
    assert refusal(completion, **fields) == ("invalid_value", "best_of")


def test_no_more_candidates_than_choices_ask_for_nothing():
    """As clients send it that always send the field."""
    assert completion(n=2, best_of=2, stream=True).best_of == 2


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b'"\xff"', b'"\\ud800"', b"[" * 100_000, b'{"a":' * 100_000, b"1e999", b"NaN"]
)
def test_what_is_not_json_is_refused(body):
    """Truncated, not UTF-8, nested too deeply, numbers that do not exist."""
    assert refusal(lambda: read_body(body, ChatCompletionRequest))[0] in ("invalid_json", "invalid_value")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
FIELDS = sorted({*ChatCompletionRequest.__struct_fields__, *CompletionRequest.__struct_fields__, *UNSERVED})


@settings(suppress_health_check=[HealthCheck.too_slow])  # its first values take seconds on a busy machine
@given(
    target=st.sampled_from([ChatCompletionRequest, CompletionRequest]),
    body=st.dictionaries(st.sampled_from(FIELDS), JSON),
)
def test_any_body_is_read_or_refused_with_a_400(target, body):
    """No value in any field makes anything else happen."""
    valid = {"model": "m", "messages": [USER]} if target is ChatCompletionRequest else {"model": "m", "prompt": "p"}
    status = 200
    try:
        read_body(json.dumps({**valid, **body}).encode(), target)
    except Exception as error:
        status = to_api_error(error).status
    assert status in (200, 400)


@given(
    text=st.text("abc", max_size=40),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 40)),
)
def test_stop_strings_do_not_depend_on_the_pieces(text, stops, cuts):
    """However the text is cut, what is passed on ends where the first stop string is complete and begins."""
    finder = StopStrings(tuple(stops))
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    passed = "".join(finder.push(text[a:b]) for a, b in itertools.pairwise(edges)) + finder.flush()

    whole = StopStrings(tuple(stops))
    by_character = "".join(whole.push(character) for character in text) + whole.flush()

    if finder.found:
        assert not any(stop in passed for stop in stops)
        assert text.startswith(passed + finder.found)
        assert finder.found in stops
    else:
        assert passed == text
        assert not any(stop in text for stop in stops)
    assert bool(whole.found) == bool(finder.found)
    assert len(by_character) >= len(passed)

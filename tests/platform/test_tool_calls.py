"""Calls and thoughts in the text of answers: read the same however it is cut, and nothing that is said gets lost."""

import json
import re
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loraplex.platform.openai.answer_parts import ArgumentsGrown, CallBegun, Chain, Said, Thought, joined
from loraplex.platform.openai.reasoning import ThoughtReader
from loraplex.platform.openai.tool_calls import ToolCallReader
from loraplex.platform.openai.tool_formats import HERMES, LIST, LLAMA3, MISTRAL, traits_of

NAMES = ("get_weather", "add")
FORMATS = {"hermes": HERMES, "llama3": LLAMA3, "mistral": MISTRAL, "list": LIST}
READERS = {name: partial(ToolCallReader, form, NAMES) for name, form in FORMATS.items()}
READERS["thoughts"] = partial(ThoughtReader, is_thinking=False)
READERS["thoughts and calls"] = lambda: Chain(ThoughtReader(is_thinking=True), ToolCallReader(HERMES, NAMES))

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.text(max_size=5), JSON, max_size=3)
SCRAPS = st.sampled_from(
    [
        *(
            "<tool_call>",
            "</tool_call>",
            "[TOOL_CALLS]",
            "[TOOL_CALLS]add[ARGS]{",
            "[ARGS]",
            "<|python_tag|>",
            "<think>",
            "</think>",
            "<tool",
            "[TOOL",
            "</",
        ),
        *('{"name": "add", "arguments": {"a": 1}}', '{"name": "add", "parameters": ', '{"name":', '"add"', '"a\\"}"'),
        *('{"arguments": {"b": [1, "}"]}, "name": "add"}', '{"name": "no"}', '{"name": "add", "arguments": "{}"}'),
        *("{", "}", "[", "]", ",", ":", ";", '"', "\\", " ", "\n", "null", "x", "text", "é"),
    ]
)


def read(reader, pieces):
    """All parts, with neighbours of one kind joined."""
    return joined([part for piece in pieces for part in reader.push(piece)] + reader.finish())


def calls_in(parts):
    """[(name, arguments as text)]"""
    names = [part.name for part in parts if isinstance(part, CallBegun)]
    grown = dict.fromkeys(range(len(names)), "")
    for part in parts:
        if isinstance(part, ArgumentsGrown):
            grown[part.index] += part.text
    return list(zip(names, grown.values(), strict=True))


def said_in(parts, kind=Said):
    return "".join(part.text for part in parts if isinstance(part, kind))


def by_cuts(text, cuts):
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in pairwise(edges)]


@pytest.mark.parametrize("name", sorted(READERS))
@given(text=st.lists(SCRAPS, max_size=14).map("".join), cuts=st.lists(st.integers(0, 500), max_size=8))
@example(text='<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>', cuts=[11, 12, 50])
def test_what_is_read_does_not_depend_on_the_cuts(name, text, cuts):
    """Any text, tags and JSON in pieces and out of place: by pieces, by characters and as a whole."""
    whole = read(READERS[name](), [text])

    assert read(READERS[name](), by_cuts(text, cuts)) == whole
    assert read(READERS[name](), list(text)) == whole


@pytest.mark.parametrize("name", sorted(READERS))
@given(text=st.lists(SCRAPS, max_size=14).map("".join))
def test_text_without_calls_and_thoughts_is_left_alone(name, text):
    """What is no call is said to the letter, however much it looks like one."""
    parts = read(READERS[name](), [text])

    if all(isinstance(part, Said) for part in parts) and "<think>" not in text and name != "thoughts and calls":
        assert said_in(parts) == text


def written(form, calls):
    """Calls as models of this format write them."""
    objects = [{"name": name, "parameters" if form is LLAMA3 else "arguments": a} for name, a in calls]
    if form is HERMES:
        return "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in objects)
    if form is LLAMA3:
        return "; ".join(map(json.dumps, objects))
    return f"{form.opening}{json.dumps(objects)}"


def reference(form, text):
    """Text before the first call, and the calls: from the whole text, with a JSON parser."""
    opening = re.escape(form.opening)
    before, block = (
        ("", text) if form in (LLAMA3, LIST) else [part.strip() for part in re.split(opening, text, maxsplit=1)]
    )
    calls, decoder, place = [], json.JSONDecoder(), 0
    while (place := block.find("{", place)) >= 0:
        call, place = decoder.raw_decode(block, place)
        calls.append((call["name"], call.get("arguments", call.get("parameters"))))
    return before, calls


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
@given(
    before=st.sampled_from(["", "Let me see.", "A <b> and a [list]"]),
    calls=st.lists(st.tuples(st.sampled_from(NAMES), ARGUMENTS), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 500), max_size=8),
)
def test_calls_are_those_of_a_reference_that_has_the_whole_text(form, before, calls, cuts):
    """Every format: names, arguments as written, and the text before."""
    text = written(form, calls)
    if form in (HERMES, MISTRAL):
        text = f"{before}\n{text}\n" if before else text

    parts = read(ToolCallReader(form, NAMES), by_cuts(text, cuts))
    found = [(name, json.loads(arguments)) for name, arguments in calls_in(parts)]

    assert (said_in(parts), found) == reference(form, text)
    assert found == calls


@pytest.mark.parametrize(
    ("form", "text", "calls", "said"),
    [
        (HERMES, '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', [("f", '{"a": 1}')], ""),
        (HERMES, '<tool_call>{"name": "f"}</tool_call>', [("f", "{}")], ""),
        (HERMES, '<tool_call>{"name": "f", "arguments": null}', [("f", "{}")], ""),
        (HERMES, '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}', [("f", '{"a": 1}')], ""),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": [1', [("f", '{"a": [1')], ""),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1]', [("f", '{"a": 1')], "]"),
        (HERMES, '<tool_call>{"id": 7, "x": {"y": "}"}, "name": "f"} </tool_call> \n Done.', [("f", "{}")], "Done."),
        (HERMES, "<tool_call>not JSON</tool_call>", [], "<tool_call>not JSON</tool_call>"),
        (HERMES, "<tool_call>\n</tool_call> x", [], "<tool_call>\n</tool_call> x"),
        (HERMES, '<tool_call>{"name": "f", "argu', [], '<tool_call>{"name": "f", "argu'),
        (HERMES, '<tool_call>{"name": "\\ud800"}', [], '<tool_call>{"name": "\\ud800"}'),
        (HERMES, "one <tool", [], "one <tool"),
        (LLAMA3, '<|python_tag|>{"name": "f", "parameters": {}}', [("f", "{}")], ""),
        (LLAMA3, '{"name": "Bob", "parameters": {}}', [], '{"name": "Bob", "parameters": {}}'),
        (LLAMA3, '{"a": 1}', [], '{"a": 1}'),
        (LLAMA3, 'So: {"name": "add", "parameters": {}}', [], 'So: {"name": "add", "parameters": {}}'),
        (MISTRAL, "[TOOL_CALLS] []", [], "[TOOL_CALLS] []"),
        (MISTRAL, '[TOOL_CALLS] [{"name": "f", "arguments": {}, "id": "abc"}]\nSo', [("f", "{}")], "So"),
        (MISTRAL, '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g{} Done.', [("f", '{"a": 1}'), ("g", "{}")], " Done."),
        (MISTRAL, "[TOOL_CALLS]f{}\nAnd so on", [("f", "{}")], "\nAnd so on"),
        (MISTRAL, "[TOOL_CALLS]two words {}", [], "[TOOL_CALLS]two words {}"),
        (MISTRAL, "[TOOL_CALLS]f[ARGS]", [], "[TOOL_CALLS]f[ARGS]"),
        (MISTRAL, f"[TOOL_CALLS]{'x' * 300}{{}}", [], f"[TOOL_CALLS]{'x' * 300}{{}}"),
        (LIST, '[{"name": "any", "arguments": {"a": "]"}}]', [("any", '{"a": "]"}')], ""),
        (LIST, '[{"name": "f", "arguments": {}},\n {"name": "g', [("f", "{}")], ""),
        (LIST, '[{"name": "f', [], '[{"name": "f'),
    ],
)
def test_odd_calls(form, text, calls, said):
    """Keys in any order, arguments as text or missing, calls that break off, and what only looks like one."""
    parts = read(ToolCallReader(form, NAMES), list(text))

    assert (calls_in(parts), said_in(parts)) == (calls, said)


def test_arguments_come_as_they_are_written():
    """The name as soon as the arguments begin, then every piece at once."""
    reader = ToolCallReader(HERMES, NAMES)
    pieces = ["Well", ". <tool_", 'call>{"name": "f"', ', "arguments": {"a', '": 1', "}", "}</tool_call>"]

    assert [joined(reader.push(piece)) for piece in pieces] == [
        [Said("Well")],
        [Said(".")],
        [],
        [CallBegun(0, "f"), ArgumentsGrown(0, '{"a')],
        [ArgumentsGrown(0, '": 1')],
        [ArgumentsGrown(0, "}")],
        [],
    ]


def test_calls_beyond_the_limit_are_left_out():
    """One call where the request wants no more; what is around them stays."""
    text = written(HERMES, [("add", {"a": 1}), ("add", {"a": 2})]) + "Done."
    parts = read(ToolCallReader(HERMES, NAMES, max_calls=1), list(text))

    assert (calls_in(parts), said_in(parts)) == ([("add", '{"a": 1}')], "Done.")


@pytest.mark.parametrize(
    ("is_thinking", "text", "thought", "said"),
    [
        (False, "<think>\nwell\n</think>\n\nYes.", "well", "Yes."),
        (True, "well\n\n so</think>Yes.", "well\n\n so", "Yes."),
        (False, " \n<think>cut", "cut", ""),
        (False, "<think>\n\n</think>\n\nYes.", "", "Yes."),
        (False, "No <think>here</think>", "", "No <think>here</think>"),
        (False, "<thin", "", "<thin"),
        (True, "a </thin", "a </thin", ""),
        (True, "</think>", "", ""),
    ],
)
def test_thoughts_stand_at_the_beginning(is_thinking, text, thought, said):
    """Between tags, the first of which the prompt may have; neither tags nor the space beside them are told."""
    for pieces in ([text], list(text)):
        parts = read(ThoughtReader(is_thinking=is_thinking), pieces)
        assert (said_in(parts, Thought), said_in(parts)) == (thought, said)


@pytest.mark.parametrize(
    ("template", "form", "thinks"),
    [
        ("{{ messages }}", None, False),
        ("{# tools <tool_call> #}{{ messages }}", None, False),
        ("{% if tools %}<tool_call>{% endif %}", HERMES, False),
        ("{% if tools %}<tool_call>{% endif %}{{ x.split('</think>') }}", HERMES, True),
        ("{% if tools is not none %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]", MISTRAL, False),
        ("{% if tools %}<|python_tag|>{% endif %}", LLAMA3, False),
        ("{% if tools %}|> tool |>{% endif %}", None, False),
        ("<tool_call>", None, False),
    ],
)
def test_a_template_tells_how_its_model_answers(template, form, thinks):
    """By what it teaches the model to write; a comment teaches nothing."""
    assert (traits_of(template).format, traits_of(template).thinks) == (form, thinks)

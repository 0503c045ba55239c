"""What a request may ask of an answer's form, what the engine is told of it, and what is refused, by field."""

from __future__ import annotations

import json

import msgspec
import pytest
from api_running import refusal, run_api

from loraplex.engine.events import Grammar
from loraplex.platform.openai.structured_output import MAX_GRAMMAR_CHARS, MAX_SCHEMA_DEPTH

pytestmark = pytest.mark.anyio

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


@pytest.fixture
async def api(database, tmp_path, tiny_model_dir):
    async with run_api(database, tmp_path, tiny_model_dir) as api:
        yield api


def json_schema(schema, **more):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}}


def vllm(**asked):
    return {"structured_outputs": asked}


def nested(depth):
    return {"type": "array", "items": nested(depth - 1)} if depth else {"type": "integer"}


async def post(api, path="chat/completions", **fields):
    body = BODY if path.startswith("chat") else {"model": "tiny", "prompt": "hi", "max_tokens": 4}
    return await api.client.post(f"/v1/{path}", json={**body, **fields}, headers=api.auth("acme"))


async def test_the_engine_is_told_what_to_follow(api):
    """Each form of each field, on both endpoints; text asks for nothing."""
    asked = [
        {},
        {"response_format": None, "structured_outputs": None},
        {"response_format": {"type": "text"}},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "any"}}},
        json_schema(NUMBER, strict=True, description="A number."),
        json_schema({"type": "array", "uniqueItems": True}),
        vllm(json={key: value for key, value in NUMBER.items() if key != "additionalProperties"}),
        vllm(json=json.dumps(NUMBER)),
        vllm(json_object=True),
        vllm(regex="[a-z]+", json_object=False),
        vllm(choice=["yes", 'say "no"\n']),
        vllm(grammar='start: "a"'),
        vllm(grammar='root ::= "a"'),
    ]
    for path in ("chat/completions", "completions"):
        for fields in asked:
            answered = await post(api, path, **fields)
            assert answered.status_code == 200, answered.text
    told = [request.grammar for request in api.services.engine.asked]

    assert told[: len(asked)] == told[len(asked) :]
    kinds = [None if grammar is None else grammar.kind for grammar in told[: len(asked)]]
    assert kinds == [None] * 3 + ["json_schema"] * 7 + ["regex"] + ["lark"] * 3
    assert json.loads(told[5].source) == {**NUMBER, "x-guidance": {"lenient": False}}
    assert told[7] == told[8]
    assert told[10] == Grammar("regex", "[a-z]+")
    assert told[11].source == 'start: "yes" | "say \\"no\\"\\n"'
    assert "start:" in told[13].source


SCHEMA = "response_format.json_schema.schema"


REFUSED = [
    ({"response_format": {"type": "xml"}}, "invalid_value", "response_format.type"),
    ({"response_format": "json"}, "invalid_type", "response_format"),
    ({"response_format": {"type": "json_schema"}}, "missing_required_parameter", "response_format.json_schema"),
    (json_schema(NUMBER, name="a b"), "invalid_value", "response_format.json_schema.name"),
    (json_schema([]), "invalid_type", SCHEMA),
    (json_schema(NUMBER, strict="yes"), "invalid_type", "response_format.json_schema.strict"),
    (json_schema({"type": "array", "uniqueItems": True}, strict=True), "invalid_value", SCHEMA),
    (json_schema({"type": "integer", "minimum": 2, "maximum": 1}), "invalid_value", SCHEMA),
    (json_schema({"$ref": "http://localhost/x"}), "invalid_value", SCHEMA),
    (json_schema(nested(MAX_SCHEMA_DEPTH)), "invalid_value", SCHEMA),
    (json_schema(nested(600)), "invalid_value", SCHEMA),
    (json_schema({"enum": ["x" * MAX_GRAMMAR_CHARS]}), "invalid_value", SCHEMA),
    (vllm(), "invalid_value", "structured_outputs"),
    (vllm(regex="a", choice=["b"]), "invalid_value", "structured_outputs"),
    (vllm(regex="(a"), "invalid_value", "structured_outputs.regex"),
    (vllm(regex=""), "invalid_value", "structured_outputs.regex"),
    (vllm(regex="a" * (MAX_GRAMMAR_CHARS + 1)), "invalid_value", "structured_outputs.regex"),
    (vllm(choice=[]), "invalid_value", "structured_outputs.choice"),
    (vllm(choice=["a"] * 1025), "invalid_value", "structured_outputs.choice"),
    (vllm(grammar="start: x"), "invalid_value", "structured_outputs.grammar"),
    (vllm(json="[]"), "invalid_value", "structured_outputs.json"),
    (vllm(json="{"), "invalid_value", "structured_outputs.json"),
    (vllm(structural_tag="{}"), "unknown_parameter", "structured_outputs.structural_tag"),
    ({**json_schema(NUMBER), **vllm(regex="a")}, "invalid_value", "structured_outputs"),
    ({"guided_regex": "a"}, "unsupported_parameter", "guided_regex"),
]


async def test_what_cannot_be_followed_is_refused_by_field(api):
    """Before anything runs, with the reason; vLLM's old names with the new one."""
    for fields, code, param in REFUSED:
        answered = await post(api, **fields)
        assert refusal(answered) == (400, code, param)
    assert not api.services.engine.asked
    assert "send `structured_outputs" in answered.json()["error"]["message"]


async def test_a_client_cannot_set_what_is_llguidances_own(api):
    """`x-guidance` would change how JSON is written and what is enforced."""
    await post(
        api, **json_schema({**NUMBER, "x-guidance": {"whitespace_flexible": False, "lenient": True}}, strict=True)
    )

    (asked,) = api.services.engine.asked
    assert json.loads(asked.grammar.source)["x-guidance"] == {"lenient": False}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(asked), type=type(asked)) == asked

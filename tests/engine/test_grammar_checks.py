"""Whatever grammar a stranger sends, whether it can be followed is known soon, and it costs nobody else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from loraplex.engine import bounded_processes
from loraplex.engine.events import Grammar
from loraplex.engine.generation import EngineUnavailable
from loraplex.engine.grammar_checks import CPU_SECONDS, GrammarChecks
from loraplex.engine.grammars import GrammarError

pytestmark = pytest.mark.anyio


def schema(value: Any) -> Grammar:
    return Grammar("json_schema", json.dumps(value))


def chain(length: int) -> str:
    return "start: T0\n" + "".join(f'T{i}: "a" T{i + 1} "b" | "c"\n' for i in range(length)) + f'T{length}: "z"'


GOOD = {
    "regex": Grammar("regex", "(a|aa)+"),
    "long repetition": Grammar("regex", "(a{1,1000}){1,1000}"),
    "large enum": schema({"enum": [f"value {number}" for number in range(5000)]}),
    "large bounds": schema({"type": "string", "maxLength": 10**9}),
    "recursive": schema({"type": "array", "items": {"$ref": "#"}}),
    "many properties": schema({"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(500)}}),
}

UNSATISFIABLE, UNKNOWN, BOUNDED = "nsatisfiable|no text", "nimplemented|nvalid|unknown|not", "large|more|too|exhausted"
BAD = {
    "two types at once": (schema({"allOf": [{"type": "string"}, {"type": "integer"}]}), UNSATISFIABLE),
    "bounds the wrong way round": (schema({"type": "integer", "minimum": 5, "maximum": 3}), UNSATISFIABLE),
    "a required property that cannot be": (
        schema({"type": "object", "properties": {"a": False}, "required": ["a"]}), UNSATISFIABLE,
    ),
    "nothing but itself": (schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}), UNSATISFIABLE),
    "no character": (Grammar("regex", r"[^\s\S]"), UNSATISFIABLE),
    "a schema elsewhere": (schema({"$ref": "https://example.invalid/schema.json"}), "not fetch|not present"),
    "a file": (schema({"$ref": "file:///etc/passwd"}), "not fetch|not present"),
    "a definition that is not there": (schema({"$ref": "#/$defs/a"}), "a"),
    "no type": (schema({"type": "strin"}), UNKNOWN),
    "what cannot be enforced": (schema({"type": "array", "uniqueItems": True}), UNKNOWN),
    "no regular expression": (Grammar("regex", "(a"), UNKNOWN),
    "look-around": (Grammar("regex", "(?=a)b"), UNKNOWN),
    "no rule": (Grammar("lark", "start: missing"), UNKNOWN),
    "no GBNF": (Grammar("lark", 'root ::= "a'), "GBNF"),
    "nested groups": (Grammar("regex", "(" * 20000 + "a" + ")" * 20000), UNKNOWN),
    "nested rules": (Grammar("lark", "start: " + "(" * 20000 + '"a"' + ")" * 20000), "nested"),
    "a stack of terminals": (Grammar("lark", chain(4000)), BOUNDED),
    "a stack of references": (
        schema({"$ref": "#/$defs/d0", "$defs": {"d4000": {}} | {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}]}
                                                                for i in range(4000)}}), BOUNDED,
    ),
    "a product of choices": (
        schema({"type": "object", "allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for j in range(6)]}
                                            for i in range(12)]}), BOUNDED,
    ),
    "automata that multiply": (
        Grammar("lark", "start: T\nT: " + " & ".join(f"/.*{c}.*{c}.{{50}}/" for c in "abcdefgh")), BOUNDED,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
async def checks(tiny_model_dir) -> AsyncIterator[GrammarChecks]:
    running = GrammarChecks(tiny_model_dir / "tokenizer.json", 288, (2,))
    yield running
    await running.close()


@pytest.mark.parametrize("name", GOOD)
async def test_what_can_be_followed_is_taken(checks, name):
    assert await checks.take("a", GOOD[name]) == GOOD[name]


@pytest.mark.parametrize("name", BAD)
async def test_what_cannot_be_followed_is_refused_with_a_reason(checks, name):
    """Again at the second time, and beside someone whose grammar is fine."""
    grammar, reason = BAD[name]
    async with asyncio.timeout(20 * CPU_SECONDS):
        for _ in range(2):
            with pytest.raises(GrammarError, match=reason):
                await checks.take("mallory", grammar)
        assert await checks.take("a", GOOD["regex"])


async def test_processor_time_is_bounded(tiny_model_dir):
    """By the kernel, whatever the compiler does."""
    checks = GrammarChecks(tiny_model_dir / "tokenizer.json", 288, (2,), cpu_seconds=0.001)
    with pytest.raises(GrammarError, match=r"more than 0\.001 s of processor"):
        await checks.take("a", schema({"enum": [f"value {number}" for number in range(9000)]}))
    await checks.close()


async def test_gbnf_is_taken_as_lark(checks):
    """The notation of llama.cpp, which vLLM's clients send."""
    taken = await checks.take("a", Grammar("lark", 'root ::= "a" [0-9]+'))

    assert taken.kind == "lark"
    assert "start:" in taken.source
    mentioned = Grammar("lark", 'start: "a ::= b"')
    assert await checks.take("a", mentioned) == mentioned


async def test_a_busy_machine_says_nothing_about_a_grammar(tiny_model_dir, monkeypatch):
    """Whose check got no processor time: the request may come again, and the grammar is no worse for it."""
    checks = GrammarChecks(tiny_model_dir / "tokenizer.json", 288, (2,))
    with monkeypatch.context() as context:
        context.setattr(bounded_processes, "WALL_SECONDS", 0.0)
        with pytest.raises(EngineUnavailable):
            await checks.take("a", GOOD["regex"])
    assert await checks.take("a", GOOD["regex"]) == GOOD["regex"]
    await checks.close()


async def test_either_of_two_grammars_is_enough(checks):
    """Both are compiled, whatever they are written in; one that cannot be is the whole's fault."""
    tag = Grammar("lark", 'start: "<call>" | <[5]>')
    for other in (GOOD["regex"], schema({"type": "integer"}), Grammar("lark", 'start: "b"')):
        either = replace(tag, otherwise=other)
        assert await checks.take("a", either) == either
        assert either.chars == len(tag.source) + len(other.source)
    for bad, reason in (BAD["look-around"], BAD["no rule"], BAD["no type"]):
        with pytest.raises(GrammarError, match=reason):
            await checks.take("a", replace(tag, otherwise=bad))

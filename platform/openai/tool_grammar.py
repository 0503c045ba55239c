"""What an answer must be for its calls to be calls: each after its tool's schema.

Knows JSON schemas as plain data; the engine knows what they mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loraplex.engine.grammars import WHITESPACE
from loraplex.engine.messages import Grammar
from loraplex.platform.openai.closed_schemas import closed
from loraplex.platform.openai.structured_output import schema_grammar
from loraplex.platform.openai.tool_formats import HERMES, LLAMA3, MISTRAL, ToolCallFormat
from loraplex.platform.openai.tool_types import FunctionTool

MAX_FORCED_CALLS = 16

_LITERAL = ("const", "enum", "default", "examples", "example")
"""Keywords whose values are no schemas."""

_NAMED = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
"""Keywords whose values are schemas by names, which may be words that else are keywords."""

_TAGGED = r"""%llguidance {{}}
start: call* TEXT
TEXT: /(.|\n)*/
opening[lazy]: TEXT "<tool_call>"
call: opening SPACE %json {schema} SPACE "</tool_call>"
SPACE: /[ \n]{{0,2}}/
"""

_CALLS: Mapping[ToolCallFormat, str] = {
    HERMES: "start: (opening SPACE call SPACE closing SPACE){times}\ncall: %json {call}",
    LLAMA3: "start: opening? call{more}\ncall: %json {call}",
    MISTRAL: "start: opening SPACE list | (opening call){times}\nlist: %json {list}\ncall: {named}",
}
"""What is nothing but calls in each format. What marks them are rules of their own."""


def forced_calls(tools: Sequence[FunctionTool], *, is_one: bool) -> Grammar:
    """The answer is a list (`tool_formats.LIST`) of one call of one of the tools, or of several."""
    call, definitions = _call_of(tools)
    most = 1 if is_one else MAX_FORCED_CALLS
    schema = {"type": "array", "minItems": 1, "maxItems": most, "items": call, "$defs": definitions}
    return schema_grammar("tools", schema, strict=False)


def tagged_calls(tools: Sequence[FunctionTool]) -> Grammar:
    """The answer is any text, but what stands in it after <tool_call> is a call (`tool_formats.HERMES`)."""
    call, definitions = _call_of(tools)
    return Grammar("lark", _TAGGED.format(schema=_written({**call, "$defs": definitions})))


def calls_alone(
    form: ToolCallFormat, tools: Sequence[FunctionTool], *, is_one: bool, token_id: Callable[[str], int | None]
) -> Grammar:
    """The answer is calls in this form, one of HERMES, LLAMA3 and MISTRAL, and nothing else.

    token_id: of what may be one token of the base, as which the model then writes it.
    """
    call, definitions = _call_of(tools, "parameters" if form is LLAMA3 else "arguments")
    most = 1 if is_one else MAX_FORCED_CALLS
    calls = {"type": "array", "minItems": 1, "maxItems": most, "items": call}
    named = " | ".join(
        f"{json.dumps(tool.function.name)} named? %json {_written(_moved(tool.parameters, '#'))}" for tool in tools
    )
    rules = _CALLS[form].format(
        times=f"{{1,{most}}}",
        more="" if is_one else f' (SPACE ";" SPACE call){{0,{most - 1}}}',
        call=_written({**call, "$defs": definitions}),
        list=_written({**calls, "$defs": definitions}),
        named=named,
    )
    markers = {"opening": form.opening, "closing": form.closing, "named": form.named}
    written = [f"{rule}: {_marker(text, token_id(text))}" for rule, text in markers.items() if text]
    return Grammar("lark", "\n".join(["%llguidance {}", rules, *written, r"SPACE: /[ \n]{0,2}/", ""]))


def _marker(text: str, token_id: int | None) -> str:
    return json.dumps(text) + ("" if token_id is None else f" | <[{token_id}]>")


def _written(schema: Mapping[str, Any]) -> str:
    """Inside of a grammar, where what cannot be enforced is passed over as in `schema_grammar`."""
    return json.dumps({**schema, "x-guidance": {"lenient": True, "whitespace_pattern": WHITESPACE}})


def _call_of(tools: Sequence[FunctionTool], arguments: str = "arguments") -> tuple[dict[str, Any], dict[str, Any]]:
    """Schema of a call of one of the tools, and the definitions that it refers to. References inside of a tool's schema
    go on leading to where they led. arguments: the key of the arguments."""
    calls, definitions = [], {}
    for index, tool in enumerate(tools):
        home = f"tool{index}"
        definitions[home] = _moved(tool.parameters, f"#/$defs/{home}")
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.function.name}, arguments: {"$ref": f"#/$defs/{home}"}},
                "required": ["name", arguments],
                "additionalProperties": False,
            }
        )
    return calls[0] if len(calls) == 1 else {"anyOf": calls}, definitions


def _moved(schema: dict[str, Any], home: str) -> dict[str, Any]:
    """A tool's schema, as it stands at `home` in another one: closed by what it says alone, whatever other tools' say.
    Arguments are an object, whether it says so or not."""
    moved: dict[str, Any] = _rebased(closed(schema), home)
    kept = {key: value for key, value in moved.items() if key not in ("$schema", "$id")}
    return kept if "type" in kept or "$ref" in kept else {"type": "object", **kept}


def _rebased(value: Any, home: str) -> Any:
    if isinstance(value, list):
        return [_rebased(item, home) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: _rebased_at(key, item, home) for key, item in value.items()}


def _rebased_at(key: str, value: Any, home: str) -> Any:
    if key == "$ref" and isinstance(value, str) and value.startswith("#"):
        return home + value[1:]
    if key in _NAMED and isinstance(value, dict):
        return {name: _rebased(schema, home) for name, schema in value.items()}
    return value if key in _LITERAL else _rebased(value, home)

"""What an answer must be for its calls to be calls: each after its tool's schema.

Knows JSON schemas as plain data; the engine knows what they mean.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from loraplex.engine.messages import Grammar
from loraplex.platform.openai.closed_schemas import closed
from loraplex.platform.openai.structured_output import schema_grammar
from loraplex.platform.openai.tool_types import FunctionTool

MAX_FORCED_CALLS = 16

_LITERAL = ("const", "enum", "default", "examples", "example")
"""Keywords whose values are no schemas."""

_TAGGED = r"""%llguidance {{}}
start: call* TEXT
TEXT: /(.|\n)*/
opening[lazy]: TEXT "<tool_call>"
call: opening /[ \n]*/ %json {schema} /[ \n]*/ "</tool_call>"
"""


def forced_calls(tools: Sequence[FunctionTool], *, is_one: bool) -> Grammar:
    """The answer is a list (`tool_formats.LIST`) of one call of one of the tools, or of several."""
    call, definitions = _call_of(tools)
    most = 1 if is_one else MAX_FORCED_CALLS
    schema = {"type": "array", "minItems": 1, "maxItems": most, "items": call, "$defs": definitions}
    return schema_grammar("tools", schema, strict=False)


def tagged_calls(tools: Sequence[FunctionTool]) -> Grammar:
    """The answer is any text, but what stands in it after <tool_call> is a call (`tool_formats.HERMES`)."""
    call, definitions = _call_of(tools)
    return Grammar("lark", _TAGGED.format(schema=json.dumps(closed({**call, "$defs": definitions}))))


def _call_of(tools: Sequence[FunctionTool]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Schema of a call of one of the tools, and the definitions that it refers to. References inside of a tool's schema
    go on leading to where they led."""
    calls, definitions = [], {}
    for index, tool in enumerate(tools):
        home = f"tool{index}"
        definitions[home] = _moved(tool.parameters, f"#/$defs/{home}")
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.function.name}, "arguments": {"$ref": f"#/$defs/{home}"}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return calls[0] if len(calls) == 1 else {"anyOf": calls}, definitions


def _moved(schema: dict[str, Any], home: str) -> dict[str, Any]:
    """A schema that stands at `home` in another one. Arguments are an object, whether it says so or not."""
    moved: dict[str, Any] = _rebased(schema, home)
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
    return value if key in _LITERAL else _rebased(value, home)

"""Schemas whose objects have the properties that are listed and no others, unless the schema speaks of others.

A model that has written all it was asked for may go on and invent properties until it is cut off, and small ones do.
What follows the closed schema follows the open one, too; vLLM's grammars mean the same. Knows JSON schemas as plain
data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_COMPOSING = frozenset(
    ("allOf", "oneOf", "not", "if", "dependentSchemas", "dependencies", "$dynamicRef", "$recursiveRef")
)
"""Where one of these is, an object may have to be what several schemas say, of which each lists a part."""

_BESIDE = frozenset(("anyOf", "$ref", "contains"))
"""The same, where it stands beside another of these, of _OF_OBJECTS or of _OF_ITEMS."""

_SPEAKING_OF_OTHERS = frozenset(
    (
        "additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames", "minProperties",
        "dependentRequired",
    )
)  # fmt: skip
_OF_OBJECTS = _SPEAKING_OF_OTHERS | {"properties", "required", "maxProperties"}
_OF_ITEMS = frozenset(("items", "prefixItems", "additionalItems", "unevaluatedItems"))

_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "additionalItems", "contains")


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A copy. Left as it is where its parts may be about the same object. Nesting must be bounded."""
    return dict(schema) if _is_composed(schema) else _closed(dict(schema))


def _is_composed(value: Any) -> bool:
    """Looks everywhere, also where no schema is: what a reference leads to may be anywhere."""
    if isinstance(value, list):
        return any(map(_is_composed, value))
    if not isinstance(value, dict):
        return False
    beside = value.keys() & _BESIDE
    if len(beside) > 1 or (beside and value.keys() & (_OF_OBJECTS | _OF_ITEMS)):
        return True
    if value.keys() & _COMPOSING or _has_overlapping_patterns(value):
        return True
    return any(map(_is_composed, value.values()))


def _has_overlapping_patterns(schema: dict[str, Any]) -> bool:
    """Whether what `patternProperties` says of a property may not be all that is said of it."""
    patterns = schema.get("patternProperties")
    return isinstance(patterns, dict) and (len(patterns) > 1 or "properties" in schema)


def _closed(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    found = dict(schema)
    for key, value in schema.items():
        if key in _MAPS and isinstance(value, dict):
            found[key] = {name: _closed(part) for name, part in value.items()}
        elif key in _LISTS and isinstance(value, list):
            found[key] = [_closed(part) for part in value]
        elif key in _SINGLE:
            found[key] = _closed(value)
    return {**found, "additionalProperties": False} if _lists_all(schema) else found


def _lists_all(schema: dict[str, Any]) -> bool:
    properties, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list) or schema.keys() & _SPEAKING_OF_OTHERS:
        return False
    return all(isinstance(name, str) and name in properties for name in required)

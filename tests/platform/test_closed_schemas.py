"""Which objects of a schema are closed, and which schemas are left as they came."""

from __future__ import annotations

import copy

import pytest

from loraplex.platform.openai.closed_schemas import closed

WHOLE = {"type": "integer"}


def thing(**more):
    return {"type": "object", "properties": {"a": WHOLE}, "required": ["a"], **more}


def test_objects_have_the_properties_that_they_list():
    """Wherever they stand; the schema that came is not changed."""
    linked = thing(properties={"next": {"$ref": "#/$defs/T"}}, required=[])
    schema = thing(
        properties={"a": {"anyOf": [thing(), {"type": "null"}]}, "l": {"type": "array", "items": thing()}},
        **{"$defs": {"T": linked, "none": thing(properties={})}},
    )
    came = copy.deepcopy(schema)
    end = {"additionalProperties": False}

    found = closed(schema)

    assert schema == came
    assert found == {
        **came,
        **end,
        "properties": {
            "a": {"anyOf": [thing() | end, {"type": "null"}]},
            "l": {"type": "array", "items": thing() | end},
        },
        "$defs": {"T": linked | end, "none": came["$defs"]["none"]},  # where "a" is required, yet not listed
    }
    assert closed({"properties": {}}) == {"properties": {}} | end
    assert closed({"patternProperties": {"^b": thing()}}) == {"patternProperties": {"^b": thing() | end}}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        thing(additionalProperties=True),
        thing(additionalProperties=WHOLE),
        thing(patternProperties={"^b": WHOLE}),
        thing(minProperties=2),
        thing(required=["a", "b"]),
        thing(anyOf=[thing(properties={"b": WHOLE})]),
        thing(**{"$ref": "#/$defs/other", "$defs": {"other": thing()}}),
        {"allOf": [thing(), {"properties": {"b": WHOLE}}]},
        {"oneOf": [thing(), {"properties": {"b": WHOLE}}]},
        {"not": thing()},
        {"type": "array", "items": {"$ref": "#/elsewhere"}, "elsewhere": {"allOf": [thing()]}, "contains": thing()},
        {"items": thing(), "anyOf": [{"items": thing(properties={"b": WHOLE})}]},
        {"prefixItems": [thing()], "$ref": "#/$defs/other", "$defs": {"other": {"items": thing()}}},
        {"items": thing(), "contains": thing(properties={"b": WHOLE})},
        {"properties": {"b": thing()}, "patternProperties": {"^b": thing(properties={"b": WHOLE})}},
        {"patternProperties": {"^b": thing(), "c$": thing(properties={"b": WHOLE})}},
        {"const": {"properties": {}}},
        thing(properties=[]),
        thing(required="a"),
    ],
)
def test_schemas_that_speak_of_other_properties_are_left_as_they_are(schema):
    """By a keyword of their own, or since several schemas may be about the same object; what is malformed, too."""
    assert closed(schema) == schema

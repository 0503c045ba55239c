"""JSON schemas of many kinds, by name: what answers are held to. All of their keywords can be enforced."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def thing(required: list[str] | None = None, **properties: Schema) -> Schema:
    """A closed object; all its properties are required unless some are named."""
    required = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def items(of: Schema, **bounds: Any) -> Schema:
    return {"type": "array", "items": of, **bounds}


TEXT: Schema = {"type": "string", "maxLength": 6}
WHOLE: Schema = {"type": "integer", "minimum": -99, "maximum": 999}
FLAG: Schema = {"type": "boolean"}

STRINGS = {
    "any": {"type": "string"},
    **{f"at most {n}": {"type": "string", "maxLength": n} for n in (0, 1, 2, 7, 40)},
    **{f"{low} to {high}": {"type": "string", "minLength": low, "maxLength": high} for low, high in ((1, 1), (3, 9))},
    "at least 5": {"type": "string", "minLength": 5},
    **{
        f"pattern {pattern}": {"type": "string", "pattern": pattern}
        for pattern in (
            "^[a-z]{1,8}$", "^[A-Z]{3}-[0-9]{4}$", "^(yes|no|maybe)$", "^#[0-9a-fA-F]{6}$", r"^\d{3}$",
            r"^\w{2,5}$", "^a*b+c?$", "^(ab|cd){1,3}$",
            "^[^x]{2}$", r"^\+?[1-9][0-9]{6,9}$", "^.{4}$", "^(0|[1-9][0-9]*)[.][0-9]{2}$",
            "^([01][0-9]|2[0-3]):[0-5][0-9]$", "^[äöü]{1,4}$", r"^\$[0-9]+$", "^v[0-9]+(\\.[0-9]+){2}$", "^$",
            "^(GET|PUT) /[a-z]{1,6}$", "[0-9]{2}", "^x", "[^z]$",
        )
    },
    **{
        f"format {name}": {"type": "string", "format": name}
        for name in ("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
    },
}  # fmt: skip

NUMBERS = {
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    **{
        f"integer {low} to {high}": {"type": "integer", "minimum": low, "maximum": high}
        for low, high in (
            (0, 0),
            (0, 9),
            (1, 10),
            (-5, 5),
            (-100, -90),
            (17, 4321),
            (0, 65535),
            (99, 101),
            (-1, 1000000),
        )
    },
    **{f"integer from {low}": {"type": "integer", "minimum": low} for low in (0, 1, -7, 1000)},
    **{f"integer to {high}": {"type": "integer", "maximum": high} for high in (0, 12, -12)},
    **{
        f"number {low} to {high}": {"type": "number", "minimum": low, "maximum": high}
        for low, high in ((0, 1), (-1, 1), (0.5, 2.25), (10, 20), (-273.15, 0))
    },
    "number above 0": {"type": "number", "exclusiveMinimum": 0, "maximum": 10},
    "number below 1": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
    "integer strictly between": {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 6},
    **{f"multiple of {n}": {"type": "integer", "multipleOf": n, "minimum": 0, "maximum": 999} for n in (2, 5, 10)},
}

CHOICES = {
    "null": {"type": "null"},
    "boolean": FLAG,
    "words": {"enum": ["red", "green", "blue"]},
    "mixed": {"enum": [1, "1", None, True, 2.5]},
    "one word": {"enum": ["only"]},
    "awkward words": {"enum": ['say "hi"', "back\\slash", "a\nb", "ünïcode", "", " ", "😀"]},
    "beginnings": {"enum": ["a", "ab", "abc", "abcd"]},
    "many": {"enum": [f"value {n}" for n in range(300)]},
    "structures": {"enum": [{"a": 1}, [1, 2], "x"]},
    **{f"const {value!r}": {"const": value} for value in ("x", 7, None, True, [1, "2"], {"k": "v"}, -0.5, "")},
    "typed words": {"type": "string", "enum": ["north", "south"]},
    "nullable": {"type": ["string", "null"], "maxLength": 5},
    "two types": {"type": ["integer", "boolean"]},
    "all types": {
        "type": ["integer", "boolean", "null", "string", "array", "object"],
        "maxProperties": 0,
        "maxItems": 0,
    },
}

ARRAYS = {
    **{f"of {name}": items(of, maxItems=4) for name, of in (("text", TEXT), ("integers", WHOLE), ("flags", FLAG))},
    **{
        f"{low} to {high}": items(WHOLE, minItems=low, maxItems=high)
        for low, high in ((0, 0), (0, 1), (1, 1), (2, 2), (1, 3), (3, 5), (10, 10))
    },
    "at least 2": items(FLAG, minItems=2),
    "of anything": {"type": "array", "maxItems": 2},
    "tuple": {"type": "array", "prefixItems": [TEXT, WHOLE, FLAG], "items": False, "minItems": 3},
    "open tuple": {"type": "array", "prefixItems": [TEXT], "items": FLAG, "minItems": 1, "maxItems": 3},
    "optional tuple": {"type": "array", "prefixItems": [WHOLE, WHOLE], "items": False},
    "matrix": items(items(WHOLE, minItems=2, maxItems=2), minItems=2, maxItems=2),
    "cube": items(items(items(FLAG, maxItems=2), maxItems=2), maxItems=2),
    "of enums": items({"enum": ["a", "b"]}, minItems=1, maxItems=3),
    "of objects": items(thing(id=WHOLE, name=TEXT), minItems=1, maxItems=2),
    "of unions": items({"anyOf": [WHOLE, TEXT, {"type": "null"}]}, maxItems=3),
    "of patterns": items({"type": "string", "pattern": "^[A-Z]{2}$"}, maxItems=3),
    "of dates": items({"type": "string", "format": "date"}, minItems=1, maxItems=2),
}

OBJECTS = {
    "empty": thing(),
    "any": {"type": "object"},
    **{
        f"{n} properties": thing(**{f"p{i}": (TEXT, WHOLE, FLAG)[i % 3] for i in range(n)}) for n in (1, 2, 3, 5, 8, 12)
    },
    **{
        f"{n} optional": thing([], **{f"p{i}": (TEXT, WHOLE, FLAG)[i % 3] for i in range(n)})
        for n in (1, 2, 3, 5, 8, 12)
    },
    **{
        f"{required} of 4": thing(required.split(), a=TEXT, b=WHOLE, c=FLAG, d={"type": "null"})
        for required in ("a", "d", "a c", "b d", "a b c d")
    },
    "open": {"type": "object", "properties": {"a": WHOLE}, "required": ["a"], "additionalProperties": FLAG},
    "open to anything": {"type": "object", "properties": {"a": WHOLE}, "required": ["a"]},
    "map": {"type": "object", "additionalProperties": WHOLE},
    "map of lists": {"type": "object", "additionalProperties": items(WHOLE, maxItems=2)},
    "pattern map": {"type": "object", "patternProperties": {"^k[0-9]$": FLAG}, "additionalProperties": False},
    "required of no property": {"type": "object", "properties": {"a": WHOLE}, "required": ["a", "b"]},
    "awkward names": thing(**{'"': WHOLE, "a b": WHOLE, "ü": WHOLE, "$ref": WHOLE, "": WHOLE}),
    "names that begin alike": thing([], a=WHOLE, ab=WHOLE, abc=WHOLE),
}


def _nested(depth: int) -> Schema:
    return thing(value=WHOLE) if depth == 0 else thing(inner=_nested(depth - 1), flag=FLAG)


OBJECTS |= {f"nested {depth}": _nested(depth) for depth in (1, 2, 4, 8)}

PERSON = thing(["name", "age"], name=TEXT, age={"type": "integer", "minimum": 0, "maximum": 150}, email=TEXT)

COMBINED = {
    "any of scalars": {"anyOf": [TEXT, WHOLE, FLAG, {"type": "null"}]},
    "any of objects": {"anyOf": [thing(kind={"const": "a"}, x=WHOLE), thing(kind={"const": "b"}, y=TEXT)]},
    "any of lists": {"anyOf": [items(WHOLE, minItems=1, maxItems=2), items(TEXT, minItems=1, maxItems=2)]},
    "any of nested": thing(value={"anyOf": [thing(a=WHOLE), items(FLAG, maxItems=2), TEXT]}),
    "any of with common keywords": {"type": "object", "properties": {"a": WHOLE, "b": WHOLE},
                                    "anyOf": [{"required": ["a"]}, {"required": ["b"]}], "additionalProperties": False},
    **{f"{n} variants": {"anyOf": [thing(type={"const": f"t{i}"}, value=WHOLE) for i in range(n)]} for n in (2, 5, 20)},
    "one of disjoint": {"oneOf": [{"type": "integer"}, {"type": "boolean"}]},
    "all of bounds": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 30}]},
    "all of objects": {"allOf": [{"type": "object", "properties": {"a": WHOLE}, "required": ["a"]},
                                 {"properties": {"b": FLAG}, "required": ["b"]}]},
    "all of one": {"allOf": [TEXT]},
    "all of with any of": {"allOf": [{"anyOf": [WHOLE, TEXT]}, {"type": "integer"}]},
}  # fmt: skip


def defined(root: Schema, **definitions: Schema) -> Schema:
    return {**root, "$defs": definitions}


def ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


REFERENCES = {
    "a definition": defined(ref("person"), person=PERSON),
    "used twice": defined(thing(a=ref("w"), b=ref("w")), w=WHOLE),
    "a chain": defined(ref("a"), a=ref("b"), b=ref("c"), c=thing(x=FLAG)),
    "in a list": defined(items(ref("p"), minItems=1, maxItems=2), p=PERSON),
    "with siblings": defined({**ref("w"), "maximum": 5}, w=WHOLE),
    "old style": {"$ref": "#/definitions/w", "definitions": {"w": WHOLE}},
    "into properties": thing(["a"], a=WHOLE, b={"$ref": "#/properties/a"}),
    "escaped": {"$ref": "#/$defs/a~1b", "$defs": {"a/b": WHOLE}},
    "tree": defined(ref("n"), n=thing(["v"], v=FLAG, left=ref("n"), right=ref("n"))),
    "linked list": defined(ref("n"), n=thing(v=FLAG, next={"anyOf": [{"type": "null"}, ref("n")]})),
    "to the root": thing(["v"], v=FLAG, child={"$ref": "#"}),
    "mutual": defined(ref("a"), a=thing(["x"], x=FLAG, b=ref("b")), b=thing(["y"], y=FLAG, a=ref("a"))),
    "expression": defined(ref("e"), e={"anyOf": [WHOLE, thing(op={"enum": ["+", "*"]}, l=ref("e"), r=ref("e"))]}),
    "json": defined(ref("j"), j={"anyOf": [{"type": "null"}, FLAG, WHOLE, TEXT, items(ref("j"), maxItems=2)]}),
}

REAL = {
    "weather call": thing(location=TEXT, unit={"enum": ["celsius", "fahrenheit"]}),
    "person": PERSON,
    "event": thing(name=TEXT, date={"type": "string", "format": "date"}, participants=items(TEXT, maxItems=3)),
    "steps": thing(steps=items(thing(explanation=TEXT, output=TEXT), minItems=1, maxItems=2), final_answer=TEXT),
    "ticket": thing(
        label={"enum": ["billing", "bug", "praise"]},
        urgency={"type": "integer", "minimum": 1, "maximum": 5},
        summary={"type": "string", "maxLength": 30},
    ),
    "address": thing(["street", "zip"], street=TEXT, zip={"type": "string", "pattern": "^[0-9]{5}$"}, country=TEXT),
    "invoice": thing(
        number={"type": "string", "pattern": "^INV-[0-9]{6}$"},
        paid=FLAG,
        total={"type": "number", "minimum": 0, "maximum": 100000},
        lines=items(thing(sku=TEXT, count={"type": "integer", "minimum": 1, "maximum": 99}), minItems=1, maxItems=2),
    ),
    "sentiment": thing(
        sentiment={"enum": ["positive", "neutral", "negative"]},
        confidence={"type": "number", "minimum": 0, "maximum": 1},
    ),
    "entities": thing(entities=items(thing(text=TEXT, type={"enum": ["PER", "ORG", "LOC"]}), maxItems=2)),
    "sql filter": thing(
        column=TEXT,
        operator={"enum": ["=", "<", ">", "in"]},
        value={"anyOf": [TEXT, WHOLE, items(WHOLE, minItems=1, maxItems=3)]},
    ),
    "geo": thing(
        type={"const": "Point"},
        coordinates={
            "type": "array",
            "prefixItems": [
                {"type": "number", "minimum": -180, "maximum": 180},
                {"type": "number", "minimum": -90, "maximum": 90},
            ],
            "items": False,
            "minItems": 2,
        },
    ),
    "patch": items(
        thing(
            ["op", "path"],
            op={"enum": ["add", "remove"]},
            path={"type": "string", "pattern": "^/[a-z]{1,5}$"},
            value=WHOLE,
        ),
        minItems=1,
        maxItems=2,
    ),
    "menu": thing(title=TEXT, items=items(defined(thing(dish=TEXT, price=WHOLE)), maxItems=2)),
    "described": {
        "title": "Answer",
        "description": "What to say.",
        **thing(a={**TEXT, "description": "Text.", "default": ""}),
    },
    "drawn up by a library": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://x.invalid/a",
        **PERSON,
    },
    "old draft": {"$schema": "http://json-schema.org/draft-07/schema#", **PERSON},
}

FAMILIES: dict[str, dict[str, Schema]] = {
    "string": STRINGS,
    "number": NUMBERS,
    "choice": CHOICES,
    "array": ARRAYS,
    "object": OBJECTS,
    "combined": COMBINED,
    "reference": REFERENCES,
    "real": REAL,
}

FOR_PAIRS = {"string at most 7": STRINGS["at most 7"], "integer": NUMBERS["integer 1 to 10"], "words": CHOICES["words"],
             "list": ARRAYS["1 to 3"], "object": OBJECTS["3 properties"], "union": COMBINED["any of scalars"],
             "person": PERSON}  # fmt: skip

SCHEMAS: dict[str, Schema] = {
    **{f"{family}: {name}": schema for family, members in FAMILIES.items() for name, schema in members.items()},
    **{
        f"pair: {first} and {second}": thing(first=one, second=other)
        for first, one in FOR_PAIRS.items()
        for second, other in FOR_PAIRS.items()
    },
}

"""Answers that follow a grammar: OpenAI's `response_format` and vLLM's `structured_outputs`, bounded and checked.

Knows both fields, and which grammar each asks for. What follows it is the engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from loraplex.engine.events import Grammar
from loraplex.engine.grammar_checks import GrammarChecks
from loraplex.engine.grammars import GrammarError
from loraplex.platform.errors import ApiError
from loraplex.platform.openai.closed_schemas import closed
from loraplex.platform.tenants import Principal

# -- what is read --------------------------------------------------------------------------------------------------

MAX_GRAMMAR_CHARS = 128 << 10
MAX_SCHEMA_DEPTH = 64
MAX_CHOICES = 1024

GrammarText = Annotated[str, Meta(min_length=1, max_length=MAX_GRAMMAR_CHARS)]
Choice = Annotated[str, Meta(max_length=4096)]
SchemaName = Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]


class TextFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """Whatever the model says."""


class JsonObjectFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="json_object"):
    """Any JSON object."""


class JsonSchema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """strict: refuse a schema with keywords that cannot be enforced, where else these are passed over. `description`
    is for the model, which hears of it from the messages alone."""

    name: SchemaName
    description: Annotated[str, Meta(max_length=8192)] | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class JsonSchemaFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="json_schema"):
    json_schema: JsonSchema


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


class StructuredOutputs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """vLLM's field: exactly one of these."""

    json: dict[str, Any] | GrammarText | None = None
    regex: GrammarText | None = None
    choice: Annotated[list[Choice], Meta(min_length=1, max_length=MAX_CHOICES)] | None = None
    grammar: GrammarText | None = None
    json_object: bool | None = None

    def __post_init__(self) -> None:
        if len(self.asked) != 1:
            message = (
                "'structured_outputs' takes exactly one of 'json', 'regex', 'choice', 'grammar' and 'json_object'; "
                f"this one has {len(self.asked)}."
            )
            raise ApiError(400, "invalid_value", message, param="structured_outputs")

    @property
    def asked(self) -> list[str]:
        return [name for name in self.__struct_fields__ if getattr(self, name) not in (None, False)]


# -- what it asks for ----------------------------------------------------------------------------------------------

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


async def grammar_of(
    checks: GrammarChecks,
    principal: Principal,
    response_format: ResponseFormat | None,
    structured_outputs: StructuredOutputs | None,
) -> Grammar | None:
    """What the answer has to follow, as the engine takes it; None: nothing.

    Raises ApiError that names the field, for a grammar that is not valid, too large, or allows no text.
    """
    asked = None if response_format is None else _of_format(response_format)
    if structured_outputs is not None:
        if asked is not None:
            # the format has another name in other APIs, and is not the field that is told as at fault
            message = "'structured_outputs' and the response format both ask for a form of the answer; send one."
            raise ApiError(400, "invalid_value", message, param="structured_outputs")
        asked = _of_vllm(structured_outputs)
    if asked is None:
        return None
    field, grammar = asked
    return await checked(checks, principal, field, grammar)


async def checked(checks: GrammarChecks, principal: Principal, field: str, grammar: Grammar) -> Grammar:
    """A grammar that a request brought in `field`, as the engine takes it. Raises ApiError, EngineUnavailable."""
    if len(grammar.source) > MAX_GRAMMAR_CHARS:
        raise _invalid(field, f"it has more than {MAX_GRAMMAR_CHARS} characters")
    try:
        return await checks.take(principal.tenant_id or "", grammar)
    except GrammarError as error:
        raise _invalid(field, str(error)) from error


def schema_grammar(field: str, schema: Mapping[str, Any], *, strict: bool) -> Grammar:
    """Objects have no properties beyond those listed, unless it says so. strict: see `JsonSchema`. Raises ApiError for
    a schema that is nested too deeply."""
    if is_deeper(schema, MAX_SCHEMA_DEPTH):
        raise _invalid(field, f"it is nested more than {MAX_SCHEMA_DEPTH} levels deep")
    lenient = {"x-guidance": {"lenient": not strict}}  # llguidance's own keyword, which is not the client's to set
    return Grammar("json_schema", json.dumps({**closed(schema), **lenient}, ensure_ascii=False, separators=(",", ":")))


def _of_format(asked: ResponseFormat) -> tuple[str, Grammar] | None:
    if isinstance(asked, TextFormat):
        return None
    if isinstance(asked, JsonObjectFormat) or asked.json_schema.schema is None:
        return "response_format", schema_grammar("response_format", ANY_OBJECT, strict=True)
    field = "response_format.json_schema.schema"
    return field, schema_grammar(field, asked.json_schema.schema, strict=bool(asked.json_schema.strict))


def _of_vllm(asked: StructuredOutputs) -> tuple[str, Grammar]:
    field = f"structured_outputs.{asked.asked[0]}"
    if asked.regex is not None:
        return field, Grammar("regex", asked.regex)
    if asked.grammar is not None:
        return field, Grammar("lark", asked.grammar)
    if asked.choice is not None:
        choices = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in asked.choice)
        return field, Grammar("lark", f"start: {choices}")
    schema = ANY_OBJECT if asked.json is None else _parsed(field, asked.json)
    return field, schema_grammar(field, schema, strict=False)


def _parsed(field: str, schema: dict[str, Any] | str) -> dict[str, Any]:
    if isinstance(schema, dict):
        return schema
    try:
        return msgspec.json.decode(schema, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise _invalid(field, f"it is not a JSON object ({error})") from error


def is_deeper(document: Any, levels: int) -> bool:
    """Whether objects and lists in it are nested deeper than that."""
    layer = [document]
    for _ in range(levels + 1):
        below = [item.values() if isinstance(item, dict) else item for item in layer if isinstance(item, dict | list)]
        if not below:
            return False
        layer = [item for items in below for item in items]
    return True


def _invalid(field: str, reason: str) -> ApiError:
    message = f"Invalid value for '{field}': {reason}. Change it or leave it out."
    return ApiError(400, "invalid_value", message, param=field)

"""Items: what conversations of the Responses API consist of, as they are sent, stored and answered.

One that is stored or answered has an id and a status; one that is sent may be without. Knows no request around them.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from loraplex.platform.openai.generation_types import Text
from loraplex.platform.openai.tool_types import CallId

MAX_ITEMS = 4096
MAX_PARTS = 1024

ItemId = Annotated[str, Meta(min_length=1, max_length=128)]
Status = Literal["in_progress", "completed", "incomplete"]
Role = Literal["user", "assistant", "system", "developer"]

# -- parts of content ----------------------------------------------------------------------------------------------


class InputText(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="input_text"):
    text: Text


class OutputText(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="output_text"):
    """annotations: none are made here. logprobs: of its tokens, where they are asked for."""

    annotations: list[Any] = []
    logprobs: list[Any] | None = []
    text: Text


class Refusal(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="refusal"):
    refusal: Text


class ReasoningText(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="reasoning_text"):
    text: Text


class SummaryText(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="summary_text"):
    text: Text


Part = InputText | OutputText | Refusal

# -- items ---------------------------------------------------------------------------------------------------------


class MessageItem(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="message"):
    """A text is short for one part. The assistant's parts are of type output_text or refusal, others' input_text."""

    id: ItemId | None = None
    status: Status | None = None
    content: Text | Annotated[list[Part], Meta(max_length=MAX_PARTS)]
    role: Role


class FunctionCallItem(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="function_call"
):
    """A call by the assistant. `call_id`: by which the output refers to it."""

    id: ItemId | None = None
    status: Status | None = None
    arguments: Text
    call_id: CallId
    name: Annotated[str, Meta(min_length=1, max_length=256)]


class FunctionOutputItem(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="function_call_output"
):
    """What a function returned."""

    id: ItemId | None = None
    status: Status | None = None
    call_id: CallId
    output: Text | Annotated[list[InputText], Meta(max_length=MAX_PARTS)]


class ReasoningItem(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="reasoning"):
    """Thoughts of the assistant. `summary`: models here write none; where one is sent without `content`, it counts."""

    id: ItemId | None = None
    status: Status | None = None
    summary: Annotated[list[SummaryText], Meta(max_length=MAX_PARTS)] = []
    content: Annotated[list[ReasoningText], Meta(max_length=MAX_PARTS)] | None = None


class ItemReference(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="item_reference"):
    """An item of a stored response, by its id."""

    id: ItemId


Item = MessageItem | FunctionCallItem | FunctionOutputItem | ReasoningItem
OutputItem = MessageItem | FunctionCallItem | ReasoningItem

# -- ids -----------------------------------------------------------------------------------------------------------

_KINDS = {MessageItem: "msg", FunctionCallItem: "fc", FunctionOutputItem: "fco", ReasoningItem: "rs"}
_ID = re.compile(r"[a-z]+_([0-9a-f]{32})[0-9a-f]{4,8}", re.ASCII)


def item_id(kind: type[Item], response_id: str, number: int) -> str:
    """Of an item by its number within its response, whose id is in it: so an item is found without an index of them."""
    return f"{_KINDS[kind]}_{response_id.removeprefix('resp_')}{number:04x}"


def response_of(item_id: str) -> str | None:
    """The id of the response that an item is of. None: no item of ours has this id."""
    found = _ID.fullmatch(item_id)
    return found and f"resp_{found[1]}"

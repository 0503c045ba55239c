"""Between items and the JSON that is stored of them. Knows the store; knows no request and no answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from msgspec import structs

from loraplex.platform.openai.responses.item_types import Item, MessageItem, OutputItem, OutputText
from loraplex.platform.openai.responses.response_types import ResponseObject
from loraplex.platform.openai.responses.store import ResponseStore, Turn
from loraplex.platform.schema import StoredResponse

_items = msgspec.json.Decoder(list[Item])
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True)
class Context:
    """What a request goes on from: ids of the responses, the first first, and their items."""

    response_ids: Sequence[str] = ()
    items: Sequence[Item] = ()


async def read_context(store: ResponseStore, tenant_id: str, last_id: str | None) -> Context:
    """Raises as `ResponseStore.conversation` does."""
    if last_id is None:
        return Context()
    turns = await store.conversation(tenant_id, last_id)
    return Context([turn.id for turn in turns], [item for turn in turns for item in _said(turn)])


async def read_input(store: ResponseStore, tenant_id: str, response_id: str) -> list[Item]:
    """The items that a response was made from: of those before it, as far as they are there, and its own input."""
    *before, last = await store.remaining(tenant_id, response_id)
    return [*(item for turn in before for item in _said(turn)), *_items.decode(last.input)]


async def read_referred(store: ResponseStore, tenant_id: str, response_ids: Sequence[str]) -> dict[str, Item]:
    """The items of stored responses by their ids, of those that there are."""
    turns = await store.turns(tenant_id, response_ids) if response_ids else []
    return {item.id: item for turn in turns for item in _said(turn) if item.id is not None}


async def keep(
    store: ResponseStore, tenant_id: str, response: ResponseObject, sent: Sequence[Item], earlier: Sequence[str]
) -> None:
    """Store a response that has ended. sent: its own input. earlier: ids of what it goes on from."""
    output = [_without_logprobs(item) for item in response.output]
    turn = Turn(response.id, msgspec.json.encode(sent), msgspec.json.encode(output))
    await store.keep(tenant_id, turn, msgspec.json.encode(structs.replace(response, output=[])), earlier)


def body_of(stored: StoredResponse) -> bytes:
    """The response, as JSON."""
    return msgspec.json.encode(_fields.decode(stored.head) | {"output": msgspec.Raw(stored.output)})


def _said(turn: Turn) -> list[Item]:
    return _items.decode(turn.input) + _items.decode(turn.output)


def _without_logprobs(item: OutputItem) -> OutputItem:
    """They can be many times as large as all else."""
    if not isinstance(item, MessageItem) or isinstance(item.content, str):
        return item
    parts = [structs.replace(part, logprobs=[]) if isinstance(part, OutputText) else part for part in item.content]
    return structs.replace(item, content=parts)

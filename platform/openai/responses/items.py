"""Items as they are sent, made complete: each with an id and a status, its content as parts, and references replaced by
the stored items that they name. Knows no request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import structs

from loraplex.platform.errors import ApiError
from loraplex.platform.openai.responses.item_types import (
    FunctionCallItem,
    FunctionOutputItem,
    InputText,
    Item,
    ItemReference,
    MessageItem,
    OutputText,
    Part,
    ReasoningItem,
    item_id,
    response_of,
)


def completed(sent: str | Sequence[Item | ItemReference], response_id: str, stored: Mapping[str, Item]) -> list[Item]:
    """The input of a response. stored: items that it may refer to, by their ids.

    Raises ApiError for a reference to what is not among them, and for parts that a role does not have.
    """
    if isinstance(sent, str):
        sent = [MessageItem(role="user", content=sent)]
    items: list[Item] = []
    for number, item in enumerate(sent):
        if isinstance(item, ItemReference):
            items.append(_referred(item, stored))
            continue
        new_id = item.id or item_id(type(item), response_id, number)
        items.append(_completed(item, new_id, f"input[{number}]"))
    return items


def responses_referred_to(sent: str | Sequence[Item | ItemReference]) -> list[str]:
    """Ids of the responses whose items are referred to, each once."""
    references = [item.id for item in sent if isinstance(item, ItemReference)]
    return list(dict.fromkeys(found for reference in references if (found := response_of(reference)) is not None))


def _referred(reference: ItemReference, stored: Mapping[str, Item]) -> Item:
    found = stored.get(reference.id)
    if found is None:
        message = (
            f"Item with id '{ascii(reference.id)[1:-1][:60]}' not found. Items are not kept where 'store' is false; "
            "send the item itself."
        )
        raise ApiError(404, "item_not_found", message, param="input")
    return found


def _completed(item: Item, new_id: str, path: str) -> Item:
    status = item.status or "completed"
    match item:
        case MessageItem():
            return structs.replace(item, id=new_id, status=status, content=_parts(item, path))
        case FunctionCallItem() | FunctionOutputItem():
            return structs.replace(item, id=new_id, status=status)
        case ReasoningItem():
            return structs.replace(item, id=new_id, status=status, content=item.content or [])


def _parts(message: MessageItem, path: str) -> list[Part]:
    is_assistant = message.role == "assistant"
    if isinstance(message.content, str):
        return [OutputText(text=message.content) if is_assistant else InputText(message.content)]
    parts: list[Part] = []
    for index, part in enumerate(message.content):
        if is_assistant and isinstance(part, InputText | OutputText):
            parts.append(OutputText(text=part.text))  # without annotations, which nothing here reads
        elif is_assistant or isinstance(part, InputText):
            parts.append(part)
        else:
            param = f"{path}.content[{index}].type"
            message_text = f"Invalid value for '{param}': messages of the {message.role} have parts of type input_text."
            raise ApiError(400, "invalid_value", message_text, param=param)
    return parts

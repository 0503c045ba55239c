"""Items as they are sent, made complete: each with an id and a status, its content as parts, and references replaced by
the stored items that they name. Knows no request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

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


def completed(
    sent: str | Sequence[Item | ItemReference],
    response_id: str,
    stored: Mapping[str, Item],
    earlier_ids: Collection[str | None],
) -> list[Item]:
    """The input of a response. stored: items that it may refer to, by their ids. earlier_ids: of the items before it in
    the conversation. What comes again, under an id that is taken, gets a new one, by which lists go on after it.

    Raises ApiError for a reference to what is not among them, and for parts that a role does not have.
    """
    if isinstance(sent, str):
        sent = [MessageItem(role="user", content=sent)]
    items: list[Item] = []
    taken = {None, *earlier_ids}
    for number, entry in enumerate(sent):
        item = _referred(entry, stored) if isinstance(entry, ItemReference) else entry
        own_id = item_id(type(item), response_id, number) if item.id in taken else item.id
        taken.add(own_id)
        items.append(_completed(item, own_id, f"input[{number}]"))
    return items


def responses_referred_to(sent: str | Sequence[Item | ItemReference]) -> list[str]:
    """Ids of the responses whose items are referred to, each once.

    Raises ApiError for an item that is referred to twice: a short request would be a conversation of any length.
    """
    references = [item.id for item in sent if isinstance(item, ItemReference)]
    if twice := next((name for name, count in Counter(references).items() if count > 1), None):
        message = f"Item with id '{_shown(twice)}' is referred to more than once; refer to it once."
        raise ApiError(400, "invalid_value", message, param="input")
    return list(dict.fromkeys(found for reference in references if (found := response_of(reference)) is not None))


def _referred(reference: ItemReference, stored: Mapping[str, Item]) -> Item:
    found = stored.get(reference.id)
    if found is None:
        message = (
            f"Item with id '{_shown(reference.id)}' not found. Items are not kept where 'store' is false; "
            "send the item itself."
        )
        raise ApiError(404, "item_not_found", message, param="input")
    return found


def _shown(name: str) -> str:
    return ascii(name)[1:-1][:60]


def _completed(item: Item, own_id: str | None, path: str) -> Item:
    status = item.status or "completed"
    match item:
        case MessageItem():
            return structs.replace(item, id=own_id, status=status, content=_parts(item, path))
        case FunctionCallItem() | FunctionOutputItem():
            return structs.replace(item, id=own_id, status=status)
        case ReasoningItem():
            return structs.replace(item, id=own_id, status=status, content=item.content or [])


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

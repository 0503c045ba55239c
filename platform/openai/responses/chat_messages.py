"""From items to the messages of a chat. Knows no request."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from loraplex.platform.openai import tool_types
from loraplex.platform.openai.chat_types import ChatMessage
from loraplex.platform.openai.responses.item_types import (
    FunctionCallItem,
    FunctionOutputItem,
    InputText,
    Item,
    MessageItem,
    Part,
    ReasoningItem,
    Refusal,
)


def chat_messages(instructions: str | None, items: Iterable[Item]) -> list[ChatMessage]:
    """Items of the assistant that follow each other are one message, since templates write one turn for each.

    instructions: begin the system message, since many templates take one alone.
    """
    messages: list[ChatMessage] = []
    turn = _Turn()
    for item in items:
        if turn.ends_before(item):
            messages.append(turn.message())
            turn = _Turn()
        match item:
            case ReasoningItem():
                turn.thoughts += _thoughts(item)
            case FunctionCallItem():
                call = tool_types.FunctionCall(item.name, item.arguments)
                turn.calls.append(tool_types.ToolCall(item.call_id, call))
            case MessageItem(role="assistant"):
                turn.text = _text(item.content)
            case MessageItem():
                messages.append(ChatMessage(item.role, _text(item.content)))
            case FunctionOutputItem():
                messages.append(ChatMessage("tool", _text(item.output), tool_call_id=item.call_id))
    if turn:
        messages.append(turn.message())
    return messages if instructions is None else _instructed(instructions, messages)


@dataclass(slots=True)
class _Turn:
    """What the assistant says from one message of others to the next."""

    thoughts: str = ""
    text: str | None = None
    calls: list[tool_types.ToolCall] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.thoughts or self.calls) or self.text is not None

    def ends_before(self, item: Item) -> bool:
        match item:
            case FunctionCallItem():
                return False
            case ReasoningItem() | MessageItem(role="assistant"):
                return self.text is not None or bool(self.calls)
            case _:
                return bool(self)

    def message(self) -> ChatMessage:
        return ChatMessage(
            "assistant", self.text, tool_calls=self.calls or None, reasoning_content=self.thoughts or None
        )


def _instructed(instructions: str, messages: list[ChatMessage]) -> list[ChatMessage]:
    if messages and messages[0].role in ("system", "developer"):
        return [ChatMessage("system", f"{instructions}\n\n{messages[0].text}"), *messages[1:]]
    return [ChatMessage("system", instructions), *messages]


def _text(content: str | Iterable[Part] | Iterable[InputText]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.refusal if isinstance(part, Refusal) else part.text for part in content)


def _thoughts(item: ReasoningItem) -> str:
    """Those that a client has sent without their content it may know from their summary alone."""
    return "".join(part.text for part in item.content or item.summary)

"""One item of an output while it grows, and the events that tell of it, by its kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from loraplex.platform.openai.logprobs import ChatTokenLogprob
from loraplex.platform.openai.responses.item_types import (
    FunctionCallItem,
    MessageItem,
    OutputItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
    Status,
    item_id,
)

Event = tuple[str, dict[str, Any]]
"""Its type, and its fields without the type and the number."""


class OpenItem(ABC):
    """`stem`: of the types of the events that tell of its text."""

    kind: ClassVar[type[OutputItem]]
    stem: ClassVar[str]

    def __init__(self, response_id: str, number: int, place: int) -> None:
        """number: within its response. place: among its output."""
        self.id = item_id(self.kind, response_id, number)
        self._place = place
        self._pieces: list[str] = []

    @abstractmethod
    def item(self, status: Status) -> OutputItem:
        """As it is now."""

    def opening(self) -> list[Event]:
        return [("response.output_item.added", {"output_index": self._place, "item": self.item("in_progress")})]

    def grow(self, text: str, logprobs: Sequence[ChatTokenLogprob]) -> Event:
        """logprobs: of the tokens that brought this text."""
        self._pieces.append(text)
        return f"{self.stem}.delta", {**self._where, "delta": text}

    def closing(self, status: Status) -> list[Event]:
        return [("response.output_item.done", {"output_index": self._place, "item": self.item(status)})]

    @property
    def _where(self) -> dict[str, Any]:
        return {"item_id": self.id, "output_index": self._place}

    @property
    def _text(self) -> str:
        return "".join(self._pieces)


class _OpenContent(OpenItem):
    """An item with content, of one part, which has events of its own."""

    def opening(self) -> list[Event]:
        return [*super().opening(), ("response.content_part.added", {**self._where, "part": self._part})]

    def closing(self, status: Status) -> list[Event]:
        return [
            (f"{self.stem}.done", {**self._where, "text": self._text, **self._details}),
            ("response.content_part.done", {**self._where, "part": self._part}),
            *super().closing(status),
        ]

    @property
    def _where(self) -> dict[str, Any]:
        return {**super()._where, "content_index": 0}

    @property
    def _details(self) -> dict[str, Any]:
        """Of the event that tells the whole text."""
        return {}

    @property
    @abstractmethod
    def _part(self) -> OutputText | ReasoningText: ...


class OpenMessage(_OpenContent):
    kind = MessageItem
    stem = "response.output_text"

    def __init__(self, response_id: str, number: int, place: int) -> None:
        super().__init__(response_id, number, place)
        self._logprobs: list[ChatTokenLogprob] = []

    def item(self, status: Status) -> MessageItem:
        content = [] if status == "in_progress" else [self._part]
        return MessageItem(id=self.id, status=status, content=[*content], role="assistant")

    def grow(self, text: str, logprobs: Sequence[ChatTokenLogprob]) -> Event:
        name, fields = super().grow(text, logprobs)
        self.score(logprobs)
        return name, {**fields, "logprobs": logprobs}

    def score(self, logprobs: Sequence[ChatTokenLogprob]) -> None:
        """More of its tokens, which brought no text."""
        self._logprobs += logprobs

    @property
    def _details(self) -> dict[str, Any]:
        return {"logprobs": list(self._logprobs)}

    @property
    def _part(self) -> OutputText:
        return OutputText(logprobs=list(self._logprobs), text=self._text)


class OpenReasoning(_OpenContent):
    kind = ReasoningItem
    stem = "response.reasoning_text"

    def item(self, status: Status) -> ReasoningItem:
        return ReasoningItem(id=self.id, status=status, content=[] if status == "in_progress" else [self._part])

    @property
    def _part(self) -> ReasoningText:
        return ReasoningText(self._text)


class OpenCall(OpenItem):
    kind = FunctionCallItem
    stem = "response.function_call_arguments"

    def __init__(self, response_id: str, number: int, place: int, name: str, call_id: str) -> None:
        super().__init__(response_id, number, place)
        self._name = name
        self._call_id = call_id

    def item(self, status: Status) -> FunctionCallItem:
        return FunctionCallItem(id=self.id, status=status, arguments=self._text, call_id=self._call_id, name=self._name)

    def closing(self, status: Status) -> list[Event]:
        done = f"{self.stem}.done", {**self._where, "arguments": self._text}
        return [done, *super().closing(status)]

"""The output of a response while it grows: parts of an answer become items, one after the other, and events.

Knows which part belongs to which item. Knows no format that a model writes, and no frame.
"""

from __future__ import annotations

from collections.abc import Sequence

from loraplex.platform.openai.answer_parts import CallBegun, Part, Said, Thought, joined
from loraplex.platform.openai.chat_reading import new_call_id
from loraplex.platform.openai.logprobs import ChatTokenLogprob
from loraplex.platform.openai.responses.item_types import OutputItem, ReasoningItem, Status
from loraplex.platform.openai.responses.open_items import Event, OpenCall, OpenItem, OpenMessage, OpenReasoning


class Output:
    """`items`: those that have ended; the last one does with `close`."""

    def __init__(self, response_id: str, first_number: int) -> None:
        """first_number: of its items, whose ids go on from those of the input."""
        self.items: list[OutputItem] = []
        self._response_id = response_id
        self._first_number = first_number
        self._open: OpenItem | None = None
        self._logprobs: list[ChatTokenLogprob] = []

    @property
    def thoughts(self) -> str:
        reasonings = (item for item in self.items if isinstance(item, ReasoningItem))
        return "".join(part.text for item in reasonings for part in item.content or ())

    def push(self, parts: list[Part], logprobs: Sequence[ChatTokenLogprob] = ()) -> list[Event]:
        """logprobs: of the tokens that made these parts certain. They go with the text that is next; those of thoughts
        and calls are not told."""
        self._logprobs += logprobs
        return [event for part in joined(parts) for event in self._add(part)]

    def close(self, status: Status) -> list[Event]:
        """After all parts. There is always an item. status: of the last one."""
        events = self._say() if self._open is None else []
        if isinstance(self._open, OpenMessage):
            self._open.score(self._logprobs)
        return events + self._end(status)

    def _add(self, part: Part) -> list[Event]:
        logprobs, self._logprobs = self._logprobs, []
        begun: list[Event] = []
        match part:
            case CallBegun(_, name):
                return self._begin(OpenCall(*self._next, name=name, call_id=new_call_id()))
            case Said():
                begun = self._say()
            case Thought() if not isinstance(self._open, OpenReasoning):
                begun = self._begin(OpenReasoning(*self._next))
            case _:
                pass
        assert self._open is not None
        return [*begun, self._open.grow(part.text, logprobs)]

    def _say(self) -> list[Event]:
        return [] if isinstance(self._open, OpenMessage) else self._begin(OpenMessage(*self._next))

    @property
    def _next(self) -> tuple[str, int, int]:
        """Of the next item: what names it, and its place."""
        place = len(self.items) + (self._open is not None)
        return self._response_id, self._first_number + place, place

    def _begin(self, item: OpenItem) -> list[Event]:
        """The next item, with which the one before ends."""
        ended = self._end("completed")
        self._open = item
        return ended + item.opening()

    def _end(self, status: Status) -> list[Event]:
        if self._open is None:
            return []
        closed, self._open = self._open, None
        self.items.append(closed.item(status))
        return closed.closing(status)

"""What the API process has asked the engine and has no answer to yet. Knows ids and futures; knows no message."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any


class Questions:
    """Each question has an id, which its answer carries. For the tasks of one event loop."""

    def __init__(self) -> None:
        self._ids = itertools.count()
        self._open: dict[int, asyncio.Future[Any]] = {}

    def open(self) -> tuple[int, asyncio.Future[Any]]:
        """The id of a new question and its answer to be. Whoever cancels that does without."""
        question_id = next(self._ids)
        answer = self._open[question_id] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda _: self._open.pop(question_id, None))
        return question_id, answer

    def answer(self, question_id: int, answer: Any) -> None:
        """An unknown id is one that nobody waits for any more."""
        waiting = self._open.get(question_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    def fail(self, error: Exception) -> None:
        """None of the open ones will be answered."""
        for waiting in list(self._open.values()):
            if not waiting.done():
                waiting.set_exception(error)
                waiting.exception()  # where nobody waits, it is no news to the event loop

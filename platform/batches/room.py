"""How many lines of batches may run at the same time: as many as leave room for live traffic, and always one.

Knows which batch a line is of, so that all batches get on; knows no line.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


class Room:
    """For all batches of a server. Of the sequences that fit in a step, lines take at most half of what live requests
    leave, and never more than `most`. Next is a line of the batch with the fewest inside, or that waits longest."""

    def __init__(self, most: int, max_num_seqs: int, pending: Callable[[], int]) -> None:
        """pending: requests that the engine has in hand, lines among them."""
        self._most = most
        self._max_num_seqs = max_num_seqs
        self._pending = pending
        self._batches: dict[str, _Lines] = {}  # in the order in which one of their lines was let in last

    @asynccontextmanager
    async def enter(self, batch_id: str) -> AsyncIterator[None]:
        """Wait for room and hold it during the block. Room is looked for again whenever a line comes or leaves; there
        is at least one that will."""
        lines = self._batches.setdefault(batch_id, _Lines())
        turn = asyncio.Event()
        lines.waiting.append(turn)
        self._let_in()
        try:
            await turn.wait()
            yield
        finally:
            if turn.is_set():
                lines.inside -= 1
            else:
                lines.waiting.remove(turn)
            if not lines.inside and not lines.waiting:
                del self._batches[batch_id]
            self._let_in()

    def _let_in(self) -> None:
        inside = sum(lines.inside for lines in self._batches.values())
        live = max(self._pending() - inside, 0)
        allowed = max(1, min(self._most, (self._max_num_seqs - live) // 2))
        for _ in range(allowed - inside):
            wanting = [batch_id for batch_id, lines in self._batches.items() if lines.waiting]
            if not wanting:
                return
            batch_id = min(wanting, key=lambda batch_id: self._batches[batch_id].inside)
            lines = self._batches[batch_id] = self._batches.pop(batch_id)
            lines.inside += 1
            lines.waiting.popleft().set()


@dataclass(slots=True)
class _Lines:
    """Of one batch. inside: how many hold room. waiting: the turn of each that does not."""

    inside: int = 0
    waiting: deque[asyncio.Event] = field(default_factory=deque)

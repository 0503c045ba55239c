"""How many lines of batches may run at the same time: as many as leave room for live traffic, and always one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class Room:
    """For all batches of a server. Of the sequences that fit in a step, lines take at most half of what live requests
    leave, and never more than `most`."""

    def __init__(self, most: int, max_num_seqs: int, pending: Callable[[], int]) -> None:
        """pending: requests that the engine has in hand, lines among them."""
        self._most = most
        self._max_num_seqs = max_num_seqs
        self._pending = pending
        self._taken = 0
        self._left = asyncio.Event()

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Wait for room and hold it during the block. Room is looked for again whenever a line leaves; there is at
        least one that will."""
        while self._taken >= self._allowed():
            self._left.clear()
            await self._left.wait()
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
            self._left.set()

    def _allowed(self) -> int:
        live = max(self._pending() - self._taken, 0)
        return max(1, min(self._most, (self._max_num_seqs - live) // 2))

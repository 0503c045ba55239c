"""How far the chain of the audit log has been followed on this server, and whether it was whole so far.

Knows the log and a clock. Each look goes on where the last one stopped, so that a long chain costs a page little.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from loraplex.adapters.audit_log import START, AuditLog, ChainBroken, Link

PAGES_PER_LOOK = 5
ANEW_SECONDS = 3600.0
"""After that long the chain is followed from its beginning again: what was right may have been altered since."""


@dataclass(frozen=True, slots=True)
class ChainState:
    """`verified`: the last entry up to which all are as they were written; `end`: the newest. `why`: what is wrong with
    the entry after `verified`; None: nothing is, as far as is known."""

    verified: Link
    end: Link
    why: str | None = None

    @property
    def is_whole(self) -> bool:
        return self.why is None and self.verified == self.end


class AuditChain:
    """For the tasks of one event loop."""

    def __init__(self, log: AuditLog, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._began_at = float("-inf")
        self._place = START
        self._lock = asyncio.Lock()

    async def look(self) -> ChainState:
        """Follow the chain on, for a while. Raises the database's errors."""
        async with self._lock:
            if self._clock() - self._began_at > ANEW_SECONDS:
                self._place, self._began_at = START, self._clock()
            try:
                for _ in range(PAGES_PER_LOOK):
                    before, self._place = self._place, await self._log.verify(self._place)
                    if self._place == before:
                        break
            except ChainBroken as broken:
                return ChainState(Link(broken.number - 1), await self._log.head(), str(broken))
            return ChainState(self._place, await self._log.head())

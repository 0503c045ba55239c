"""Which requests of which tenants were refused lately, and why: counted in memory, by reasons that are few.

Knows no limit: who refuses says what the reason is, in words for people.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping

from litestar.types import Message, Scope

from loraplex.platform.tenants import Principal

SLOT_SECONDS = 10.0
SLOTS = 30
MAX_TENANTS = 10_000
"""That are remembered; the one that was refused longest ago goes first."""

BUSY = "server busy"
"""The server had no room, whatever the tenant's limits were."""


class Refusals:
    """For the tasks of one event loop. clock: in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tenants: OrderedDict[str, deque[tuple[int, Counter[str]]]] = OrderedDict()

    def note(self, tenant_id: str, reason: str) -> None:
        """One request was refused now."""
        slot = self._slot()
        slots = self._tenants.setdefault(tenant_id, deque(maxlen=SLOTS))
        self._tenants.move_to_end(tenant_id)
        if not slots or slots[-1][0] != slot:
            slots.append((slot, Counter()))
        slots[-1][1][reason] += 1
        if len(self._tenants) > MAX_TENANTS:
            self._tenants.popitem(last=False)

    def of(self, tenant_id: str) -> Mapping[str, int]:
        """How many for each reason, in the last five minutes."""
        oldest = self._slot() - SLOTS
        counts: Counter[str] = Counter()
        for slot, of_slot in self._tenants.get(tenant_id, ()):
            if slot > oldest:
                counts.update(of_slot)
        return counts

    async def note_busy(self, message: Message, scope: Scope) -> None:
        """Litestar's `before_send`: a 503 to a tenant's key is a refusal, too."""
        caller = scope.get("auth")
        if message["type"] == "http.response.start" and message["status"] == 503 and isinstance(caller, Principal):
            self.note(caller.tenant_id or "", BUSY)

    def _slot(self) -> int:
        return int(self._clock() / SLOT_SECONDS)

"""What each tenant's own requests did with its adapters on this server: when, how often they had to wait, for what.

Tenants that uploaded the same bytes share what the engine holds, and the engine's own numbers would tell each of them
about the others. So a tenant is told these instead, and where its bytes are only as far as its own requests can have
brought them there. Knows tenants and digests; knows no engine.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from loraplex.engine.messages import LoadTimes, Started

Tier = Literal["disk", "host", "device"]
TIERS: tuple[Tier, ...] = ("disk", "host", "device")

MAX_ENTRIES = 65_536
"""Adapters of tenants that are remembered; of more, the least recently used ones that no request has are forgotten."""


@dataclass(slots=True)
class Use:
    """running: requests in hand. loads: those that found it missing; last_load: what the last of them waited for.

    told: the highest tier that the tenant may be told, once it has been told that its bytes are on the device; None:
    it has brought them there, and not looked since.
    """

    running: int = 0
    last_used_at: float | None = None
    loads: int = 0
    last_load: LoadTimes | None = None
    told: Tier | None = None


class UseLog:
    """By tenant and digest. For the tasks of one event loop."""

    def __init__(self) -> None:
        self._uses: OrderedDict[tuple[str, str], Use] = OrderedDict()

    def begin(self, tenant_id: str, digests: Iterable[str]) -> None:
        """A request of the tenant's runs with these, each named once."""
        for digest in digests:
            use = self.touch(tenant_id, digest)
            use.running += 1
            use.last_used_at = time.time()

    def end(self, tenant_id: str, digests: Iterable[str], started: Started | None) -> None:
        """That request has ended. started: None if it never ran."""
        for digest in digests:
            use = self.touch(tenant_id, digest)
            use.running -= 1
            use.last_used_at = time.time()
            if started is not None and digest in started.loads:
                use.loads += 1
                use.last_load = started.loads[digest]

    def touch(self, tenant_id: str, digest: str) -> Use:
        """The tenant does what brings the adapter to the device, and may be told that it is there."""
        use = self._uses.setdefault((tenant_id, digest), Use())
        use.told = None
        self._uses.move_to_end((tenant_id, digest))
        if len(self._uses) > MAX_ENTRIES:
            self._forget_one()
        return use

    def evicted(self, tenant_id: str, digest: str) -> None:
        """The tenant has given up its memory; whoever else keeps it there is not told of."""
        self.touch(tenant_id, digest).told = "disk"

    def of(self, tenant_id: str, digest: str) -> Use:
        return self._uses.get((tenant_id, digest), Use(told="disk"))

    def tell(self, tenant_id: str, digest: str, tier: Tier) -> Tier:
        """What to tell the tenant where it is on this tier: never a rise that the tenant has not caused."""
        use = self._uses.get((tenant_id, digest))
        if use is None:
            return "disk"
        if use.told is None:
            use.told = "device" if tier == "device" else None
            return tier
        told: Tier = min(use.told, tier, key=TIERS.index)
        use.told = told
        return told

    def _forget_one(self) -> None:
        idle = next((key for key, use in self._uses.items() if not use.running), None)
        if idle is not None:
            del self._uses[idle]

"""Room on the device for adapters that are to be loaded: whose place each may take, and who waits for room.

What was asked for least, lately, goes first. Knows the pool, pins and demand; knows no load.
"""

from __future__ import annotations

from collections.abc import Set

from loraplex.adapters.demand import Demand
from loraplex.adapters.device_adapter import DeviceAdapter
from loraplex.adapters.device_pool import DevicePool
from loraplex.adapters.errors import AdapterUnavailable
from loraplex.adapters.pins import Pins


class DeviceRoom:
    """What sequences want is kept from loads ahead of their turn, but not from a sequence whose turn it is: those that
    wanted it and came first have their lease by then. What is pinned is never evicted; where pins lie in the way they
    are moved together, but not ahead of a sequence that waits."""

    def __init__(self, pool: DevicePool, pins: Pins, demand: Demand) -> None:
        self._pool = pool
        self._pins = pins
        self._demand = demand
        self._lacking: dict[str, int] = {}  # those wanted, and their bytes
        self._is_full = False  # no use in looking ahead until something changes

    @property
    def may_be_claimed_ahead(self) -> bool:
        """Whether there is use in looking ahead of any sequence's turn."""
        return not self._is_full and not self._lacking

    def lacks(self, digest: str) -> bool:
        """Whether the adapter, which a sequence wants, waits for leases of others to end."""
        return digest in self._lacking

    def changed(self) -> None:
        """Something ended that may have kept the room full."""
        self._is_full = False

    def unwanted(self, digest: str) -> None:
        """No sequence waits for the adapter any more."""
        self._lacking.pop(digest, None)

    def claim(self, digest: str, elements: int, *, ahead: bool) -> bool:
        """A range of the pool for the adapter; False while there is none. ahead: only at nobody's cost.

        Raises AdapterUnavailable if there can be none for as long as what is pinned stays.
        """
        if ahead and self._lacking:
            return False
        self._require_room_beside_pins(digest, elements)
        if self._allocate(digest, elements, ahead=ahead):
            self._lacking.pop(digest, None)
            return True
        if ahead:
            self._is_full = True
        elif digest in self._demand.wanted:
            self._lacking[digest] = self._pool.bytes_for(elements)
        return False

    def gather_beside(self, leases: tuple[DeviceAdapter, ...], digest: str) -> tuple[DeviceAdapter, ...]:
        """For an adapter that lacks room though nothing but these is leased, move these and what is pinned together.
        The same leases, of adapters that may lie elsewhere then.

        Raises AdapterUnavailable if all of them together are larger than what pins leave of the pool.
        """
        unpinned = {lease.digest: lease.size_bytes for lease in leases if lease.digest not in self._pins}
        missing = 0 if digest in self._pins else self._lacking[digest]
        if sum(unpinned.values()) + missing > self._unpinned_bytes:
            raise AdapterUnavailable(
                f"these adapters together take more than the {self._unpinned_bytes} bytes for adapters on the device "
                "that are not pinned; combine fewer or smaller ones, or raise --adapter-device-bytes"
            )
        for lease in leases:
            self._pool.release(lease.digest)
        self._pool.gather(0, self._pins.digests() | unpinned.keys())
        return tuple(self._pool.lease(lease.digest) for lease in leases)

    @property
    def _unpinned_bytes(self) -> int:
        return self._pool.capacity_bytes - self._pins.device_bytes

    def _allocate(self, digest: str, elements: int, *, ahead: bool) -> bool:
        pinned, wanted = self._pins.digests(), self._demand.wanted
        if self._take(digest, elements, pinned | wanted):
            return True
        if ahead and wanted:
            return False
        return self._take(digest, elements, pinned) or (
            self._pool.gather(elements, pinned) and self._take(digest, elements, pinned)
        )

    def _take(self, digest: str, elements: int, keep: Set[str]) -> bool:
        return self._pool.allocate(digest, elements, keep=keep, worth=self._demand.worth) is not None

    def _require_room_beside_pins(self, digest: str, elements: int) -> None:
        size_bytes = self._pool.bytes_for(elements)
        if digest not in self._pins and self._unpinned_bytes < size_bytes <= self._pool.capacity_bytes:
            raise AdapterUnavailable(
                f"this adapter takes {size_bytes} bytes of device memory, and pinned ones leave "
                f"{self._unpinned_bytes}; try again when pins have ended, or raise --adapter-device-bytes"
            )

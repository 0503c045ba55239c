"""Packed adapters in host memory, so that coming back to the device takes no disk.

Knows digests and bytes. Used by the engine's thread only. An entry that is evicted while a copy reads it stays alive
through that copy's own reference.
"""

from __future__ import annotations

from collections import OrderedDict

from loraplex.adapters.weights import PackedAdapter


class HostCache:
    """Least recently used goes first; the sizes of all entries never sum to more than `capacity_bytes`."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self._entries: OrderedDict[str, PackedAdapter] = OrderedDict()

    def get(self, digest: str) -> PackedAdapter | None:
        packed = self._entries.get(digest)
        if packed is not None:
            self._entries.move_to_end(digest)
        return packed

    def put(self, digest: str, packed: PackedAdapter) -> None:
        """Keep an adapter, at the cost of older ones. One that is larger than the whole cache is not kept."""
        self.evict(digest)
        if packed.size_bytes > self.capacity_bytes:
            return
        while self.used_bytes + packed.size_bytes > self.capacity_bytes:
            self.evict(next(iter(self._entries)))
        self._entries[digest] = packed
        self.used_bytes += packed.size_bytes

    def evict(self, digest: str) -> None:
        """Forget an adapter; nothing happens if it is not there."""
        packed = self._entries.pop(digest, None)
        if packed is not None:
            self.used_bytes -= packed.size_bytes

    def size_bytes(self, digest: str) -> int:
        """What an adapter takes here, 0 where it is not."""
        return self._entries[digest].size_bytes if digest in self._entries else 0

    def residents(self) -> dict[str, int]:
        """Digest -> bytes, least recently used first."""
        return {digest: packed.size_bytes for digest, packed in self._entries.items()}

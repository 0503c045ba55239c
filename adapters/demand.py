"""Who asks for which adapters: sequences that wait, pins and warm-ups; and in which order they are loaded ahead.

Knows digests; knows no memory and no load. One thread, the engine's, calls every method.
"""

from __future__ import annotations

from collections.abc import KeysView
from itertools import chain, islice

from loraplex.adapters.pins import Pins
from loraplex.adapters.popularity import Popularity

LOOK_AHEAD = 64
"""Adapters at the head of the queue that are loaded before their turn."""

MAX_WARMING = 64
"""Adapters that are to be warmed and have not come to the device yet; beyond them the oldest is given up."""


class Demand:
    """What is pinned comes from `pins`; here stands which of it is not on the device yet."""

    def __init__(self, pins: Pins) -> None:
        self._pins = pins
        self._popularity = Popularity()
        self._wanted: dict[str, int] = {}  # digest -> waiting sequences, in the order in which they came
        self._pinning: dict[str, None] = {}
        self._warming: dict[str, None] = {}

    @property
    def wanted(self) -> KeysView[str]:
        """What sequences wait for."""
        return self._wanted.keys()

    def want(self, digest: str) -> None:
        """A sequence has begun to wait for it."""
        self._wanted[digest] = self._wanted.get(digest, 0) + 1
        self._popularity.record(digest)

    def unwant(self, digest: str) -> None:
        """One of the sequences waits no longer."""
        self._wanted[digest] -= 1
        if self._wanted[digest] == 0:
            del self._wanted[digest]

    def warm(self, digest: str) -> None:
        """Until it is on the device, or others have been asked for since."""
        self._warming[digest] = None
        if len(self._warming) > MAX_WARMING:
            del self._warming[next(iter(self._warming))]

    def stop_warming(self, digest: str) -> None:
        self._warming.pop(digest, None)

    def pin(self, digest: str) -> None:
        """Until it is on the device, or nobody asks for a pin any more."""
        self._pinning[digest] = None

    def arrived(self, digest: str) -> None:
        """It is on the device."""
        self._warming.pop(digest, None)
        self._pinning.pop(digest, None)

    def is_there(self, digest: str) -> bool:
        """Whether anybody asks for it."""
        return digest in self._wanted or digest in self._warming or self._pins.is_asked(digest)

    def ahead(self) -> list[str]:
        """What is to be loaded before its turn: for sequences first, then for pins, then for `warm`."""
        for digest in [digest for digest in self._pinning if not self._pins.is_asked(digest)]:
            del self._pinning[digest]
        return list(islice(chain(self._wanted, self._pinning, self._warming), LOOK_AHEAD))

    def undecided_pins(self) -> list[str]:
        """What is asked to be pinned and has no answer yet, for which it must be read and needs no room."""
        return [digest for digest in self._pinning if self._pins.is_asked(digest) and digest not in self._pins]

    def worth(self, digest: str) -> int:
        """How much it was asked for by sequences, lately."""
        return self._popularity.of(digest)

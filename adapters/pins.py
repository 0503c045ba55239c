"""Which adapters stay on the device, for whom and until when, and how much of it pins may take.

Knows digests, bytes and a clock; owners are opaque. Knows no load: `residency` says what an adapter takes, once it is
known, and only then a pin is granted or refused. One thread, the engine's, calls every method.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from loraplex.adapters.whereabouts import Refusal


@dataclass(frozen=True, slots=True)
class PinLimits:
    """Parts of the device's adapter memory, 0 to 1: what all pins may take, and those of one owner."""

    share: float = 0.5
    share_per_owner: float = 0.25


@dataclass(slots=True)
class _Pin:
    """size_bytes None: asked for, neither granted nor refused yet. tickets: of those who wait for the answer."""

    until: float
    size_bytes: int | None = None
    tickets: list[int] = field(default_factory=list)


class Pins:
    """A container of the digests that are pinned.

    Every owner pays in full for what it pins, whoever else pins the same: a pin is granted or refused by what its owner
    and all together have asked for, and the answer does not show who else has the same bytes.
    """

    def __init__(
        self, capacity_bytes: int, limits: PinLimits = PinLimits(), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._capacity_bytes = capacity_bytes
        self._limits = limits
        self._clock = clock
        self._pins: dict[str, dict[str, _Pin]] = {}  # digest -> owner -> pin
        self._answers: list[tuple[int, Refusal | None]] = []
        self._next_end = float("inf")

    def __contains__(self, digest: object) -> bool:
        return any(pin.size_bytes is not None for pin in self._pins.get(str(digest), {}).values())

    def digests(self) -> set[str]:
        """Those that are pinned."""
        return {digest for digest in self._pins if digest in self}

    @property
    def device_bytes(self) -> int:
        """What the pinned adapters take, each counted once, whether they have come to the device or not."""
        return sum(max(pin.size_bytes or 0 for pin in owners.values()) for owners in self._pins.values())

    def ask(self, ticket: int, digest: str, owner: str, seconds: float) -> None:
        """Pin from now on for so long, or change when a pin ends. `take_answers` has the answer, under the ticket."""
        until = self._clock() + seconds
        pin = self._pins.setdefault(digest, {}).setdefault(owner, _Pin(until))
        pin.until = until
        self._next_end = min(self._next_end, until)
        if pin.size_bytes is None:
            pin.tickets.append(ticket)
        else:
            self._answers.append((ticket, None))

    def is_asked(self, digest: str) -> bool:
        """Whether somebody pins it or wants to."""
        return digest in self._pins

    def decide(self, digest: str, size_bytes: int) -> None:
        """The adapter takes so much on the device: grant what is asked for, or refuse it."""
        for owner, pin in list(self._pins.get(digest, {}).items()):
            if pin.size_bytes is None:
                refusal = self._refusal(owner, size_bytes)
                if refusal is None:
                    pin.size_bytes = size_bytes
                    self._answer(pin, None)
                else:
                    self._drop(digest, owner, refusal)

    def fail(self, digest: str, message: str) -> None:
        """It cannot be loaded now: what was asked for is refused, and what was granted before stays."""
        for owner, pin in list(self._pins.get(digest, {}).items()):
            if pin.size_bytes is None:
                self._drop(digest, owner, Refusal("adapter_load_failed", message))

    def end(self, digest: str, owner: str) -> None:
        """Nothing happens if there is no such pin."""
        if owner in self._pins.get(digest, {}):
            self._drop(digest, owner, Refusal("pin_ended", "the pin ended before the adapter was loaded"))

    def expire(self) -> bool:
        """End those whose time is over; cheap, and False, when there is none."""
        now = self._clock()
        if now < self._next_end:
            return False
        for digest, owner, pin in list(self._all()):
            if pin.until <= now:
                self.end(digest, owner)
        self._next_end = min((pin.until for _, _, pin in self._all()), default=float("inf"))
        return True

    def take_answers(self) -> list[tuple[int, Refusal | None]]:
        """(ticket, why not) of those decided since the last call; None: it is pinned."""
        answers, self._answers = self._answers, []
        return answers

    def of(self, digest: str) -> tuple[int, float]:
        """How many owners pin it, and for how many seconds from now the last of them does."""
        ends = [pin.until for pin in self._pins.get(digest, {}).values() if pin.size_bytes is not None]
        return len(ends), max(ends) - self._clock() if ends else 0.0

    def check_integrity(self) -> None:
        """Assert what must hold after every operation."""
        granted: dict[str, int] = {}
        for digest, owner, pin in self._all():
            granted[owner] = granted.get(owner, 0) + (pin.size_bytes or 0)
            assert not (pin.tickets and pin.size_bytes is not None), f"{digest} was granted and nobody told"
        assert all(claimed <= self._capacity_bytes * self._limits.share_per_owner for claimed in granted.values())
        assert sum(granted.values()) <= self._capacity_bytes * self._limits.share
        assert self.device_bytes <= sum(granted.values())
        assert all(self._pins.values()), "a digest without pins is kept"

    def _all(self) -> Iterator[tuple[str, str, _Pin]]:
        for digest, owners in self._pins.items():
            for owner, pin in owners.items():
                yield digest, owner, pin

    def _refusal(self, owner: str, size_bytes: int) -> Refusal | None:
        claims = [(other, pin.size_bytes or 0) for _, other, pin in self._all()]
        own = size_bytes + sum(claimed for other, claimed in claims if other == owner)
        together = size_bytes + sum(claimed for _, claimed in claims)
        if own > (most := int(self._capacity_bytes * self._limits.share_per_owner)):
            message = (
                f"this adapter takes {size_bytes} bytes on the device, with which your pins would take {own} of the "
                f"{most} bytes that one tenant may pin; end other pins first"
            )
            return Refusal("pins_exceeded", message)
        if together > int(self._capacity_bytes * self._limits.share):
            message = "all tenants' pins together take what this server lets them; try again later, or warm the version"
            return Refusal("pins_exceeded", message)
        return None

    def _drop(self, digest: str, owner: str, refusal: Refusal) -> None:
        pin = self._pins[digest].pop(owner)
        if not self._pins[digest]:
            del self._pins[digest]
        self._answer(pin, refusal)

    def _answer(self, pin: _Pin, refusal: Refusal | None) -> None:
        self._answers += [(ticket, refusal) for ticket in pin.tickets]
        pin.tickets.clear()

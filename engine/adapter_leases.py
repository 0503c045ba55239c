"""The adapters of sequences: those that waiting ones want, and those that they hold from before they run to their end.

Knows sequences and the adapters' residency; knows no pages and no tokens.
"""

from __future__ import annotations

from loraplex.adapters.errors import AdapterUnavailable
from loraplex.adapters.residency import AdapterResidency
from loraplex.engine.sequence import Sequence

NOT_ADDITIVE = (
    "an adapter that rescales the base or replaces parts of it (DoRA, IA3, embeddings of its own) cannot be combined "
    "with others; use it alone"
)


class AdapterLeases:
    """Of waiting sequences with several adapters, one at a time gathers what is missing, keeping what it has: two that
    did so could wait for each other for ever."""

    def __init__(self, residency: AdapterResidency) -> None:
        self._residency = residency
        self._gathering: Sequence | None = None  # waits, and holds some of its adapters

    def want(self, sequence: Sequence) -> None:
        """It has begun to wait."""
        for use in sequence.adapters:
            self._residency.want(use.digest)

    def unwant(self, sequence: Sequence) -> None:
        """It waits no longer."""
        for use in sequence.adapters:
            self._residency.unwant(use.digest)

    def take(self, sequence: Sequence) -> bool:
        """All that it needs, or False: ask again next step. Raises AdapterUnavailable if it cannot have them."""
        if self._must_wait(sequence):
            return False
        for use in sequence.adapters[len(sequence.leases) :]:
            lease = self._residency.try_lease(use.digest)
            if lease is None:
                break
            sequence.leases += (lease,)
        if len(sequence.leases) == len(sequence.adapters):
            if len(sequence.leases) > 1 and not all(lease.is_additive for lease in sequence.leases):
                raise AdapterUnavailable(NOT_ADDITIVE)
            self._end_gathering(sequence)
            return True
        if sequence.leases:
            self._gathering = sequence
            missing = sequence.adapters[len(sequence.leases)].digest
            sequence.leases = self._residency.make_room_beside(sequence.leases, missing)
        return False

    def are_ready(self, sequence: Sequence) -> bool:
        """Whether all that it needs is on the device."""
        return all(self._residency.is_ready(use.digest) for use in sequence.adapters)

    def is_held_up(self, sequence: Sequence) -> bool:
        """Whether it waits for others, and not for its adapters to be loaded alone."""
        return self._must_wait(sequence) or any(self._residency.lacks_room(use.digest) for use in sequence.adapters)

    def release(self, sequence: Sequence) -> None:
        """What it holds."""
        for lease in sequence.leases:
            self._residency.release(lease.digest)
        sequence.leases = ()
        self._end_gathering(sequence)

    def make_way(self, for_sequences: list[Sequence]) -> None:
        """What another one has gathered so far is free again: it may be just what these lack, who go first."""
        if self._gathering is not None and self._gathering not in for_sequences:
            self.release(self._gathering)

    def _must_wait(self, sequence: Sequence) -> bool:
        is_another = len(sequence.adapters) > 1 and self._gathering not in (None, sequence)
        return is_another and not self.are_ready(sequence)

    def _end_gathering(self, sequence: Sequence) -> None:
        if self._gathering is sequence:
            self._gathering = None

"""Which of the sequences that wait go next: in the order of their turns, past those whose adapters are on their way.

Knows adapters and pages; knows no step. Whose turn it is knows `fair_queue`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator

from loraplex.adapters.errors import AdapterUnavailable
from loraplex.adapters.residency import AdapterResidency
from loraplex.adapters.whereabouts import LoadTimes
from loraplex.engine.adapter_leases import AdapterLeases
from loraplex.engine.events import OwnerShare, Started
from loraplex.engine.fair_queue import BYTES_PER_TOKEN, CACHED_COST, LOCALITY_CREDIT, FairQueue, Owner
from loraplex.engine.sequence import MAX_OVERTAKEN, Sequence
from loraplex.engine.sequence_pages import SequencePages

MAX_PAID_LOADS = 4096
"""Loads that are remembered as charged, so that of several sequences that waited for one only the first is."""


class Admission:
    """Owns the queue. What it admits has its adapters and its pages, and is charged for what it found and had loaded.

    clock: the residency's. fail: told of a sequence that cannot have its adapters and waits no longer: a code, and why.
    """

    def __init__(
        self,
        pages: SequencePages,
        adapters: AdapterLeases,
        residency: AdapterResidency,
        clock: Callable[[], float],
        fail: Callable[[Sequence, str, str], None],
    ) -> None:
        self._pages = pages
        self._adapters = adapters
        self._residency = residency
        self._clock = clock
        self._fail = fail
        self._admissions = 0
        self._queue = FairQueue()
        self._lacks_pages = False
        self._started: list[Started] = []
        self._paid_loads: OrderedDict[str, LoadTimes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._queue)

    def __bool__(self) -> bool:
        return bool(self._queue)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._queue)

    def enqueue(self, sequence: Sequence) -> None:
        """Behind those of its owner with the same adapters, but for priorities."""
        sequence.arrived_at = self._clock()
        self._adapters.want(sequence)
        self._queue.arrive(sequence)

    def put_back(self, sequence: Sequence) -> None:
        """One that runs, before those of its owner with the same adapters. It keeps its charge."""
        self._adapters.want(sequence)
        self._queue.come_back(sequence)

    def remove(self, sequence: Sequence) -> None:
        self._queue.remove(sequence)
        self._stop_waiting(sequence)

    def end(self, sequence: Sequence) -> None:
        """Of one that was admitted and runs no more."""
        self._queue.end(sequence)

    def take_started(self) -> list[Started]:
        """Sequences that were admitted for the first time since the last call."""
        started, self._started = self._started, []
        return started

    def shares(self) -> list[OwnerShare]:
        return self._queue.told(self._clock())

    def claim(self, seats: int) -> tuple[Sequence, Owner] | None:
        """Who waits for nothing but a seat or pages and may have those of another, whose owner has more than its share;
        and that owner. To be asked in every step."""
        self._queue.begin_slot(self._clock())
        if (seats and not self._lacks_pages) or not self._queue.may_claim():
            return None
        for sequence in self._queue.turns():
            if not sequence.is_held_back and self._adapters.are_ready(sequence):
                above = self._queue.above(sequence.flow.owner)
                return None if above is None else (sequence, above)
        return None

    def admit(self, seats: int, budget: int, before: Owner | None = None) -> list[Sequence]:
        """As many as there are seats and tokens for, the last one perhaps with more tokens than are left.

        One whose adapter is not on the device yet is passed over, not waited for, unless what holds it up is others'
        use of the room and MAX_OVERTAKEN have gone ahead already, or an owner that is LOCALITY_CREDIT ahead is next. So
        is one that is held back: what it waits for stands before it, or runs. before: only those whose turn is before
        this owner's."""
        admitted: list[Sequence] = []
        passed: list[Sequence] = []
        most_admissions = highest_counter = math.inf
        if before is None:
            self._lacks_pages = False
        elif not self._queue.is_anyone_ahead_of(before):
            return admitted
        for sequence in self._queue.turns() if seats else ():
            owner = sequence.flow.owner
            if before is not None and (sequence.level or owner is before or owner.counter > before.counter):
                break
            if self._admissions >= most_admissions or owner.counter > highest_counter:
                self._adapters.make_way(passed)
                break
            if sequence.is_held_back:
                passed.append(sequence)
                continue
            if not self._take_adapters(sequence):
                passed.append(sequence)
                if not sequence.has_ended and self._adapters.is_held_up(sequence):
                    most_admissions = min(most_admissions, self._admissions_before(sequence))
                    highest_counter = min(highest_counter, owner.counter + LOCALITY_CREDIT / owner.weight)
                continue
            if not self._pages.claim(sequence):
                self._adapters.release(sequence)
                self._lacks_pages = True
                break
            self._start(sequence)
            admitted.append(sequence)
            budget -= sequence.remaining
            if budget <= 0 or len(admitted) == seats:
                break
        return admitted

    def _take_adapters(self, sequence: Sequence) -> bool:
        """All that it needs. A sequence that cannot have them fails."""
        try:
            return self._adapters.take(sequence)
        except AdapterUnavailable as error:
            self._adapters.release(sequence)
            self.remove(sequence)
            self._fail(sequence, "adapter_load_failed", str(error))
            return False

    def _start(self, sequence: Sequence) -> None:
        self._queue.start(sequence)
        self._stop_waiting(sequence)
        self._admissions += 1
        sequence.stint_from = sequence.computed
        if (found := sequence.newly_read(sequence.computed)) > 0:
            sequence.flow.charge(CACHED_COST * found)
        if not sequence.has_started:
            sequence.has_started = True
            if (loads := self._note_start(sequence)) and (cost := self._cost_of(loads, sequence)):
                sequence.flow.charge(cost)

    def _stop_waiting(self, sequence: Sequence) -> None:
        sequence.owed_room_after = None
        sequence.after = None
        self._adapters.unwant(sequence)

    def _note_start(self, sequence: Sequence) -> dict[str, LoadTimes]:
        """The loads that it waited for, by digest."""
        ready_at = sequence.arrived_at
        loads = {}
        for use in sequence.adapters:
            if load := self._residency.load_since(use.digest, sequence.arrived_at):
                loads[use.digest] = load[1]
                ready_at = max(ready_at, load[0])
        load_seconds, queue_seconds = ready_at - sequence.arrived_at, self._clock() - ready_at
        self._started.append(Started(sequence.request_id, queue_seconds, load_seconds, loads))
        return loads

    def _cost_of(self, loads: dict[str, LoadTimes], sequence: Sequence) -> float:
        """Of those of these loads that nobody was charged for."""
        cost = 0.0
        for lease in sequence.leases:
            load = loads.get(lease.digest)
            if load is not None and self._paid_loads.get(lease.digest) is not load:
                self._paid_loads[lease.digest] = load
                cost += lease.size_bytes / BYTES_PER_TOKEN
        while len(self._paid_loads) > MAX_PAID_LOADS:
            self._paid_loads.popitem(last=False)
        return cost

    def _admissions_before(self, sequence: Sequence) -> int:
        """How many admissions there may have been before this one, which lacks room for an adapter."""
        if sequence.owed_room_after is None:
            sequence.owed_room_after = self._admissions + MAX_OVERTAKEN
        return sequence.owed_room_after

"""The sequences that wait, and which of them go next: in order of arrival, past those whose adapters are on their way.

Knows adapters and pages; knows no step.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator

from loraplex.adapters.errors import AdapterUnavailable
from loraplex.adapters.residency import AdapterResidency
from loraplex.engine.adapter_leases import AdapterLeases
from loraplex.engine.events import Started
from loraplex.engine.sequence import Sequence
from loraplex.engine.sequence_pages import SequencePages

MAX_OVERTAKEN = 64
"""Sequences that may be admitted while an older one finds no room for its adapters, or waits for its turn to gather
several. Then those that run are the last before it: a popular adapter cannot keep a rare one waiting for ever. And of
those that have a higher priority, so many are put before an older one at most."""


class Admission:
    """Owns the queue. What it admits has its adapters and its pages.

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
        self._waiting: deque[Sequence] = deque()
        self._started: list[Started] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._waiting)

    def enqueue(self, sequence: Sequence) -> None:
        """Behind all that wait, but for those of lower priority that have not given way too often."""
        sequence.arrived_at = self._clock()
        self._adapters.want(sequence)
        place = len(self._waiting)
        while place and _gives_way(other := self._waiting[place - 1], sequence):
            other.overtaken += 1
            place -= 1
        self._waiting.insert(place, sequence)

    def put_back(self, sequence: Sequence) -> None:
        """Before all others: it ran, and gave its pages back."""
        self._adapters.want(sequence)
        self._waiting.appendleft(sequence)

    def remove(self, sequence: Sequence) -> None:
        self._waiting.remove(sequence)
        self._stop_waiting(sequence)

    def take_started(self) -> list[Started]:
        """Sequences that were admitted for the first time since the last call."""
        started, self._started = self._started, []
        return started

    def admit(self, seats: int, budget: int) -> list[Sequence]:
        """As many as there are seats and tokens for, the last one perhaps with more tokens than are left.

        One whose adapter is not on the device yet is passed over, not waited for, unless what holds it up is others'
        use of the room and MAX_OVERTAKEN have gone ahead already. So is one that is held back: what it waits for
        stands before it, or runs."""
        admitted: list[Sequence] = []
        passed: list[Sequence] = []
        most_admissions = math.inf
        while self._waiting and budget > 0 and len(admitted) < seats:
            if self._admissions >= most_admissions:
                self._adapters.make_way(passed)
                break
            sequence = self._waiting.popleft()
            if sequence.is_held_back:
                passed.append(sequence)
                continue
            try:
                if not self._adapters.take(sequence):
                    passed.append(sequence)
                    most_admissions = min(most_admissions, self._admissions_before(sequence))
                    continue
            except AdapterUnavailable as error:
                self._adapters.release(sequence)
                self._stop_waiting(sequence)
                self._fail(sequence, "adapter_load_failed", str(error))
                continue
            if not self._pages.claim(sequence):
                self._adapters.release(sequence)
                passed.append(sequence)
                break
            self._stop_waiting(sequence)
            self._admissions += 1
            self._note_start(sequence)
            admitted.append(sequence)
            budget -= sequence.remaining
        self._waiting.extendleft(reversed(passed))
        return admitted

    def _stop_waiting(self, sequence: Sequence) -> None:
        sequence.owed_room_after = None
        sequence.after = None
        self._adapters.unwant(sequence)

    def _note_start(self, sequence: Sequence) -> None:
        if sequence.has_started:
            return
        sequence.has_started = True
        ready_at = sequence.arrived_at
        loads = {}
        for use in sequence.adapters:
            if load := self._residency.load_since(use.digest, sequence.arrived_at):
                loads[use.digest] = load[1]
                ready_at = max(ready_at, load[0])
        load_seconds, queue_seconds = ready_at - sequence.arrived_at, self._clock() - ready_at
        self._started.append(Started(sequence.request_id, queue_seconds, load_seconds, loads))

    def _admissions_before(self, sequence: Sequence) -> float:
        """How many admissions there may have been before this one, which lacks an adapter yet."""
        if not self._adapters.is_held_up(sequence):
            return math.inf
        if sequence.owed_room_after is None:
            sequence.owed_room_after = self._admissions + MAX_OVERTAKEN
        return sequence.owed_room_after


def _gives_way(waiting: Sequence, other: Sequence) -> bool:
    """Whether a sequence that waits lets a younger one pass. One that is owed room is owed it whatever comes."""
    return waiting.priority > other.priority and waiting.owed_room_after is None and waiting.overtaken < MAX_OVERTAKEN

"""Whose turn it is among the sequences that wait: virtual token counters in two levels (VTC, Sheng et al., OSDI 2024).

An owner's counter is the service that it was charged, over its weight; the turn is the owner's with the lowest, and
within it that of the adapters (a flow) that were charged least. Who begins to wait is lifted to the lowest of those
that do, so that nobody saves up by being away. Knows no pages, no leases and no steps: `admission` takes sequences in
this order as it can.

The bound: while two owners f and g both have sequences waiting that could be admitted, what they are charged differs by

    |served(f) / weight(f) - served(g) / weight(g)| <= U(f) + U(g),
    U(x) = max_num_seqs * (PROMPT_COST * longest prompt of x + TOKEN_COST * longest answer of x + loads) / weight(x)

For a sequence is admitted only while no counter of another who waits is lower, and then nothing is charged to its owner
but what runs, until its turn comes again. Where a sequence of g waits for room for its adapters, others go ahead for
LOCALITY_CREDIT / weight(g) more. All of this holds within one priority (see `Sequence.level`), in one engine's life.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable, Iterator

from loraplex.engine.events import OwnerShare, Share
from loraplex.engine.sequence import Sequence

PROMPT_COST, CACHED_COST, TOKEN_COST = 1.0, 0.1, 2.0
"""Of a token of a prompt that is computed, of one that the prefix cache has, and of one that is generated."""

BYTES_PER_TOKEN = 1 << 20
"""Of an adapter that is loaded: what takes as long to copy as a token of a prompt to compute, in order of magnitude."""

LOCALITY_CREDIT = 8192.0
"""In the cost of a token of a prompt: how far ahead of a sequence that lacks room for its adapters others may go whose
adapters are there. It keeps adapters from changing places for every request, at this much fairness."""

SLOT_SECONDS = 10.0
SLOTS = 30
"""How often the service so far is noted and how many notes are kept: service is told over the last five minutes."""


class Flow:
    """The sequences of one owner with the same adapters. waiting: in order of arrival, but for priorities."""

    __slots__ = ("counter", "name", "owner", "running", "waiting")

    def __init__(self, name: str, owner: Owner) -> None:
        self.name = name
        self.owner = owner
        self.counter = 0.0
        self.running = 0
        self.waiting: list[Sequence] = []

    def charge(self, cost: float) -> None:
        self.counter += cost
        self.owner.counter += cost / self.owner.weight
        self.owner.served += cost


class Owner:
    """Whoever shares the engine with others. counter: cost over weight, and what it was lifted by. served: cost.

    flows: those that are remembered; lined_up: those of them with sequences that wait.
    """

    __slots__ = ("counter", "flows", "left_at", "lined_up", "name", "running", "served", "slots", "weight")

    def __init__(self, name: str) -> None:
        self.name = name
        self.weight = 1.0
        self.counter = self.left_at = self.served = 0.0
        self.running = 0
        self.flows: dict[str, Flow] = {}
        self.lined_up: dict[str, Flow] = {}
        self.slots = deque([0.0], maxlen=SLOTS)

    @property
    def recently_served(self) -> float:
        return self.served - self.slots[0]

    @property
    def seats(self) -> float:
        """That it holds, for its weight."""
        return self.running / self.weight

    def begin_slot(self) -> None:
        self.slots.append(self.served)
        for flow in list(self.flows.values()):
            if not (flow.waiting or flow.running):
                del self.flows[flow.name]


class FairQueue:
    """The sequences that wait, of all owners; and what all were charged."""

    def __init__(self) -> None:
        self._owners: dict[str, Owner] = {}
        self._lined_up: dict[str, Owner] = {}
        self._seated: dict[str, Owner] = {}
        self._left_at = 0.0
        self._standing_back: dict[Sequence, None] = {}
        self._arrivals = 0
        self._slot_ends_at = -math.inf

    def __len__(self) -> int:
        return sum(len(flow.waiting) for owner in self._lined_up.values() for flow in owner.lined_up.values())

    def __bool__(self) -> bool:
        return bool(self._lined_up)

    def __iter__(self) -> Iterator[Sequence]:
        """In no order that matters."""
        return (s for owner in self._lined_up.values() for flow in owner.lined_up.values() for s in flow.waiting)

    def arrive(self, sequence: Sequence) -> None:
        """Behind all of its flow, but for those of lower priority that have not given way too often."""
        self._arrivals += 1
        sequence.number = self._arrivals
        flow = sequence.flow = self._flow_of(sequence.share, sequence.group)
        for other in [other for other in self._standing_back if other.gives_way_to(sequence)]:
            if other.flow is not flow:
                other.overtaken += 1
        place = len(flow.waiting)
        while place and (other := flow.waiting[place - 1]).gives_way_to(sequence):
            other.overtaken += 1
            place -= 1
        if sequence.priority:
            self._standing_back[sequence] = None
        self._line_up(flow)
        flow.waiting.insert(place, sequence)

    def come_back(self, sequence: Sequence) -> None:
        """Before all others of its flow: it ran, and is to run again. It was charged."""
        self.end(sequence)
        self._line_up(sequence.flow)
        sequence.flow.waiting.insert(0, sequence)
        if sequence.level:
            self._standing_back[sequence] = None

    def remove(self, sequence: Sequence) -> None:
        """One that waits."""
        flow = sequence.flow
        flow.waiting.remove(sequence)
        self._standing_back.pop(sequence, None)
        if not flow.waiting:
            owner = flow.owner
            del owner.lined_up[flow.name]
            owner.left_at = flow.counter
            if not owner.lined_up:
                del self._lined_up[owner.name]
                self._left_at = owner.counter

    def start(self, sequence: Sequence) -> None:
        """It waits no more, and runs."""
        self.remove(sequence)
        owner = sequence.flow.owner
        sequence.flow.running += 1
        owner.running += 1
        self._seated[owner.name] = owner

    def end(self, sequence: Sequence) -> None:
        """It ran."""
        owner = sequence.flow.owner
        sequence.flow.running -= 1
        owner.running -= 1
        if not owner.running:
            del self._seated[owner.name]

    def turns(self) -> Iterator[Sequence]:
        """Those that wait, in the order of their turns: the lowest level, owner's counter and flow's counter first,
        then whoever holds least and came first. The one that was given last may be removed and charged meanwhile."""
        owners = [(*_turn_of(owner, flows := _flows_of(owner)), flows, owner) for owner in self._lined_up.values()]
        heapq.heapify(owners)
        while owners:
            *_, flows, owner = owners[0]
            *_, place, flow = flows[0]
            sequence = flow.waiting[place]
            yield sequence
            if place < len(flow.waiting) and flow.waiting[place] is sequence:
                place += 1
            if place < len(flow.waiting):
                heapq.heapreplace(flows, _place_of(flow, place))
            else:
                heapq.heappop(flows)
            if flows:
                heapq.heapreplace(owners, (*_turn_of(owner, flows), flows, owner))
            else:
                heapq.heappop(owners)

    def is_anyone_ahead_of(self, owner: Owner) -> bool:
        """Whether another one waits that was charged no more."""
        return any(other.counter <= owner.counter for other in self._lined_up.values() if other is not owner)

    def may_claim(self) -> bool:
        """Whether anybody who waits may have a seat of another's: asked in full steps, and nearly always not."""
        if len(self._seated) == 1 and self._lined_up.keys() == self._seated.keys():
            return False
        most = max((owner.seats for owner in self._seated.values()), default=0.0)
        return any((owner.running + 1) / owner.weight < most for owner in self._lined_up.values())

    def above(self, owner: Owner) -> Owner | None:
        """Whose seat an owner may have: of those that were charged no less, the one with most seats for its weight, as
        long as that is more than the owner has with one more. So no seat goes back and forth."""
        wanted = (owner.running + 1) / owner.weight
        found = None
        for other in self._seated.values():
            if other.counter >= owner.counter and other.seats > wanted:
                found, wanted = other, other.seats
        return found

    def begin_slot(self, now: float) -> None:
        """To be called often: once in SLOT_SECONDS the service so far is noted, and who had none lately forgotten."""
        if now < self._slot_ends_at:
            return
        self._slot_ends_at = now + SLOT_SECONDS
        for owner in list(self._owners.values()):
            owner.begin_slot()
            if not (owner.flows or owner.recently_served):
                del self._owners[owner.name]

    def told(self, now: float) -> list[OwnerShare]:
        return [_told(owner, now) for owner in self._owners.values()]

    def _flow_of(self, share: Share, name: str) -> Flow:
        """The owner's weight is from now on what the newest says."""
        owner = self._owners.get(share.owner)
        if owner is None:
            owner = self._owners[share.owner] = Owner(share.owner)
        owner.weight = share.weight
        flow = owner.flows.get(name)
        if flow is None:
            flow = owner.flows[name] = Flow(name, owner)
        return flow

    def _line_up(self, flow: Flow) -> None:
        """One of the flow begins to wait."""
        owner = flow.owner
        if not owner.lined_up:
            owner.counter = max(owner.counter, _lowest(self._lined_up.values(), self._left_at))
            self._lined_up[owner.name] = owner
        if not flow.waiting:
            flow.counter = max(flow.counter, _lowest(owner.lined_up.values(), owner.left_at))
            owner.lined_up[flow.name] = flow


def _lowest(waiting: Iterable[Owner | Flow], left_at: float) -> float:
    """What a counter is lifted to: the lowest of those that wait, or where nobody does that of the last who did."""
    return min((each.counter for each in waiting), default=left_at)


Place = tuple[int, float, int, int, Flow]


def _flows_of(owner: Owner) -> list[Place]:
    flows = [_place_of(flow, 0) for flow in owner.lined_up.values()]
    heapq.heapify(flows)
    return flows


def _place_of(flow: Flow, place: int) -> Place:
    """Numbers differ, so flows are never compared."""
    sequence = flow.waiting[place]
    return sequence.level, flow.counter, sequence.number, place, flow


def _turn_of(owner: Owner, flows: list[Place]) -> tuple[int, float, float, int]:
    level, _, number, _, _ = flows[0]
    return level, owner.counter, owner.seats, number


def _told(owner: Owner, now: float) -> OwnerShare:
    waiting = [sequence for flow in owner.lined_up.values() for sequence in flow.waiting]
    oldest = min((sequence.arrived_at for sequence in waiting), default=now)
    return OwnerShare(
        owner=owner.name,
        weight=owner.weight,
        counter=owner.counter,
        recent_service=owner.recently_served,
        running=owner.running,
        waiting=len(waiting),
        oldest_seconds=now - oldest,
    )

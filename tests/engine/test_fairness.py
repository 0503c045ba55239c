"""Owners who share the engine: nobody gets more than a bound ahead of another who waits, and no seat stays empty.

The real scheduler, stepped without a model: every sequence samples a token whenever it can.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations
from types import SimpleNamespace

import pytest
from engine_running import collect, greedy, start_engine, take
from hypothesis import given, settings
from hypothesis import strategies as st

from loraplex.engine.adapter_leases import AdapterLeases
from loraplex.engine.events import SamplingParams, Share, only
from loraplex.engine.fair_queue import LOCALITY_CREDIT, TOKEN_COST
from loraplex.engine.kv_cache import PagePool
from loraplex.engine.scheduler import STINT_TOKENS, Scheduler, SchedulerLimits
from loraplex.engine.sequence import MAX_OVERTAKEN, Sequence

PAGE_TOKENS = 4
LONGEST_PROMPT, LONGEST_ANSWER = 24, 12
WEIGHTS = {"a": 1.0, "b": 1.0, "c": 3.0}


class Residency:
    """Adapters that are there, and others that come some steps later or find no room."""

    def __init__(self):
        self.missing = {}
        self.full = set()

    def is_ready(self, digest):
        return digest not in self.missing and digest not in self.full

    def load_ahead(self, is_busy):
        self.missing = {digest: steps - 1 for digest, steps in self.missing.items() if steps > 1}

    def try_lease(self, digest):
        return SimpleNamespace(digest=digest, is_additive=True, size_bytes=0) if self.is_ready(digest) else None

    def lacks_room(self, digest):
        return digest in self.full

    def want(self, digest): ...
    def unwant(self, digest): ...
    def release(self, digest): ...
    def load_since(self, digest, moment): ...
    def make_room_beside(self, leases, digest):
        return leases


class Machine:
    """A scheduler whose steps sample a token for everything. started: requests in the order of their admission."""

    def __init__(self, max_num_seqs=4, max_step_tokens=64, pages=1000):
        self.residency = Residency()
        self.limits = SchedulerLimits(max_num_seqs, max_step_tokens, 400, frozenset(), "m")
        self.pages = PagePool(pages, PAGE_TOKENS)
        self.scheduler = Scheduler(self.pages, self.residency, self.limits, clock=lambda: 0.0)
        self.started = []
        self.ended = []
        self.count = 0

    def submit(self, owner, prompt=8, answer=8, *, adapter=None, priority=0, weight=None):
        share = Share(owner, WEIGHTS.get(owner, 1.0) if weight is None else weight)
        name, self.count = f"{owner}{self.count}", self.count + 1
        tokens = [self.count * 1000 + place for place in range(prompt)]  # like no other's: nothing is cached
        sampling = SamplingParams(max_tokens=answer)
        self.scheduler.add(Sequence(name, tokens, sampling, only(adapter), b"", 0, priority, share))
        return name

    def step(self):
        plan = self.scheduler.schedule()
        for chunk in self.scheduler.commit(plan, [(7, None)] * sum(chunk.samples for chunk in plan.chunks)):
            if chunk.finish_reason is not None:
                self.ended.append(chunk.request_id)
        self.started += [started.request_id for started in self.scheduler.take_started()]
        self.pages.check_integrity()
        return plan

    def shares(self):
        return {share.owner: share for share in self.scheduler.shares()}

    def served(self):
        return defaultdict(float, {name: share.recent_service for name, share in self.shares().items()})

    def can_start(self):
        """Sequences that wait for nothing but their turns."""
        leases = AdapterLeases(self.residency)
        return {s for s in self.scheduler.waiting if not s.is_held_back and leases.are_ready(s)}


arrivals = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.integers(1, 30),  # so many at once
        st.integers(1, LONGEST_PROMPT),
        st.integers(1, LONGEST_ANSWER),
        st.sampled_from([None, "x", "y"]),
        st.integers(0, 20),  # steps until the next
    ),
    min_size=2,
    max_size=6,
)


@settings(max_examples=50, deadline=None)
@given(
    arrivals=arrivals,
    seats=st.integers(1, 5),
    step_tokens=st.integers(5, 60),
    pages=st.sampled_from([12, 30, 1000]),
    loads=st.integers(0, 12),
)
def test_service_of_owners_who_wait_differs_by_no_more_than_the_bound(arrivals, seats, step_tokens, pages, loads):
    """U(f) + U(g) as `fair_queue` has it, over every period in which both could have been given more; whatever comes,
    however little memory there is, with adapters on their way. And a free seat means that nobody could take it."""
    machine = Machine(seats, step_tokens, pages)
    machine.residency.missing = {"y": loads} if loads else {}
    since: dict[tuple[str, str], dict[str, float]] = {}
    most = {name: seats * (LONGEST_PROMPT + TOKEN_COST * LONGEST_ANSWER) / weight for name, weight in WEIGHTS.items()}

    def step():
        could_start = machine.can_start()
        plan = machine.step()
        served, waiting = machine.served(), {s.share.owner for s in could_start & set(machine.scheduler.waiting)}
        for pair in combinations(WEIGHTS, 2):
            if not waiting.issuperset(pair):
                since.pop(pair, None)
                continue
            before = since.setdefault(pair, served)
            one, other = ((served[name] - before[name]) / WEIGHTS[name] for name in pair)
            assert abs(one - other) <= most[pair[0]] + most[pair[1]] + 1e-6
        if waiting and pages == 1000:
            spent = sum(chunk.count for chunk in plan.chunks)
            assert len({chunk.sequence for chunk in plan.chunks}) == seats or spent == step_tokens
        return plan.chunks

    for owner, count, prompt, answer, adapter, steps in arrivals:
        for _ in range(count):
            machine.submit(owner, prompt, answer, adapter=adapter)
        for _ in range(steps):
            step()
    while machine.scheduler.num_waiting or machine.scheduler.running:
        step()
    assert len(machine.ended) == machine.count
    assert sorted(machine.started) == sorted(machine.ended), "who gave a seat up is not told to have started again"


@settings(max_examples=20)
@given(requests=st.lists(st.tuples(st.integers(1, 100), st.integers(1, 20)), max_size=20), steps=st.integers(0, 9))
def test_one_owner_with_one_adapter_is_served_in_order_of_arrival(requests, steps):
    """As if there were no counters."""
    machine = Machine(2, 30)
    names = [machine.submit("a", *request, adapter="x") for request in requests]
    for _ in range(steps):
        machine.step()
    names += [machine.submit("a", *request, adapter="x") for request in requests]
    while machine.scheduler.num_waiting or machine.scheduler.running:
        machine.step()
    assert machine.started == names


def test_adapters_of_one_owner_share_what_it_has():
    """A flood for one of them holds another up no longer than one answer."""
    machine = Machine(max_num_seqs=1)
    for _ in range(10):
        machine.submit("a", adapter="x")
    machine.step()
    late = machine.submit("a", adapter="y")
    for _ in range(20):
        machine.step()
    assert machine.started.index(late) == 1


def test_weights_divide_what_there_is():
    """Three to one, from the moment at which a weight is changed."""
    machine = Machine(4)
    for _ in range(150):
        machine.submit("a")
        machine.submit("b")

    def share_of_a(steps):
        before = machine.served()
        for _ in range(steps):
            machine.step()
        after = machine.served()
        a, b = (after[name] - before[name] for name in "ab")
        return a / (a + b)

    assert share_of_a(100) == pytest.approx(0.5, abs=0.05)
    machine.submit("a", weight=3.0)
    assert share_of_a(100) == pytest.approx(0.75, abs=0.05)


def test_who_comes_back_has_saved_nothing_up():
    """However long an owner was away, it begins level with those that wait."""
    machine = Machine(1)
    machine.submit("b")
    for _ in range(400):
        machine.submit("a")
    for _ in range(500):
        machine.step()
    for _ in range(20):
        machine.submit("b")
    seen = len(machine.started)
    for _ in range(200):
        machine.step()
    owners = [name[0] for name in machine.started[seen:]]
    assert abs(owners.count("a") - owners.count("b")) <= 1


def test_a_seat_is_given_up_to_who_has_none_of_its_share():
    """One that floods with long answers gives its youngest sequence's seat up, not before that has got on, and each
    of its own ends all the same."""
    machine = Machine(4)
    flood = [machine.submit("a", answer=200) for _ in range(8)]
    for _ in range(4):
        machine.step()
    machine.submit("b", answer=4)
    waited = 0
    while "b8" not in machine.started:
        machine.step()
        waited += 1
    assert waited <= STINT_TOKENS
    assert [s.request_id for s in machine.scheduler.running] == ["a0", "a1", "a2", "b8"]
    while machine.scheduler.running:
        machine.step()
    assert sorted(machine.ended) == sorted([*flood, "b8"])
    assert machine.scheduler.preemptions == 1


@pytest.mark.parametrize("fields", [{"priority": 5}, {"adapter": "y"}])
def test_no_seat_is_given_up_for_nothing(fields):
    """Not to one that stands back, nor to one whose adapter is not there."""
    machine = Machine(2)
    machine.residency.full = {"y"}
    for _ in range(2):
        machine.submit("a", answer=60)
    for _ in range(40):
        machine.step()
    machine.submit("b", **fields)
    for _ in range(10):
        machine.step()
    assert machine.scheduler.preemptions == 0


def test_a_short_prompt_does_not_wait_for_long_ones_of_another():
    """Owners read in turns, though the others' prompts came first and would take a hundred steps."""
    machine = Machine(8, max_step_tokens=10)
    for _ in range(3):
        machine.submit("a", prompt=300)
    for _ in range(3):
        machine.step()
    name = machine.submit("b", prompt=15, answer=1)
    for _ in range(4):
        machine.step()
    assert machine.ended == [name]


def test_who_stands_back_does_so_for_all_and_for_so_many():
    """A request of low priority lets those of other owners pass too, MAX_OVERTAKEN of them; then it is its turn."""
    machine = Machine(1)
    machine.submit("a", answer=2)
    machine.step()
    back = machine.submit("b", answer=1, priority=5)
    for _ in range(2 * MAX_OVERTAKEN):
        machine.submit("a", prompt=1, answer=1)
    while back not in machine.started:
        machine.step()
    assert machine.started.index(back) - 1 <= MAX_OVERTAKEN


def test_who_lacks_room_is_passed_for_so_much_service():
    """Others, whose adapters are there, go ahead of one that lacks room for its own by LOCALITY_CREDIT at most, and
    what they hold then ends."""
    machine = Machine(2, max_step_tokens=400)
    machine.residency.full = {"y"}
    machine.submit("b", adapter="y")
    for _ in range(60):
        machine.submit("a", prompt=300, answer=50, adapter="x")
    while machine.step().chunks:
        pass
    assert LOCALITY_CREDIT < machine.served()["a"] <= LOCALITY_CREDIT + 2 * (300 + 50 * TOKEN_COST)
    machine.residency.full.clear()
    machine.step()
    assert machine.started[-2] == "b0"


def test_prompts_are_charged_once_and_less_where_they_are_cached(tiny_model_dir, tmp_path):
    """And a sequence that gave its seat up says what it would have said."""
    engine = start_engine(tiny_model_dir, tmp_path / "blobs", max_num_seqs=2).engine
    prompt = list(range(3, 53))
    alone = collect(engine, [engine.submit("alone", prompt, greedy(60, ignore_eos=True)) or "alone"])["alone"]
    flood, other = Share("flood"), Share("other")
    for name in "xyz":
        engine.submit(name, [ord(name), *prompt], greedy(60, ignore_eos=True), share=flood)
    engine.submit("last", prompt, greedy(60, ignore_eos=True), share=flood)
    outcomes: dict[str, object] = {}
    while "last" not in outcomes:
        take(engine, outcomes)
    for _ in range(STINT_TOKENS):
        take(engine, outcomes)
    engine.submit("more", [9, *prompt], greedy(60, ignore_eos=True), share=flood)
    engine.submit("other", [8, *prompt], greedy(2, ignore_eos=True), share=other)
    collect(engine, [*"xyz", "last", "more", "other"], outcomes)
    shares = {share.owner: share for share in engine.shares()}
    preemptions = engine.status().preemptions
    engine.close()

    assert outcomes["last"].tokens == alone.tokens
    assert preemptions == 1
    assert shares["other"].recent_service == 51 + 2 * TOKEN_COST
    assert shares["flood"].recent_service == 4 * 51 + (2 + 0.1 * 48) + 5 * 60 * TOKEN_COST

"""Sequences with one prompt: the first computes it, the others wait for that and for nothing else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from engine_running import Outcome, collect, greedy, start_engine, store_adapter, take
from hypothesis import given
from hypothesis import strategies as st

from loraplex.engine.events import SamplingParams, only
from loraplex.engine.kv_cache import PagePool
from loraplex.engine.scheduler import Scheduler, SchedulerLimits
from loraplex.engine.sequence import Sequence

PROMPT = list(range(3, 53))
SHARED = 48  # of the 50 tokens stand in full pages


@pytest.fixture(scope="module")
def adapter(tiny_model_dir, make_adapter, tmp_path_factory):
    """(blob folder, digest)"""
    folder = tmp_path_factory.mktemp("adapter")
    built = start_engine(tiny_model_dir, folder / "blobs")
    digest = store_adapter(folder / "blobs", make_adapter(folder / "0", rank=4), built.shape)
    built.engine.close()
    return folder / "blobs", digest


@pytest.fixture
def start(tiny_model_dir, adapter):
    engines = []

    def start_one(**options):
        engines.append(start_engine(tiny_model_dir, adapter[0], **options).engine)
        return engines[-1]

    yield start_one
    for engine in engines:
        engine.close()


def submit(engine, count, *, after="0", **fields):
    """Sequences 0, 1, 2, ... of one prompt, each with its own seed, all but the first after another."""
    for number in range(count):
        sampling = SamplingParams(max_tokens=6, seed=number, ignore_eos=True)
        engine.submit(str(number), PROMPT, sampling, after=after if number else None, **fields)
    return [str(number) for number in range(count)]


def prefilled(engine):
    return sum(record.prefill_tokens for record in engine.recent_steps)


def tokens(outcomes, names):
    return [outcomes[name].tokens for name in names]


@pytest.mark.parametrize("options", [{}, {"max_step_tokens": 20}])
def test_a_prompt_of_several_sequences_is_computed_once(start, adapter, options):
    """All full pages of the others come from the first, in one step or in chunks; each draws by its own seed."""
    together, apart = start(**options), start(enable_prefix_cache=False)
    outcomes = collect(together, submit(together, 4, adapters=only(adapter[1]), salt=b"t"))
    alone = collect(apart, submit(apart, 4, after=None, adapters=only(adapter[1])))

    names = [str(number) for number in range(4)]
    assert [outcomes[name].cached_tokens for name in names] == [0, SHARED, SHARED, SHARED]
    assert prefilled(together) == len(PROMPT) + 3 * (len(PROMPT) - SHARED)
    assert together.status().cached_prompt_tokens == 3 * SHARED
    assert tokens(outcomes, names) == tokens(alone, names)
    assert len({tuple(outcomes[name].tokens) for name in names}) == 4


def test_the_others_go_on_when_the_first_is_gone(start):
    """Aborted before it had computed anything; the next of them is not waited for."""
    engine = start(max_num_seqs=2)
    engine.submit("before", PROMPT[:20], greedy(3, ignore_eos=True))
    names = submit(engine, 3)
    engine.abort("0")

    outcomes = collect(engine, names[1:])

    assert all(outcomes[name].finish_reason == "length" for name in names[1:])
    assert (engine.status().waiting, engine.status().pages_used) == (0, 0)


@pytest.mark.parametrize("fields", [{"salt": b"another"}, {"prompt": [9, *PROMPT]}])
def test_a_sequence_waits_only_for_one_with_its_own_pages(start, fields):
    """Another salt or prompt shares nothing, whatever it is said to be after; neither does one that is not known."""
    engine = start()
    outcomes: dict[str, Outcome] = {}
    engine.submit("first", PROMPT, greedy(1))
    engine.submit("other", fields.get("prompt", PROMPT), greedy(1), salt=fields.get("salt", b""), after="first")
    engine.submit("lost", PROMPT, greedy(1), salt=b"third", after="never seen")
    take(engine, outcomes)

    assert {name: outcome.cached_tokens for name, outcome in outcomes.items()} == {"first": 0, "other": 0, "lost": 0}


PAGES, PAGE_TOKENS, LONGEST = 10, 4, 40  # one sequence fits, few do together


class Machine:
    """A scheduler whose steps sample a token for everything."""

    def __init__(self, max_num_seqs, max_step_tokens):
        residency = SimpleNamespace(load_ahead=lambda is_busy: None)
        limits = SchedulerLimits(max_num_seqs, max_step_tokens, LONGEST, frozenset(), "m")
        self.pages = PagePool(PAGES, PAGE_TOKENS)
        self.scheduler = Scheduler(self.pages, residency, limits, clock=lambda: 0.0)
        self.alive = {}
        self.count = 0

    def submit(self, family, members, length, max_tokens):
        """Members of a family have one prompt, if of one length; each names the newest, or none if all are gone."""
        for _ in range(members):
            sampling = SamplingParams(max_tokens=max_tokens)
            newest = next((name for name in reversed(self.alive) if name.startswith(f"{family}.")), None)
            name = f"{family}.{self.count}"
            self.count += 1
            self.scheduler.add(Sequence(name, [family] * length, sampling, (), b"", 0), newest)
            self.alive[name] = None

    def abort(self, number):
        if self.alive:
            name = list(self.alive)[number % len(self.alive)]
            del self.alive[name]
            self.scheduler.abort(name)

    def run(self, steps):
        for _ in range(steps):
            self.step()

    def step(self):
        """True if something ran."""
        plan = self.scheduler.schedule()
        for chunk in self.scheduler.commit(plan, [(7, None)] * sum(chunk.samples for chunk in plan.chunks)):
            if chunk.finish_reason is not None:
                del self.alive[chunk.request_id]
        self.pages.check_integrity()
        return bool(plan.chunks)


@given(
    max_num_seqs=st.integers(2, 5),
    max_step_tokens=st.integers(3, 12),
    moves=st.lists(
        st.one_of(
            st.tuples(
                st.just("submit"),
                st.integers(0, 2),
                st.integers(1, 5),
                st.sampled_from([9, 17, 25]),
                st.integers(1, 25),
            ),
            st.tuples(st.just("abort"), st.integers(0, 20)),
            st.tuples(st.just("run"), st.integers(1, 6)),
        ),
        max_size=25,
    ),
)
def test_nothing_waits_for_ever(max_num_seqs, max_step_tokens, moves):
    """Whatever is aborted or preempted meanwhile, some sequence runs in every step until all have ended."""
    machine = Machine(max_num_seqs, max_step_tokens)
    for move, *arguments in moves:
        getattr(machine, move)(*arguments)

    while machine.alive:
        assert machine.step()
    assert (machine.scheduler.num_waiting, machine.pages.num_used) == (0, 0)

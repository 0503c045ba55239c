"""Tokens tried ahead change how many steps an answer takes, and nothing else about it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar

import pytest
from engine_running import collect, greedy, start_engine, store_adapter
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loraplex.engine import drafting
from loraplex.engine.drafting import DraftLimits
from loraplex.engine.events import AdapterUse, Grammar, LogitRules, SamplingParams
from loraplex.engine.kv_cache import PagePool, page_hash, root_hash
from loraplex.engine.prompt_lookup import MATCH, PromptLookup
from loraplex.engine.scheduler import Scheduler, SchedulerLimits
from loraplex.engine.sequence import Sequence

PAGE = 8192  # bytes of the tiny model's in fp32


@pytest.fixture(scope="module")
def engines(tiny_model_dir, make_adapter, tmp_path_factory):
    """(an engine that tries nothing ahead, one that tries up to 6 tokens, both with few pages; digests of adapters)"""
    folder = tmp_path_factory.mktemp("lookup")
    options = {"dtype": "float32", "kv_cache_bytes": 10 * PAGE, "max_num_seqs": 8, "max_model_len": 7 * 16}
    built = [start_engine(tiny_model_dir, folder / "blobs", **options, speculative_tokens=most) for most in (0, 6)]
    digests = [
        store_adapter(folder / "blobs", make_adapter(folder / str(rank), rank=rank, seed=rank), built[0].shape)
        for rank in (2, 8)
    ]
    yield [one.engine for one in built], digests
    for one in built:
        one.engine.close()


def run(engine, requests, after=None):
    """{name: (prompt, sampling, adapters)} -> the outcomes of these requests, submitted together."""
    for name, (prompt, sampling, adapters) in requests.items():
        engine.submit(name, prompt, sampling, adapters=adapters, after=after)
    outcomes = collect(engine, requests)
    assert engine.status().pages_used == 0
    return outcomes


def run_foreseen(engine, requests, expected, after=None):
    """The same, with drafts that are mostly what is expected."""
    Foresight.texts = [prompt + expected[name].tokens for name, (prompt, _, _) in requests.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drafting, "PromptLookup", Foresight)
        return run(engine, requests, after)


def told_likelihoods(outcome):
    """Of every token and what else was likely, with the token that ended the answer; numbers alone, in order."""
    scores = [*outcome.scores, *filter(None, [outcome.stopped_by])]
    return [value for score in scores for value in (score.logprob, *(likely for _, likely in score.top))]


class Foresight:
    """Instead of a lookup, which finds little in what the tiny model says: it knows all answers, and is sometimes wrong
    about them."""

    hit_rate = 0.9
    expects = True
    texts: ClassVar[list[list[int]]] = []

    def __init__(self, most_tokens):
        pass

    def follow(self, tokens):
        pass

    def drafts(self, tokens, count):
        known = next((text for text in self.texts if text[: len(tokens)] == tokens), tokens)
        found = [*known[len(tokens) :], *range(3, 9)][:count]
        return [token if (len(tokens) + place) % 11 else 5 for place, token in enumerate(found)]


motifs = st.lists(st.integers(3, 40), min_size=1, max_size=9)


@st.composite
def requests_of_any_kind(draw):
    """One to five requests whose prompts repeat themselves, each (prompt, sampling, kind of adapters)."""
    requests = []
    for number in range(draw(st.integers(1, 5))):
        prompt = draw(motifs) + draw(motifs) * draw(st.integers(1, 3)) + draw(motifs)
        sampling = SamplingParams(
            max_tokens=draw(st.integers(1, 90)),
            temperature=draw(st.sampled_from([0.0, 0.0, 0.1, 1.0])),
            top_k=draw(st.sampled_from([0, 3])),
            seed=number,
            stop_token_ids=tuple(draw(st.lists(st.integers(3, 258), max_size=2))),
            ignore_eos=draw(st.booleans()),
            logprobs=True,
            top_logprobs=draw(st.sampled_from([0, 2])),
            prompt_logprobs=draw(st.sampled_from([None, None, 1])),
            rules=draw(st.sampled_from([None, None, None, LogitRules(repetition_penalty=1.1, min_tokens=5)])),
        )
        requests.append((prompt, sampling, draw(st.sampled_from(["base", "first", "second", "sum", "invoked"]))))
    return requests


@settings(max_examples=40, deadline=None)
@given(requests=requests_of_any_kind())
def test_answers_are_what_they_are_without(engines, requests):
    """Any prompts, adapters, ways to sample and to end, on so few pages that sequences are preempted, with tokens that
    are right and wrong in any place."""
    (plain, ahead), (first, second) = engines
    uses = {
        "base": (),
        "first": (AdapterUse(first),),
        "second": (AdapterUse(second),),
        "sum": (AdapterUse(first, 0.5), AdapterUse(second, 0.7)),
    }
    named = {}
    for number, (prompt, sampling, kind) in enumerate(requests):
        adapters = (AdapterUse(first, start=len(prompt) // 2),) if kind == "invoked" else uses[kind]
        named[str(number)] = prompt, sampling, adapters
    expected = run(plain, named)
    found = run_foreseen(ahead, named, expected)

    for name in named:
        assert found[name].tokens == expected[name].tokens
        assert found[name].finish_reason == expected[name].finish_reason
        assert found[name].logprobs == pytest.approx(expected[name].logprobs, abs=1e-3)
        assert [score.token for score in found[name].scores] == found[name].tokens
        assert told_likelihoods(found[name]) == pytest.approx(told_likelihoods(expected[name]), abs=1e-3)
        assert len(found[name].prompt_scores) == len(expected[name].prompt_scores)


def test_choices_that_share_pages_are_what_they_are_without(engines):
    """Each tries its own tokens ahead, after the pages that all of them read."""
    (plain, ahead), (first, _) = engines
    named = {}
    for seed in range(3):
        sampling = SamplingParams(max_tokens=25, seed=seed, ignore_eos=True, logprobs=True, top_logprobs=4)
        named[str(seed)] = [5, 6, 7] * 12, sampling, (AdapterUse(first, start=20),)
    expected = run(plain, named, after="0")
    before = ahead.status()
    found = run_foreseen(ahead, named, expected, after="0")

    assert ahead.status().accepted_tokens - before.accepted_tokens > 20
    assert [found[name].cached_tokens for name in "12"] == [32, 32]
    for name in named:
        assert found[name].tokens == expected[name].tokens
        assert [score.token for score in found[name].scores] == found[name].tokens
        assert told_likelihoods(found[name]) == pytest.approx(told_likelihoods(expected[name]), abs=1e-3)


@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_text_that_repeats_itself_takes_fewer_steps(engines, temperature):
    """An adapter at twenty times its strength says the same all the time, which is foreseen, and counted."""
    (_, ahead), (first, _) = engines
    sampling = SamplingParams(max_tokens=60, temperature=temperature, seed=1, ignore_eos=True)
    run(ahead, {"loads the adapter": ([5], greedy(1), (AdapterUse(first),))})
    before = ahead.status()
    run(ahead, {"monotonous": ([5, 6, 7] * 6, sampling, (AdapterUse(first, 20.0),))})
    after = ahead.status()
    steps = list(ahead.recent_steps)[before.steps - after.steps :]

    assert len(steps) < 30
    assert after.generated_tokens - before.generated_tokens == 60
    assert after.accepted_tokens - before.accepted_tokens == 60 - len(steps)
    assert [sum(step.accepted_tokens for step in steps), sum(step.drafted_tokens for step in steps)] == [
        after.accepted_tokens - before.accepted_tokens,
        after.drafted_tokens - before.drafted_tokens,
    ]
    assert {step.sequences for step in steps} == {1}


def test_rules_and_grammars_try_nothing_ahead(engines):
    """What they allow depends on every token before; beside them others do."""
    (_, ahead), _ = engines
    rules = LogitRules(repetition_penalty=1.01)
    before = ahead.status().drafted_tokens
    run(ahead, {"ruled": ([5, 6, 7] * 6, greedy(40, ignore_eos=True, rules=rules), ())})
    ahead.submit("held", [5, 6, 7] * 6, greedy(40), grammar=Grammar("regex", "(abc)+"))
    collect(ahead, ["held"])

    assert ahead.status().drafted_tokens == before


PAGES, PAGE_TOKENS, LONGEST, END = 12, 4, 44, 9


def next_token(text):
    """What follows a text: mostly what stood three tokens before, so that some of it is foreseen and some is not."""
    surprise = hash(tuple(text)) % 8
    return surprise + 2 if surprise < 3 else text[-3 % len(text)]


def answer(prompt, max_tokens):
    text = list(prompt)
    while len(text) < min(len(prompt) + max_tokens, LONGEST) and (token := next_token(text)) != END:
        text.append(token)
    return text[len(prompt) :]


class Machine:
    """A scheduler whose steps sample `next_token`."""

    def __init__(self, max_step_tokens):
        residency = SimpleNamespace(load_ahead=lambda is_busy: None)
        drafts = DraftLimits(max_drafts=5, max_rows=12, free_rows=40)
        limits = SchedulerLimits(4, max_step_tokens, LONGEST, frozenset({END}), "m", drafts)
        self.pool = PagePool(PAGES, PAGE_TOKENS)
        self.scheduler = Scheduler(self.pool, residency, limits, clock=lambda: 0.0)
        self.expected = {}
        self.told = {}

    def submit(self, prompt, max_tokens):
        name = str(len(self.expected))
        self.expected[name], self.told[name] = answer(prompt, max_tokens), []
        self.scheduler.add(Sequence(name, list(prompt), greedy(max_tokens), (), b"", 0))

    def abort(self, number):
        if self.told:
            name = str(number % len(self.expected))
            self.scheduler.abort(name)
            self.expected[name] = self.expected[name][: len(self.told[name])]

    def step(self):
        plan = self.scheduler.schedule()
        sampled, texts = [], {}
        for chunk in plan.chunks:
            text = texts.setdefault(chunk.sequence.request_id, chunk.sequence.tokens[: chunk.start])
            text += chunk.tokens
            assert self.pool.pages_for(len(text)) <= len(chunk.sequence.pages)
            self.check_writes(chunk)
            if chunk.samples:
                sampled.append((next_token(text), None))
        for told in self.scheduler.commit(plan, sampled):
            self.told[told.request_id] += told.token_ids
        self.pool.check_integrity()
        for sequence in self.scheduler.running:
            self.check_pages(sequence)

    def check_writes(self, chunk):
        """Nothing that is computed is written again, and no page that somebody else reads."""
        assert chunk.start >= chunk.sequence.computed
        written = chunk.sequence.pages[chunk.start // PAGE_TOKENS : self.pool.pages_for(chunk.start + chunk.count)]
        others = (other.pages for other in self.scheduler.running if other is not chunk.sequence)
        assert set().union(*others).isdisjoint(written)

    def check_pages(self, sequence):
        """What others can find is of tokens that the sequence has, and nothing is thought computed that is not."""
        assert sequence.computed < len(sequence.tokens)
        assert sequence.registered <= sequence.computed // PAGE_TOKENS
        parent = root_hash("m", b"")
        for number in range(sequence.registered):
            first = number * PAGE_TOKENS
            parent = page_hash(parent, sequence.tokens[first : first + PAGE_TOKENS], first, ())
            assert sequence.page_hashes[number] == parent


texts = st.lists(st.integers(2, 4), min_size=1, max_size=20)


@given(
    max_step_tokens=st.integers(3, 12),
    moves=st.lists(
        st.one_of(
            st.tuples(st.just("submit"), texts, st.integers(1, 40)),
            st.tuples(st.just("step")),
            st.tuples(st.just("step")),
            st.tuples(st.just("abort"), st.integers(0, 9)),
        ),
        max_size=25,
    ),
)
@example(max_step_tokens=12, moves=[("submit", [2, 3, 4] * 4, 40)] * 4)  # thirteen preemptions
def test_every_text_goes_on_as_it_would_alone(max_step_tokens, moves):
    """Whatever is foreseen, preempted or aborted: everybody is told the tokens that follow, each once."""
    machine = Machine(max_step_tokens)
    for move, *arguments in moves:
        getattr(machine, move)(*arguments)
    while machine.scheduler.running or machine.scheduler.num_waiting:
        machine.step()

    assert machine.told == machine.expected
    assert machine.pool.num_used == 0


@given(
    text=st.lists(st.integers(0, 3), min_size=1, max_size=80),
    sizes=st.lists(st.integers(1, 30), max_size=5),
    most_tokens=st.sampled_from([3, 4096]),
)
def test_what_is_expected_stood_after_the_same_tokens(text, sizes, most_tokens):
    """However much an index is told at a time. Where they stand a second time, something is expected, if there is room
    to remember the first."""
    lookup, known = PromptLookup(most_tokens), 0
    for size in (*sizes, len(text)):
        known = min(known + size, len(text))
        lookup.follow(text[:known])
    followers = [text[end] for end in range(MATCH, len(text)) if text[end - MATCH : end] == text[-MATCH:]]
    ahead = lookup.drafts(text, 5)

    assert bool(ahead) == bool(followers) or (not ahead and most_tokens < len(text))
    assert set(ahead[:1]) <= set(followers)
    assert len(ahead) in (0, 5)

"""Prompts as vectors: transformers' own, whatever else runs in the steps that compute them."""

from __future__ import annotations

import numpy as np
import pytest
from engine_running import Outcome, collect, greedy, start_engine, store_adapter, take
from oracle import Oracle

from loraplex.engine.events import AdapterUse, only
from loraplex.engine.pooling import Pooling

PROMPT = [3 + (7 * index) % 90 for index in range(61)]
NEIGHBOUR = [3 + (11 * index) % 90 for index in range(23)]
PAGE = 2 * 2 * 2 * 16 * 16 * 4  # bytes of one page of the tiny model in fp32
KINDS = [{"rank": 8}, {"rank": 16, "modules": ["q_proj", "v_proj"]}]


@pytest.fixture(scope="module")
def folders(make_adapter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return [make_adapter(folder / str(seed), seed=seed, **kind) for seed, kind in enumerate(KINDS)]


@pytest.fixture(scope="module")
def expected(tiny_model_dir, folders):
    """The oracle's vectors of PROMPT, by name."""
    oracle = Oracle(tiny_model_dir)
    kinds = {"base": None, "first": folders[0], "second": folders[1], "sum": ((folders[0], 0.7), (folders[1], 0.3))}
    return {name: oracle.embedding(PROMPT, kind).numpy() for name, kind in kinds.items()}


@pytest.fixture(scope="module")
def blobs(tmp_path_factory):
    return tmp_path_factory.mktemp("blobs")


@pytest.fixture
def start(tiny_model_dir, blobs, folders):
    """Engines, closed after the test, and how they know the kinds of `expected`."""
    started = []

    def start_one(**options):
        built = start_engine(tiny_model_dir, blobs, **{"kernels": "native"} | options)
        started.append(built)
        first, second = (store_adapter(blobs, folder, built.shape) for folder in folders)
        both = (AdapterUse(first, 0.7), AdapterUse(second, 0.3))
        return built.engine, {"base": (), "first": only(first), "second": only(second), "sum": both}

    yield start_one
    for built in started:
        built.engine.close()


def vector(outcome):
    return np.frombuffer(outcome.embedding, "<f4")


@pytest.mark.parametrize("options", [{}, {"max_step_tokens": 16, "max_num_seqs": 8}, {"kernels": "reference"}])
def test_vectors_are_transformers_own_beside_sequences_that_generate(start, expected, options):
    """Base, adapters and a sum of them in one batch, in one piece or in chunks; their neighbours say what they say
    alone, and what these left in the prefix cache is not taken for hidden states."""
    engine, uses = start(**options)
    alone = {}
    for name, adapters in uses.items():
        engine.submit(name, PROMPT, greedy(12, ignore_eos=True), adapters=adapters)
        alone[name] = collect(engine, [name])[name].tokens

    for name, adapters in uses.items():
        engine.submit(f"next to {name}", PROMPT, greedy(12, ignore_eos=True), adapters=adapters, salt=b"other")
        engine.embed(name, PROMPT, adapters=adapters)
    outcomes = collect(engine, [*uses, *(f"next to {name}" for name in uses)])

    for name in uses:
        assert np.abs(vector(outcomes[name]) - expected[name]).max() < 1e-5, name
        assert outcomes[name].tokens == []
        assert outcomes[name].cached_tokens == 0
        assert outcomes[f"next to {name}"].tokens == alone[name]
    assert any(record.sequences > 1 and record.adapters and record.base for record in engine.recent_steps)
    assert engine.status().pages_used == 0


def test_what_is_embedded_is_not_found_by_others(start):
    """Its pages are free again, not cached."""
    engine, uses = start()
    engine.embed("a", PROMPT, adapters=uses["first"])
    collect(engine, ["a"])

    assert engine.status().pages_cached == 0


def test_a_preempted_prompt_has_the_same_vector(start, expected):
    """It gives its pages back for an older sequence that grows, and is then computed anew, not added to."""
    engine, _ = start(kv_cache_bytes=8 * PAGE, max_model_len=100, max_step_tokens=16, max_num_seqs=4)
    engine.submit("grows", NEIGHBOUR, greedy(70, ignore_eos=True))
    outcomes = {"grows": Outcome()}
    while len(NEIGHBOUR) + len(outcomes["grows"].tokens) < 62:  # its four pages are full in two steps
        take(engine, outcomes)
    engine.embed("prompt", PROMPT)
    collect(engine, ["grows", "prompt"], outcomes)

    assert engine.status().preemptions == 1
    assert np.abs(vector(outcomes["prompt"]) - expected["base"]).max() < 1e-5
    assert engine.status().pages_used == 0


def test_an_abort_between_chunks_frees_everything(start):
    """Nothing more is said of it."""
    engine, uses = start(max_step_tokens=16, max_num_seqs=4)
    engine.embed("gone", PROMPT, adapters=uses["first"])
    outcomes = {}
    while engine.status().pages_used == 0:
        take(engine, outcomes)
    engine.abort("gone")

    assert not engine.has_work
    assert engine.status().pages_used == 0
    assert all(resident.leases == 0 for resident in engine.device_adapters())
    assert outcomes == {}


def test_a_prompt_that_stands_back_is_behind_what_comes_later(start):
    """As a sequence that generates does."""
    engine, _ = start(max_num_seqs=1)
    engine.embed("back", PROMPT, priority=5)
    engine.embed("front", PROMPT)

    assert list(collect(engine, ["back", "front"])) == ["front", "back"]


def test_a_prompt_may_fill_the_context(start):
    """Nothing has to fit behind it; one token more is refused."""
    engine, _ = start(max_model_len=64)
    engine.embed("full", list(range(3, 67)))
    engine.embed("more", list(range(3, 68)))
    outcomes = collect(engine, ["full", "more"])

    assert vector(outcomes["full"]).shape == (64,)
    assert outcomes["more"].failure == ("context_length_exceeded", "the context is 64 tokens")


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_there_is_no_vector_of_what_is_not_finite_or_nothing(value):
    """None, where a division would make numbers that mean nothing."""
    pooling = Pooling()
    pooling.add(0, np.array([value, 0.0], dtype=np.float32))

    assert pooling.embedding() is None

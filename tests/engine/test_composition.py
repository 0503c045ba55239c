"""Requests with several adapters: what they compute, and that they get all of them however little room there is."""

from __future__ import annotations

import pytest
from engine_running import MAX_STEPS, Outcome, collect, greedy, start_engine, store_adapter
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracle import Answer, Oracle

from loraplex.engine.events import AdapterUse

PROMPT = [3 + 7 * i % 90 for i in range(21)]
RANKS = (2, 4, 8, 16)
PATHS = {"native": {"kernels": "native"}, "fallback": {"kernels": "reference"}}


@pytest.fixture(scope="module")
def folders(tiny_model_dir, make_adapter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    modules = {2: ["q_proj", "down_proj"]}
    kinds = [{"rank": rank, "seed": rank, **({"modules": modules[rank]} if rank in modules else {})} for rank in RANKS]
    return [make_adapter(folder / str(kind["rank"]), **kind) for kind in kinds]


@pytest.fixture(scope="module")
def stored(tiny_model_dir, folders, tmp_path_factory):
    """(blob folder, digests, bytes of each on the device)"""
    blobs = tmp_path_factory.mktemp("stored") / "blobs"
    built = start_engine(tiny_model_dir, blobs)
    digests = [store_adapter(blobs, folder, built.shape) for folder in folders]
    for digest in digests:
        built.engine.submit(digest, PROMPT, greedy(1), adapters=(AdapterUse(digest),))
    collect(built.engine, digests)
    sizes = {resident.digest: resident.size_bytes for resident in built.engine.device_adapters()}
    built.engine.close()
    return blobs, digests, [sizes[digest] for digest in digests]


@pytest.mark.parametrize("path", PATHS)
def test_a_weighted_sum_equals_that_of_peft(tiny_model_dir, folders, stored, path):
    """In one batch with the base and with its parts alone: scaled, negative, of four adapters, of one adapter twice."""
    sums = {
        "base": (),
        "alone": ((3, 1.0),),
        "scaled": ((3, 0.4),),
        "two": ((2, 0.7), (3, 0.3)),
        "negative": ((1, 1.5), (3, -0.5)),
        "four": ((0, 1.0), (1, 0.25), (2, 0.5), (3, 0.8)),
        "twice": ((2, 0.25), (2, 0.5)),
    }
    blobs, digests, _ = stored
    built = start_engine(tiny_model_dir, blobs, **PATHS[path])
    for name, parts in sums.items():
        uses = tuple(AdapterUse(digests[part], weight) for part, weight in parts)
        built.engine.submit(name, PROMPT, greedy(24, logprobs=True, ignore_eos=True), adapters=uses)
    outcomes = collect(built.engine, sums)
    built.engine.close()

    oracle = Oracle(tiny_model_dir)
    for name, parts in sums.items():
        peers = {"twice": ((folders[2], 0.75),)}.get(name) or tuple((folders[part], weight) for part, weight in parts)
        answer = Answer(PROMPT, outcomes[name].tokens, outcomes[name].logprobs)
        verdict = oracle.judge(answer, peers or None, epsilon=1e-3)
        assert (verdict.wrong, verdict.decided > 12, verdict.logprob_error < 1e-4) == (0, True, True), (name, verdict)
    assert len({tuple(outcome.tokens) for outcome in outcomes.values()}) == len(sums), "each sum gives its own text"


def test_another_scale_is_another_prefix(tiny_model_dir, stored):
    """Cached pages are shared by requests with the same adapters at the same scales, and by no others."""
    blobs, digests, _ = stored
    engine = start_engine(tiny_model_dir, blobs).engine
    cached = []
    for number, uses in enumerate((((0, 1.0), (3, 0.5)), ((0, 1.0), (3, 0.5)), ((0, 1.0), (3, 0.6)), ((0, 1.0),), ())):
        adapters = tuple(AdapterUse(digests[part], scale) for part, scale in uses)
        engine.submit(str(number), PROMPT, greedy(1), adapters=adapters)
        cached.append(collect(engine, [str(number)])[str(number)].cached_tokens)
    engine.close()

    assert cached == [0, 16, 0, 0, 0]


REQUESTS = st.lists(
    st.lists(st.integers(0, len(RANKS) - 1), min_size=1, max_size=4, unique=True), min_size=1, max_size=12
)


@settings(max_examples=25, deadline=None)
@given(requests=REQUESTS, room=st.floats(1.0, 2.5), pins=st.sets(st.integers(0, len(RANKS) - 1), max_size=2))
@example(
    requests=[[3], [1, 3], [3], [1, 2, 3], [2, 1, 3, 0], [3, 2, 0], [1, 2], [0, 2], [0, 2, 3], [0], [0, 1, 3, 2]],
    room=1.78,
    pins=set(),
).via("requests that drove each other's adapters away for ever")
def test_every_request_gets_all_its_adapters_or_hears_that_they_do_not_fit(
    tiny_model_dir, stored, requests, room, pins
):
    """Whatever is asked for together in a pool of little more than the largest adapter, some of it pinned, nobody waits
    for ever."""
    blobs, digests, sizes = stored
    capacity = int(room * max(sizes)) // 64 * 64
    options = {"pinned_share": 0.9, "pinned_share_per_tenant": 0.9, "kv_cache_bytes": 4 << 20}
    engine = start_engine(tiny_model_dir, blobs, adapter_device_bytes=capacity, **options).engine
    pinned = granted(engine, {part: digests[part] for part in pins})
    for number, parts in enumerate(requests):
        uses = tuple(AdapterUse(digests[part]) for part in parts)
        engine.submit(str(number), PROMPT, greedy(3, ignore_eos=True), adapters=uses)
    outcomes: dict[str, Outcome] = collect(engine, map(str, range(len(requests))))
    leased = sum(resident.leases for resident in engine.device_adapters())
    still_there = {found.digest for found in engine.locate(digests) if found.device_bytes}
    engine.close()

    left = capacity - sum(sizes[part] for part in pinned)
    fitting = [sum(sizes[part] for part in parts if part not in pinned) <= left for parts in requests]
    assert [outcomes[str(number)].failure is None for number in range(len(requests))] == fitting
    assert leased == 0
    assert {digests[part] for part in pinned} <= still_there


def granted(engine, wanted: dict[int, str]) -> set[int]:
    """Pin these adapters for long; those that are pinned, and on the device."""
    for ticket, digest in wanted.items():
        engine.pin(ticket, digest, "acme", 600)
    answers: dict[int, object] = {}
    for _ in range(MAX_STEPS):
        answers |= dict(engine.take_pin_answers())
        pinned = {ticket for ticket, refusal in answers.items() if refusal is None}
        located = engine.locate([wanted[ticket] for ticket in pinned])
        if len(answers) == len(wanted) and all(found.device_bytes for found in located):
            return pinned
        engine.step()
        engine.wait(0.1)
    raise AssertionError("a pin was not decided")

"""What one engine promises about requests that share its batch, its pages and its adapter memory."""

from __future__ import annotations

import pytest
from engine_running import Outcome, collect, greedy, start_engine, store_adapter, take
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loraplex.engine.build import BuiltEngine
from loraplex.engine.events import SamplingParams, only

PROMPTS = {f"r{i}": [3 + (i * 31 + j * 7) % 90 for j in range(5 + 9 * i)] for i in range(6)}
PATHS = {
    "native": {"kernels": "native"},
    "fallback": {"kernels": "reference"},
    "int8": {"kernels": "native", "quantization": "int8"},
}
PAGE = 2 * 2 * 2 * 16 * 16 * 4  # bytes of one page of the tiny model in fp32


@pytest.fixture(scope="module")
def adapters(tiny_model_dir, make_adapter, tmp_path_factory):
    """Blob folder and digests of six adapters of differing ranks and modules."""
    folder = tmp_path_factory.mktemp("adapters")
    kinds = [
        {"rank": 1},
        {"rank": 8},
        {"rank": 16, "modules": ["q_proj", "v_proj"]},
        {"rank": 33, "alpha": 8},
        {"rank": 4, "modules": ["down_proj", "o_proj"]},
        {"rank": 8, "rank_pattern": {"layers.0.self_attn.q_proj": 16}, "use_rslora": True},
    ]
    paths = [make_adapter(folder / str(i), seed=i, **kind) for i, kind in enumerate(kinds)]
    built = start_engine(tiny_model_dir, folder / "blobs")
    digests = [store_adapter(folder / "blobs", path, built.shape) for path in paths]
    built.engine.close()
    return folder / "blobs", digests


@pytest.fixture(scope="module", params=PATHS)
def path(request):
    """The promises hold on every way to compute."""
    return PATHS[request.param]


@pytest.fixture
def start(tiny_model_dir, adapters, path):
    """Engines that are closed after the test."""
    started: list[BuiltEngine] = []

    def start_one(**options):
        started.append(start_engine(tiny_model_dir, adapters[0], **path | options))
        return started[-1].engine

    yield start_one
    for built in started:
        built.engine.close()


def submit_all(engine, digests, max_tokens=40):
    """Every prompt, with an adapter each and two on the base."""
    choices = [None, *digests[:4], None]
    for (name, prompt), adapter in zip(PROMPTS.items(), choices, strict=True):
        engine.submit(name, prompt, greedy(max_tokens, ignore_eos=True), adapters=only(adapter))


def warm_up(engine, digests):
    """Every adapter on the device, so that requests run together and not one after the other's load."""
    for digest in digests:
        engine.submit(digest, [3], greedy(1), adapters=only(digest))
    collect(engine, digests)


def texts(outcomes: dict[str, Outcome]) -> dict[str, list[int]]:
    return {name: outcome.tokens for name, outcome in outcomes.items()}


@pytest.fixture(scope="module")
def quiet(tiny_model_dir, adapters, path):
    """The answers of `submit_all`, each computed alone in a quiet engine."""
    answers = {}
    choices = [None, *adapters[1][:4], None]
    built = start_engine(tiny_model_dir, adapters[0], enable_prefix_cache=False, **path)
    for (name, prompt), adapter in zip(PROMPTS.items(), choices, strict=True):
        built.engine.submit(name, prompt, greedy(40, ignore_eos=True), adapters=only(adapter))
        answers |= texts(collect(built.engine, [name]))
    built.engine.close()
    return answers


def test_a_mixed_batch_gives_what_each_request_gets_alone(start, adapters, quiet):
    """Batch-mates, of whatever adapter, do not change an answer; all of them stand in one step."""
    engine = start()
    warm_up(engine, adapters[1])
    submit_all(engine, adapters[1])

    assert texts(collect(engine, PROMPTS)) == quiet
    assert max(len(record.adapters) for record in engine.recent_steps) == 4
    assert any(len(record.adapters) == 4 and record.base for record in engine.recent_steps)


def test_prompts_longer_than_the_step_budget_are_prefilled_in_chunks(start, adapters, quiet):
    """Chunked prefill beside decodes gives the same text as whole prefills."""
    engine = start(max_step_tokens=7, max_num_seqs=6)
    submit_all(engine, adapters[1])

    assert texts(collect(engine, PROMPTS)) == quiet
    assert all(r.prefill_tokens + r.decode_tokens <= 7 for r in engine.recent_steps)


def test_preemption_does_not_change_a_word(start, adapters, quiet):
    """With too few pages for all, sequences are put back and computed again, to the same text; nothing leaks."""
    engine = start(kv_cache_bytes=14 * PAGE, max_model_len=200)
    warm_up(engine, adapters[1])
    submit_all(engine, adapters[1])

    assert texts(collect(engine, PROMPTS)) == quiet
    assert engine.status().preemptions > 0
    assert engine.status().pages_used == 0


def test_adapters_take_turns_in_a_small_pool(start, adapters, quiet):
    """Device memory for some adapters only: loads and evictions go on beside decodes, answers stay right."""
    engine = start(adapter_device_bytes=300_000, adapter_host_bytes=60_000)
    submit_all(engine, adapters[1])

    assert texts(collect(engine, PROMPTS)) == quiet
    assert engine.status().adapter_evictions > 0
    assert all(resident.leases == 0 for resident in engine.device_adapters())


def test_a_shared_prefix_is_computed_once(start, adapters):
    """The second request of the same adapter and salt reuses full pages; the text does not change."""
    engine = start()
    prompt = list(range(3, 60))
    outcomes: dict[str, Outcome] = {}
    for name in ("first", "second"):
        engine.submit(name, prompt, greedy(8), adapters=only(adapters[1][1]), salt=b"tenant")
        collect(engine, [name], outcomes)

    assert outcomes["first"].cached_tokens == 0
    assert outcomes["second"].cached_tokens == 48
    assert outcomes["first"].tokens == outcomes["second"].tokens


@pytest.mark.parametrize("other", ["salt", "adapter", "base"])
def test_prefixes_are_never_shared_across_tenants_or_adapters(start, adapters, other):
    """Another salt, another adapter or the base finds nothing of a prefix that is cached."""
    engine = start()
    prompt = list(range(3, 60))
    engine.submit("first", prompt, greedy(4), adapters=only(adapters[1][0]), salt=b"one")
    collect(engine, ["first"])
    adapter = {"salt": adapters[1][0], "adapter": adapters[1][1], "base": None}[other]
    engine.submit("second", prompt, greedy(4), adapters=only(adapter), salt=b"two" if other == "salt" else b"one")

    assert collect(engine, ["second"])["second"].cached_tokens == 0


def test_a_seeded_request_draws_the_same_in_any_company(start, adapters):
    """Sampling with a seed depends on the seed and the position alone."""
    params = SamplingParams(max_tokens=24, temperature=1.2, top_p=0.9, top_k=40, min_p=0.02, seed=7, ignore_eos=True)
    alone, crowd = start(), start()
    alone.submit("seeded", PROMPTS["r2"], params, adapters=only(adapters[1][1]))
    submit_all(crowd, adapters[1])
    crowd.submit("seeded", PROMPTS["r2"], params, adapters=only(adapters[1][1]))

    first = collect(alone, ["seeded"])["seeded"].tokens
    assert collect(crowd, ["seeded"])["seeded"].tokens == first
    assert len(set(first)) > 1


def test_unseeded_requests_differ(start):
    """Without a seed, two equal requests at a temperature are two draws."""
    engine = start()
    for name in ("a", "b"):
        engine.submit(name, PROMPTS["r1"], SamplingParams(max_tokens=24, temperature=1.5, ignore_eos=True))
    outcomes = collect(engine, ["a", "b"])

    assert outcomes["a"].tokens != outcomes["b"].tokens


def test_a_stop_token_ends_the_text_before_it(start):
    """The stop token is not part of the answer, and the reason is `stop`."""
    engine = start()
    engine.submit("whole", PROMPTS["r3"], greedy(12, ignore_eos=True))
    whole = collect(engine, ["whole"])["whole"].tokens
    stop = next(token for token in whole if token not in whole[:2])
    engine.submit("stopped", PROMPTS["r3"], greedy(12, ignore_eos=True, stop_token_ids=(stop,)))
    stopped = collect(engine, ["stopped"])["stopped"]

    assert stopped.tokens == whole[: whole.index(stop)]
    assert stopped.finish_reason == "stop"


def test_the_context_is_the_last_limit(start):
    """A sequence that fills the context ends with `length`; one that does not fit at all fails at once."""
    engine = start(max_model_len=64)
    engine.submit("full", PROMPTS["r3"], greedy(1000, ignore_eos=True))
    engine.submit("too long", list(range(3, 67)), greedy(1))
    outcomes = collect(engine, ["full", "too long"])

    assert outcomes["full"].finish_reason == "length"
    assert len(PROMPTS["r3"]) + len(outcomes["full"].tokens) == 64
    assert outcomes["too long"].failure == ("context_length_exceeded", "the context is 64 tokens")


def test_an_adapter_that_cannot_be_loaded_fails_its_own_request_only(start, quiet):
    """A digest without a blob ends with `adapter_load_failed`; the base request beside it is answered."""
    engine = start()
    engine.submit("missing", PROMPTS["r1"], greedy(4), adapters=only("0" * 64))
    engine.submit("r0", PROMPTS["r0"], greedy(40, ignore_eos=True))
    outcomes = collect(engine, ["missing", "r0"])

    assert outcomes["missing"].failure is not None
    assert outcomes["missing"].failure[0] == "adapter_load_failed"
    assert outcomes["r0"].tokens == quiet["r0"]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(aborts=st.lists(st.tuples(st.integers(0, 30), st.sampled_from(sorted(PROMPTS))), max_size=6))
def test_abort_at_any_moment_returns_every_page_and_lease(start, adapters, quiet, aborts):
    """Whenever requests are aborted, nothing of theirs stays, and the others end as they would have."""
    engine = start(kv_cache_bytes=18 * PAGE, max_model_len=200, max_step_tokens=16, max_num_seqs=6)
    submit_all(engine, adapters[1])
    outcomes: dict[str, Outcome] = {}
    gone = {name for _, name in aborts}
    for step in range(31):
        for when, name in aborts:
            if when == step:
                engine.abort(name)
        take(engine, outcomes)
    collect(engine, set(PROMPTS) - gone, outcomes)

    status = engine.status()
    assert (status.running, status.waiting, status.pages_used) == (0, 0, 0)
    assert all(resident.leases == 0 for resident in engine.device_adapters())
    assert all(outcomes[name].tokens == quiet[name] for name in set(PROMPTS) - gone)
    engine.close()

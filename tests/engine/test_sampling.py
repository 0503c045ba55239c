"""What a request may ask of its sampling, in a real engine: in a batch, over chunks and caches, and one by one."""

from __future__ import annotations

from itertools import pairwise

import pytest
from engine_running import Outcome, collect, greedy, start_engine, store_adapter, take
from oracle import Oracle
from peft_kinds import RESIZED, write

from loraplex.engine.events import LogitRules, SamplingParams, only
from loraplex.engine.sequence import MAX_OVERTAKEN

PROMPT = [5, 9, 40, 41, 9]
EVERYTHING = LogitRules(
    presence_penalty=1.5,
    frequency_penalty=1.0,
    repetition_penalty=1.7,
    logit_bias={7: 5.0, 8: -5.0},
    allowed_token_ids=tuple(range(3, 200)),
    bad_words=((50,), (60, 61)),
    min_tokens=20,
)


@pytest.fixture(scope="module")
def running(tiny_model_dir, make_adapter, tmp_path_factory):
    """(engine, digest of an adapter, its folder). Steps of 64 tokens, so that prompts come in chunks."""
    folder = tmp_path_factory.mktemp("sampling")
    built = start_engine(tiny_model_dir, folder / "blobs", max_step_tokens=64, max_num_seqs=8, dtype="float32")
    path = make_adapter(folder / "adapter", rank=4, modules=("q_proj", "v_proj"), seed=7)
    yield built.engine, store_adapter(folder / "blobs", path, built.shape), path
    built.engine.close()


def run(engine, requests) -> dict[str, Outcome]:
    """requests: name -> (prompt, sampling, adapters)."""
    for name, (prompt, sampling, adapters) in requests.items():
        engine.submit(name, prompt, sampling, adapters=adapters)
    return collect(engine, requests)


def tokens_of(engine, sampling, prompt=PROMPT) -> list[int]:
    return run(engine, {"one": (prompt, sampling, ())})["one"].tokens


def test_neighbours_with_every_rule_change_nothing_for_a_plain_row(running):
    """Greedy and seeded rows, base and adapter, give the same tokens alone and beside rows that ask for everything."""
    engine, digest, _ = running
    plain = {
        "greedy": (PROMPT, greedy(30, ignore_eos=True), ()),
        "seeded": (PROMPT, SamplingParams(max_tokens=30, seed=5, top_p=0.9, ignore_eos=True), only(digest)),
        "seeded and ruled": (PROMPT, SamplingParams(max_tokens=30, seed=5, rules=EVERYTHING, ignore_eos=True), ()),
    }
    alone = {name: run(engine, {name: request})[name].tokens for name, request in plain.items()}
    neighbours = {
        f"n{i}": (
            [4 + i, 20],
            SamplingParams(max_tokens=40, seed=i, rules=EVERYTHING, logprobs=True, top_logprobs=9, prompt_logprobs=3),
            only(digest) if i % 2 else (),
        )
        for i in range(4)
    }

    together = run(engine, {**neighbours, **plain})

    assert {name: together[name].tokens for name in plain} == alone


def test_rules_hold_in_what_is_generated(running):
    """Nothing but what is allowed, no bad word, no end too early, and a penalty that ends a loop."""
    engine, _, _ = running
    plain = tokens_of(engine, greedy(24, ignore_eos=True))
    allowed = tokens_of(engine, greedy(24, ignore_eos=True, rules=LogitRules(allowed_token_ids=(30, 31, 32))))
    assert set(allowed) <= {30, 31, 32}
    pair = (plain[1], plain[2])
    assert pair not in pairs(tokens_of(engine, greedy(24, ignore_eos=True, rules=LogitRules(bad_words=(pair,)))))
    assert len(tokens_of(engine, greedy(24, stop_token_ids=(plain[0],)))) == 0
    ended = tokens_of(engine, greedy(24, stop_token_ids=(plain[0],), rules=LogitRules(min_tokens=6)))
    assert len(ended) >= 6
    assert plain[0] not in ended
    frequent = tokens_of(engine, greedy(24, ignore_eos=True, rules=LogitRules(frequency_penalty=2.0)))
    assert len(set(frequent)) > len(set(plain))


def pairs(tokens):
    return set(pairwise(tokens))


@pytest.mark.parametrize("adapted", [False, True])
def test_a_prompts_scores_are_those_of_transformers(running, tiny_model_dir, adapted):
    """A prompt of several chunks and portions, whose pages are in the cache, beside one that is not scored."""
    engine, digest, path = running
    prompt = [3 + (17 * i * i + i) % 90 for i in range(170)]
    adapters = only(digest) if adapted else ()
    run(engine, {"cached": (prompt, greedy(2), adapters)})
    scored = {
        "scored": (prompt, greedy(0, prompt_logprobs=3), adapters),
        "continued": (prompt, greedy(3, prompt_logprobs=0, logprobs=True, ignore_eos=True), adapters),
        "plain": (prompt[:40], greedy(3), ()),
    }
    outcomes = run(engine, scored)

    exact = Oracle(tiny_model_dir).logits(prompt, path if adapted else None).log_softmax(-1)
    for name in ("scored", "continued"):
        found = outcomes[name].prompt_scores
        assert [score.token for score in found] == prompt[1:]
        chosen = [float(exact[at, token]) for at, token in enumerate(prompt[1:])]
        assert [score.logprob for score in found] == pytest.approx(chosen, abs=1e-4)
    best = exact[:-1].topk(3).indices.tolist()
    assert [[token for token, _ in score.top] for score in outcomes["scored"].prompt_scores] == best
    assert outcomes["scored"].tokens == []
    assert outcomes["scored"].finish_reason == "length"
    assert len(outcomes["continued"].tokens) == 3


def test_scores_survive_preemption(tiny_model_dir, tmp_path):
    """Too few pages for all: sequences are computed again, and each token of each prompt is still scored once."""
    options = {"kv_cache_bytes": 13 * 8192, "max_num_seqs": 4, "max_step_tokens": 20, "dtype": "float32"}
    built = start_engine(tiny_model_dir, tmp_path / "blobs", **options)
    prompts = {f"p{i}": [3 + (13 * i + j * j) % 90 for j in range(60)] for i in range(4)}
    asked = greedy(40, prompt_logprobs=1, ignore_eos=True, rules=LogitRules(presence_penalty=1.0))
    apart = {}
    for name, prompt in prompts.items():
        apart |= run(built.engine, {name: (prompt, asked, ())})
    before = built.engine.status().preemptions
    together = run(built.engine, {name: (prompt, asked, ()) for name, prompt in prompts.items()})
    preemptions = built.engine.status().preemptions - before
    built.engine.close()

    assert preemptions > 0
    for name in prompts:
        assert together[name].tokens == apart[name].tokens
        found, expected = together[name].prompt_scores, apart[name].prompt_scores
        assert [score.token for score in found] == [score.token for score in expected]
        assert [score.logprob for score in found] == pytest.approx([score.logprob for score in expected], abs=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT warns of a vocabulary that was resized
def test_tokens_of_an_adapters_own_can_be_biased_and_scored(tiny_model_dir, tmp_path):
    """Beside a row of the base that knows nothing of them."""
    built = start_engine(tiny_model_dir, tmp_path / "blobs", dtype="float32", adapter_device_bytes=512 << 20)
    name, (more, config) = next((name, value) for name, value in RESIZED.items() if value[0] > 0)
    folder = write(tmp_path / "resized", tiny_model_dir, config(), 0, 0.1, more)
    digest = store_adapter(tmp_path / "blobs", folder, built.shape)
    own = 288 + more - 1
    warm = {"warm": (PROMPT, greedy(1), only(digest))}
    run(built.engine, warm)
    biased = greedy(5, ignore_eos=True, logprobs=True, rules=LogitRules(logit_bias={own: 100.0}))
    penalised = greedy(5, ignore_eos=True, rules=LogitRules(repetition_penalty=1.2))
    found = run(built.engine, {"own": (PROMPT, biased, only(digest)), "base": (PROMPT, penalised, ())})
    built.engine.close()

    assert found["own"].tokens == [own] * 5, name
    assert all(logprob < 0 for logprob in found["own"].logprobs)
    assert max(found["base"].tokens) < 288


def test_the_lowest_priority_number_is_first_and_overtakes_so_often(tiny_model_dir, tmp_path):
    """One at a time: a request that stands back lets MAX_OVERTAKEN younger ones pass and no more."""
    engine = start_engine(tiny_model_dir, tmp_path / "blobs", max_num_seqs=1).engine
    outcomes: dict[str, Outcome] = {}
    engine.submit("running", PROMPT, greedy(2))
    take(engine, outcomes)
    engine.submit("back", PROMPT, greedy(1), priority=5)
    engine.submit("middle", PROMPT, greedy(1), priority=3)
    names = [f"front{i}" for i in range(MAX_OVERTAKEN + 3)]
    for name in names:
        engine.submit(name, PROMPT, greedy(1))
    collect(engine, ["back", "middle", *names], outcomes)
    engine.close()

    order = [name for name in outcomes if name != "running"]
    assert [order.index("middle"), order.index("back")] == [MAX_OVERTAKEN - 1, MAX_OVERTAKEN]

"""Every kind of adapter that is served computes what PEFT computes, in one batch with all the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import write_tiny_llama, write_tokenizer
from engine_running import Outcome, collect, greedy, start_engine, store_adapter
from oracle import Answer, verdict
from peft_kinds import BIASED, INVOCATION, KINDS, REAL, RESIZED, blended_logits, peft_logits, summed_logits, write

from loraplex.engine.events import AdapterUse

# PEFT warns of what it cannot merge, and of what is tied.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{name}") for name in ("UserWarning", "RuntimeWarning")]

EPSILON, TOLERANCE = 1e-3, 1e-4
PROMPT_TOKENS = 17
VOCAB_SIZE = 288  # of the tiny models
HEADLINES = ("dora", "ia3", "lokr", "head, dora", "embedding, dora", "own tokens", "own embedding and head", "alora")
TWO_ENDS = tuple(name for name in KINDS if name.startswith(("own", "head", "embedding", "trainable")))


@pytest.fixture(scope="module")
def biased_model_dir(tmp_path_factory) -> Path:
    """The tiny model with a bias on every linear module, and a head of its own."""
    folder = tmp_path_factory.mktemp("biased-llama")
    write_tokenizer(folder)
    write_tiny_llama(folder, attention_bias=True, mlp_bias=True, tie_word_embeddings=False)
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Products of tiny matrices take longer to share out than to compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def disagreements(base, folder, configs, *, tokens, spread=0.1, quantization="none", **options):
    """The kinds whose greedy answers, all of one batch, are not PEFT's; the table is printed."""
    options |= {"dtype": "float32", "adapter_device_bytes": 512 << 20, "quantization": quantization}
    built = start_engine(base, folder / "blobs", **options)
    asked = {}
    for number, (name, config) in enumerate(configs.items()):
        more_tokens, config = config if isinstance(config, tuple) else (0, config)
        path = write(folder / name, base, config(), number, spread, more_tokens)
        digest = store_adapter(folder / "blobs", path, built.shape)
        built.engine.submit(f"warm-up {name}", [1], greedy(1), adapters=(AdapterUse(digest),))
        start = PROMPT_TOKENS if name == "alora" else 0
        new_tokens = list(range(VOCAB_SIZE, VOCAB_SIZE + more_tokens)) * 3
        prompt = [3 + (number * 31 + j * 7) % 90 for j in range(PROMPT_TOKENS)] + new_tokens + INVOCATION + [50, 7, 44]
        asked[name] = path, prompt, AdapterUse(digest, start=start)
    collect(built.engine, [f"warm-up {name}" for name in asked])
    for name, (_, prompt, use) in asked.items():
        built.engine.submit(name, prompt, greedy(tokens, logprobs=True, ignore_eos=True), adapters=(use,))
    outcomes = collect(built.engine, asked)
    widest = max(len(record.adapters) for record in built.engine.recent_steps)
    built.engine.close()
    assert widest == len(asked), "all of them stood in one step"
    found = {}
    for name, (path, prompt, use) in asked.items():
        answer = Answer(prompt, outcomes[name].tokens, outcomes[name].logprobs)
        logits = peft_logits(base, path, prompt + answer.tokens, use.start, quantization)
        seen = verdict(logits, answer, EPSILON)
        print(f"{name:28} {seen}")
        if len(answer.tokens) != tokens or seen.wrong or seen.logprob_error > TOLERANCE:
            found[name] = seen
    return found


@pytest.mark.usefixtures("one_thread")
def test_every_kind_agrees_with_peft(tiny_model_dir, tmp_path):
    """Without a bias anywhere, and with one matrix for the embedding and the head."""
    assert disagreements(tiny_model_dir, tmp_path, KINDS, tokens=10) == {}


@pytest.mark.usefixtures("one_thread")
def test_every_kind_agrees_with_peft_on_a_base_with_biases(biased_model_dir, tmp_path):
    """And with a head of its own: those kinds for which that is another matter."""
    configs = {name: KINDS[name] for name in ("dora", "lora_bias", "ia3", "beft", *TWO_ENDS)}
    assert disagreements(biased_model_dir, tmp_path, configs | BIASED, tokens=10) == {}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("base", ["tiny_model_dir", "biased_model_dir"])
def test_other_tokens_than_the_base_has_agree_with_peft(base, tmp_path, request):
    """More of them or fewer, beside adapters that know those of the base; with one matrix for both ends, and with two.

    The new ones stand in prompts, and in answers.
    """
    configs = {"lora": KINDS["lora"], "own embedding and head": KINDS["own embedding and head"], **RESIZED}
    assert disagreements(request.getfixturevalue(base), tmp_path, configs, tokens=10) == {}


@pytest.mark.usefixtures("one_thread")
def test_the_fallback_agrees_with_peft(tiny_model_dir, tmp_path):
    """Plain torch, which has every operation too."""
    configs = {name: KINDS[name] for name in HEADLINES}
    assert disagreements(tiny_model_dir, tmp_path, configs, tokens=6, kernels="reference") == {}


@pytest.mark.usefixtures("one_thread")
def test_magnitudes_are_those_of_a_quantised_base(tiny_model_dir, tmp_path):
    """DoRA's norms are taken of the weights that the engine computes with."""
    configs = {name: KINDS[name] for name in ("dora", "dora, rsLoRA", "lora")}
    assert disagreements(tiny_model_dir, tmp_path, configs, tokens=6, quantization="int4") == {}


def test_the_headline_kinds_agree_with_peft_on_the_real_base(base_model_dir, tmp_path):
    """Thirty layers, and a vocabulary of 49,152."""
    assert disagreements(base_model_dir, tmp_path, REAL, tokens=8, spread=0.01) == {}


@pytest.mark.parametrize("invocation", [PROMPT_TOKENS, 32])
def test_before_its_invocation_an_adapter_shares_the_pages_of_the_base(tiny_model_dir, tmp_path, invocation):
    """What the base has computed of a prompt is not computed again, up to the page in which the invocation begins; an
    adapter that is never invoked changes nothing."""
    built = start_engine(tiny_model_dir, tmp_path / "blobs")
    folder = write(tmp_path / "alora", tiny_model_dir, KINDS["alora"](), 0)
    use = AdapterUse(store_adapter(tmp_path / "blobs", folder, built.shape), start=invocation)
    prompt = [3 + 7 * i % 60 for i in range(invocation)] + INVOCATION + [9] * 30
    requests = {"base": (), "invoked": (use,), "never": (use._replace(start=len(prompt) + 100),)}
    outcomes: dict[str, Outcome] = {}
    for name, uses in requests.items():
        built.engine.submit(name, prompt, greedy(4, logprobs=True), adapters=uses, salt=b"tenant")
        collect(built.engine, [name], outcomes)
    built.engine.close()
    base, invoked, never = outcomes.values()

    assert [invoked.cached_tokens, never.cached_tokens] == [invocation // 16 * 16, (len(prompt) - 1) // 16 * 16]
    assert never.logprobs == pytest.approx(base.logprobs, abs=TOLERANCE)
    answer = Answer(prompt, invoked.tokens, invoked.logprobs)
    logits = peft_logits(tiny_model_dir, folder, prompt + invoked.tokens, invocation)
    assert verdict(logits, answer, EPSILON).logprob_error < TOLERANCE


def test_what_only_adds_adds_up(tiny_model_dir, tmp_path):
    """Biases of B, and LoRA of the embedding and the head, at scales of their own: PEFT's sum."""
    built = start_engine(tiny_model_dir, tmp_path / "blobs", dtype="float32")
    weighted = {"lora_bias": 0.7, "embedding and head": -0.4, "head": 1.5}
    parts = [
        (write(tmp_path / name, tiny_model_dir, KINDS[name](), seed), weight)
        for seed, (name, weight) in enumerate(weighted.items())
    ]
    uses = tuple(AdapterUse(store_adapter(tmp_path / "blobs", path, built.shape), weight) for path, weight in parts)
    prompt = [3 + 7 * i % 90 for i in range(21)]
    built.engine.submit("sum", prompt, greedy(12, logprobs=True, ignore_eos=True), adapters=uses)
    outcome = collect(built.engine, ["sum"])["sum"]
    built.engine.close()

    answer = Answer(prompt, outcome.tokens, outcome.logprobs)
    seen = verdict(summed_logits(tiny_model_dir, parts, prompt + answer.tokens), answer, EPSILON)
    assert (len(answer.tokens), seen.wrong, seen.logprob_error < TOLERANCE) == (12, 0, True), seen


@pytest.mark.usefixtures("one_thread")
def test_at_a_scale_an_adapter_is_part_of_the_way_from_the_base(biased_model_dir, tmp_path):
    """Of every weight that it changes, magnitudes, factors, biases and rows of the vocabulary too."""
    built = start_engine(biased_model_dir, tmp_path / "blobs", dtype="float32")
    prompt = [3 + 7 * i % 90 for i in range(21)] + [50, 7]
    paths = {}
    for seed, name in enumerate(
        ("dora", "ia3", "lora_bias", "embedding, dora", "own embedding and head", "own tokens")
    ):
        paths[name] = write(tmp_path / name, biased_model_dir, KINDS[name](), seed)
        uses = (AdapterUse(store_adapter(tmp_path / "blobs", paths[name], built.shape), 0.6),)
        built.engine.submit(name, prompt, greedy(8, logprobs=True, ignore_eos=True), adapters=uses)
    outcomes = collect(built.engine, paths)
    built.engine.close()

    for name, path in paths.items():
        answer = Answer(prompt, outcomes[name].tokens, outcomes[name].logprobs)
        seen = verdict(blended_logits(biased_model_dir, path, 0.6, prompt + answer.tokens), answer, EPSILON)
        assert (len(answer.tokens), seen.wrong, seen.logprob_error < TOLERANCE) == (8, 0, True), (name, seen)


def test_what_rescales_the_base_is_used_alone(tiny_model_dir, tmp_path):
    """Together with others such an adapter has no meaning: the request fails, with the way out, and nothing stays."""
    built = start_engine(tiny_model_dir, tmp_path / "blobs")
    paths = {name: write(tmp_path / name, tiny_model_dir, KINDS[name](), 0) for name in ("lora", "dora", "own head")}
    digests = {name: store_adapter(tmp_path / "blobs", path, built.shape) for name, path in paths.items()}
    for name in ("dora", "own head"):
        uses = AdapterUse(digests["lora"]), AdapterUse(digests[name])
        built.engine.submit(name, [3, 4], greedy(2), adapters=uses)
    outcomes = collect(built.engine, ["dora", "own head"])

    assert all("use it alone" in outcome.failure[1] for outcome in outcomes.values())
    assert all(resident.leases == 0 for resident in built.engine.device_adapters())
    built.engine.close()

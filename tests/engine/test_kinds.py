"""Every kind of adapter that is served computes what PEFT computes, in one batch with all the others."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import write_tiny_llama, write_tokenizer
from engine_running import collect, greedy, start_engine, store_adapter
from oracle import Answer, verdict
from peft_kinds import BIASED, INVOCATION, KINDS, peft_logits, write

from loraplex.engine.events import AdapterUse

# PEFT warns of what it cannot merge, and of what is tied.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{name}") for name in ("UserWarning", "RuntimeWarning")]

TOKENS = 12
EPSILON, TOLERANCE = 1e-3, 2e-4


@pytest.fixture(scope="module")
def biased_model_dir(tmp_path_factory) -> Path:
    """The tiny model with a bias on every linear module, and a head of its own."""
    folder = tmp_path_factory.mktemp("biased-llama")
    write_tokenizer(folder)
    write_tiny_llama(folder, attention_bias=True, mlp_bias=True, tie_word_embeddings=False)
    return folder


@pytest.mark.parametrize("is_biased", [False, True], ids=["tied", "biased"])
@pytest.mark.parametrize("kernels", ["native", "reference"])
def test_every_kind_agrees_with_peft(tiny_model_dir, biased_model_dir, tmp_path, is_biased, kernels):
    """On a base with tied embeddings, and on one with biases and a head of its own."""
    base = biased_model_dir if is_biased else tiny_model_dir
    configs = KINDS | BIASED if is_biased else KINDS
    built = start_engine(base, tmp_path / "blobs", dtype="float32", kernels=kernels)
    folders = {
        name: write(tmp_path / name, base, config(), seed) for seed, (name, config) in enumerate(configs.items())
    }
    prompts, starts = {}, {}
    for number, (name, folder) in enumerate(folders.items()):
        prompts[name] = [3 + (number * 31 + j * 7) % 90 for j in range(17)] + INVOCATION + [50, 7, 44]
        starts[name] = 17 if name == "alora" else 0
        use = AdapterUse(store_adapter(tmp_path / "blobs", folder, built.shape), 1.0, starts[name])
        built.engine.submit(name, prompts[name], greedy(TOKENS, logprobs=True, ignore_eos=True), adapters=(use,))
    outcomes = collect(built.engine, prompts)
    built.engine.close()
    failures = []
    for name, prompt in prompts.items():
        answer = Answer(prompt, outcomes[name].tokens, outcomes[name].logprobs)
        logits = peft_logits(base, folders[name], prompt + answer.tokens, starts[name])
        seen = verdict(logits, answer, EPSILON)
        print(f"{name:28} {seen}")
        if outcomes[name].failure or seen.wrong or seen.logprob_error > TOLERANCE:
            failures.append((name, outcomes[name].failure, seen))
    assert not failures

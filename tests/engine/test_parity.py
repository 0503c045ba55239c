"""Acceptance: a mixed batch on the real base model agrees with transformers + peft, one request at a time in fp32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from engine_running import collect, greedy, start_engine, store_adapter
from oracle import Answer, Oracle

from loraplex.engine.events import only
from loraplex.engine.text import TextCodec

EXAMPLES = Path(__file__).parents[2] / "examples" / "adapters"
TOKENS = 64


@dataclass(frozen=True)
class Precision:
    """epsilon: top-two margin, in logits, above which the chosen token must be the oracle's. logprob: tolerance."""

    epsilon: float
    logprob: float


PRECISIONS = {"float32": Precision(1e-3, 1e-4), "bfloat16": Precision(0.5, 0.25)}

CONVERSATIONS = {
    "base": "Explain in a few sentences why the sky is blue.",
    "rank 8": "Write a short story about a lighthouse keeper.",
    "rank 16": "List the planets of the solar system with one fact each.",
    "rank 64": "How do I cook rice?",
    "q and v only": "What is the difference between a list and a tuple in Python?",
    "ticket-router": "My invoice from March was charged twice, please refund one of them.",
    "house-style": "When does the ferry leave?",
    "rank 8 again": "Give me three reasons to learn a second language.",
}


@pytest.fixture(scope="module")
def adapter_folders(base_model_dir, make_adapter, tmp_path_factory) -> dict[str, Path | None]:
    """The adapter of each conversation: random ones of several shapes, two trained ones, none for the base."""
    folder = tmp_path_factory.mktemp("parity")

    def random(name: str, **options) -> Path:
        return make_adapter(folder / name, base=base_model_dir, **options)

    rank_8 = random("r8", rank=8, alpha=16, seed=1, std=0.02)
    return {
        "base": None,
        "rank 8": rank_8,
        "rank 16": random("r16", rank=16, alpha=32, seed=2, std=0.02),
        "rank 64": random("r64", rank=64, alpha=64, seed=3, std=0.02),
        "q and v only": random("qv", rank=8, alpha=16, modules=["q_proj", "v_proj"], seed=4, std=0.02),
        "ticket-router": EXAMPLES / "ticket-router",
        "house-style": EXAMPLES / "house-style",
        "rank 8 again": rank_8,
    }


@pytest.mark.parametrize(
    ("kernels", "dtype", "quantization"),
    [
        ("native", "float32", "none"),
        ("native", "bfloat16", "none"),
        ("reference", "float32", "none"),
        ("native", "float32", "int4"),
        ("native", "bfloat16", "int8"),
    ],
)
def test_eight_concurrent_requests_agree_with_peft(
    base_model_dir, adapter_folders, tmp_path, kernels, dtype, quantization
):
    """64 greedy tokens wherever the oracle's top-two margin exceeds epsilon, log-probabilities within tolerance."""
    precision = PRECISIONS[dtype]
    built = start_engine(
        base_model_dir,
        tmp_path / "blobs",
        dtype=dtype,
        kernels=kernels,
        quantization=quantization,
        adapter_device_bytes=256 << 20,
    )
    codec = TextCodec(base_model_dir)
    digests = {
        name: store_adapter(tmp_path / "blobs", folder, built.shape) if folder else None
        for name, folder in adapter_folders.items()
    }
    for name, digest in digests.items():  # on the device, so that all of them stand in one step
        built.engine.submit(f"warm-up {name}", [1], greedy(1), adapters=only(digest))
    collect(built.engine, [f"warm-up {name}" for name in digests])
    prompts = {}
    for name, text in CONVERSATIONS.items():
        prompts[name] = codec.render_chat([{"role": "user", "content": text}])
        built.engine.submit(
            name, prompts[name], greedy(TOKENS, logprobs=True, ignore_eos=True), adapters=only(digests[name])
        )
    outcomes = collect(built.engine, prompts)
    widest = max(len(record.adapters) for record in built.engine.recent_steps)
    built.engine.close()

    assert widest == 6, "the six adapters stood in one step"
    oracle = Oracle(base_model_dir, quantization)
    for name, prompt in prompts.items():
        answer = Answer(prompt, outcomes[name].tokens, outcomes[name].logprobs)
        verdict = oracle.judge(answer, adapter_folders[name], precision.epsilon)
        print(f"{dtype} {kernels} {quantization} {name}: {verdict}")
        assert len(answer.tokens) == TOKENS
        assert verdict.wrong == 0, name
        assert verdict.decided > TOKENS // 4, name
        assert verdict.logprob_error < precision.logprob, name

"""The native decoder computes what Transformers computes, for every family and rotary scaling it serves."""

from __future__ import annotations

import pytest
import torch
from engine_running import collect, greedy, start_engine
from oracle import Answer, Oracle
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SIZES = {
    "vocab_size": 199,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": 0,
}


def rope(kind: str, **options: float) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **options}}


FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama-biases": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama-tied-mha": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True, "num_key_value_heads": 6}),
    "llama-linear": (LlamaForCausalLM, LlamaConfig, rope("linear", factor=2.0)),
    "llama-llama3": (
        LlamaForCausalLM,
        LlamaConfig,
        rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64),
    ),
    "llama-yarn": (LlamaForCausalLM, LlamaConfig, rope("yarn", factor=4.0, original_max_position_embeddings=64)),
    "mistral-window": (MistralForCausalLM, MistralConfig, {"sliding_window": 20, "head_dim": 16}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16}),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kernels", ["reference", "native"])
def test_greedy_text_and_logprobs_equal_transformers(family, kernels, tmp_path):
    """Chunked prefill and decode of three ragged prompts in one batch, fp32: same tokens, log-probabilities to 1e-4."""
    model_class, config_class, options = FAMILIES[family]
    torch.manual_seed(0)
    model = model_class(config_class(**SIZES | options))
    for name, weight in model.named_parameters():
        if "norm" not in name:
            weight.data.normal_(0, 0.2)
    model.save_pretrained(tmp_path / "model")
    built = start_engine(tmp_path / "model", tmp_path / "blobs", kernels=kernels, max_step_tokens=24, max_model_len=256)
    prompts = {"short": [5], "page": list(range(1, 17)), "long": [(7 * i) % 199 for i in range(70)]}

    for name, prompt in prompts.items():
        built.engine.submit(name, prompt, greedy(24, logprobs=True, ignore_eos=True))
    outcomes = collect(built.engine, prompts)
    built.engine.close()

    oracle = Oracle(tmp_path / "model")
    for name, prompt in prompts.items():
        answer = Answer(prompt, outcomes[name].tokens, outcomes[name].logprobs)
        verdict = oracle.judge(answer, None, epsilon=1e-3)
        assert len(answer.tokens) == 24
        assert verdict.wrong == 0
        assert verdict.logprob_error < 1e-4

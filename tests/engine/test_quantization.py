"""An engine with int8 or int4 base weights computes what Transformers computes with the weights these stand for."""

from __future__ import annotations

import pytest
import torch
from engine.test_decoder import FAMILIES, SIZES
from engine_running import collect, greedy, start_engine, store_adapter
from oracle import Answer, Oracle

from loraplex.engine.events import only
from loraplex.engine.models.config import ModelConfig
from loraplex.engine.models.weights import WeightsError, load_weights
from loraplex.kernels.triton_backend import TritonKernels


@pytest.mark.parametrize("family", ["llama-biases", "qwen3"])
@pytest.mark.parametrize("kernels", ["reference", "native"])
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_text_and_logprobs_equal_those_of_the_restored_weights(family, kernels, quantization, tmp_path):
    """Widths that no group divides, biases, prefill and decode in one batch, fp32: log-probabilities to 1e-4."""
    model_class, config_class, options = FAMILIES[family]
    torch.manual_seed(0)
    model = model_class(config_class(**SIZES | options))
    for name, weight in model.named_parameters():
        if "norm" not in name:
            weight.data.normal_(0, 0.2)
    model.save_pretrained(tmp_path / "model")
    built = start_engine(
        tmp_path / "model", tmp_path / "blobs", kernels=kernels, quantization=quantization, max_model_len=256
    )
    prompts = {"short": [5], "long": [(7 * i) % 199 for i in range(70)]}
    for name, prompt in prompts.items():
        built.engine.submit(name, prompt, greedy(16, logprobs=True, ignore_eos=True))
    outcomes = collect(built.engine, prompts)
    built.engine.close()

    oracle = Oracle(tmp_path / "model", quantization)
    for name, prompt in prompts.items():
        verdict = oracle.judge(Answer(prompt, outcomes[name].tokens, outcomes[name].logprobs), None, epsilon=1e-3)
        assert verdict.wrong == 0
        assert verdict.logprob_error < 1e-4


@pytest.mark.parametrize("kernels", ["reference", "native"])
def test_half_precision_serves_quantised_weights_with_adapters(tiny_model_dir, make_adapter, tmp_path, kernels):
    """In fp16, for which nothing is compiled, with an adapter on top: the oracle's choice where its margin is clear."""
    folder = make_adapter(tmp_path / "adapter")
    built = start_engine(tiny_model_dir, tmp_path / "blobs", kernels=kernels, dtype="float16", quantization="int4")
    digest = store_adapter(tmp_path / "blobs", folder, built.shape)
    prompt = list(range(20, 60))
    built.engine.submit("request", prompt, greedy(24, logprobs=True, ignore_eos=True), adapters=only(digest))
    outcome = collect(built.engine, ["request"])["request"]
    built.engine.close()

    assert built.kernels.endswith("base weights in int4")
    oracle = Oracle(tiny_model_dir, "int4", torch.float16)
    verdict = oracle.judge(Answer(prompt, outcome.tokens, outcome.logprobs), folder, 0.2)
    assert verdict.decided > 12
    assert verdict.wrong == 0


def test_kernels_without_quantised_products_refuse_the_option(tiny_model_dir):
    """A GPU's kernels have none: the error names the option and the ways out, before any weight is read."""
    config = ModelConfig.from_folder(tiny_model_dir)
    cpu = torch.device("cpu")
    with pytest.raises(WeightsError, match=r"--quantization int8: the triton kernels .* --device cpu"):
        load_weights(tiny_model_dir, config, TritonKernels(), torch.float32, cpu, 64, "int8")

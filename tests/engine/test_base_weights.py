"""What adapters are told of the base's weights is what the engine computes with."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraplex.engine.models.base_weights import checkpoint_weights, dummy_base_weights
from loraplex.engine.models.config import ModelConfig
from loraplex.engine.models.weights import dummy_tensors, dummy_weights, load_weights
from loraplex.kernels.reference import ReferenceKernels

CPU = torch.device("cpu")
Q, K, HEAD = "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj", "lm_head"


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
@pytest.mark.parametrize("is_dummy", [False, True])
def test_a_modules_weight_is_its_share_of_the_fused_product(tiny_model_dir, quantization, is_dummy):
    """From the checkpoint or made up, whole or as integers, tied head included."""
    config, kernels, dtype = ModelConfig.from_folder(tiny_model_dir), ReferenceKernels(), torch.bfloat16
    if is_dummy:
        weights = dummy_weights(config, kernels, dtype, CPU, 64, 3, quantization)
        base = dummy_base_weights(dummy_tensors(dtype, CPU, 3), 3, config, dtype, quantization)
    else:
        weights = load_weights(tiny_model_dir, config, kernels, dtype, CPU, 64, quantization)
        base = checkpoint_weights(tiny_model_dir, config, dtype, quantization)
    x = torch.eye(64, dtype=dtype)

    fused = weights.layers[1].qkv(x)
    assert torch.equal(base.weight(Q).to(dtype), fused[:, :64].T)
    assert torch.equal(base.weight(K).to(dtype), fused[:, 64:96].T)
    assert torch.equal(base.weight(HEAD).to(dtype), weights.lm_head(x).T)
    assert torch.equal(base.weight("model.embed_tokens"), weights.embedding)
    assert base.stored(f"{Q}.bias") is None


def test_other_numbers_have_another_fingerprint(tiny_model_dir, tmp_path):
    """Though names, shapes and sizes are the same; and so has another way to hold them."""
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    config = ModelConfig.from_folder(folder)

    def fingerprint(quantization="none"):
        return checkpoint_weights(folder, config, torch.float32, quantization).fingerprint

    before = fingerprint()
    assert fingerprint() == before
    assert fingerprint("int8") != before
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    save_file(tensors | {f"{Q}.weight": tensors[f"{Q}.weight"] * 1.01}, path, metadata={"format": "pt"})
    assert fingerprint() != before

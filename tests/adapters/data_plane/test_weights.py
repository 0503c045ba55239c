"""Packed weights compute what PEFT computes, in the layout that the kernels define."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from loraplex.adapters.errors import AdapterUnavailable
from loraplex.adapters.layout import ALIGN_BYTES, MAX_SLICES, TABLE_COLUMNS
from loraplex.adapters.types import BaseShape
from loraplex.adapters.weights import load_packed
from loraplex.kernels import ops


def dense_delta(packed, shape: BaseShape) -> dict[str, torch.Tensor]:
    """Module -> [out_features, in_features], read off the table as LoraBatch's docstring says."""
    deltas = {}
    for index, row in enumerate(packed.table.tolist()):
        site = shape.head if index == shape.num_sites else shape.sites[index % len(shape.sites)]
        a_offset, b_offset, *ranks = row[: 2 + MAX_SLICES]
        total = sum(ranks)
        a = packed.weights[a_offset : a_offset + total * site.in_features].view(total, site.in_features).double()
        first_row = 0
        for part, rank in zip(site.slices, ranks[: len(site.slices)], strict=True):
            if rank:
                b = packed.weights[b_offset : b_offset + rank * part.out_features].view(rank, part.out_features)
                name = f"model.layers.{index // len(shape.sites)}.{part.module}"
                deltas[name] = b.double().t() @ a[first_row : first_row + rank]
            first_row += rank
            b_offset += rank * part.out_features
    return deltas


PEFT_ADAPTERS = [
    {"rank": 8, "alpha": 16},
    {"rank": 5, "alpha": 7, "use_rslora": True, "modules": ("q_proj", "v_proj")},
    {"rank": 4, "rank_pattern": {"k_proj": 1, "layers.1.mlp.up_proj": 7}, "alpha_pattern": {"down_proj": 3}},
    {"rank": 3, "layers_to_transform": [1], "modules": ("k_proj", "up_proj", "down_proj")},
]


@pytest.mark.parametrize("options", PEFT_ADAPTERS, ids=["plain", "rslora", "patterns", "subset"])
def test_the_packed_table_is_pefts_delta(
    options, make_adapter, tmp_path, tiny_llama_shape, tiny_model_dir, blobs, store
):
    """Checked, stored and packed, every module's B A is PEFT's scaled delta, and no other module has one."""
    folder = make_adapter(tmp_path / "adapter", **options)
    digest = store(folder / "adapter_config.json", folder / "adapter_model.safetensors", tiny_llama_shape)
    packed = load_packed(blobs.open(digest), tiny_llama_shape, torch.float32)

    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir), folder)
    expected = {
        name: module.get_delta_weight("default").double()
        for name, module in peft.base_model.model.named_modules()
        if hasattr(module, "lora_A")
    }
    deltas = dense_delta(packed, tiny_llama_shape)
    assert deltas.keys() == expected.keys()
    for name, delta in deltas.items():
        torch.testing.assert_close(delta, expected[name], rtol=1e-5, atol=1e-6)


def test_the_table_has_the_shape_the_kernels_read():
    """Both sides count the same number of slices and columns."""
    assert (MAX_SLICES, TABLE_COLUMNS) == (ops.MAX_SLICES, ops.TABLE_COLUMNS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_memory_follows_the_true_rank(dtype, blobs, make_stored, base_shape):
    """Only what the adapter has is stored: blocks begin at multiples of 64 bytes, and nothing is padded further."""
    modules = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj", "model.layers.1.mlp.down_proj")
    packed = load_packed(blobs.open(make_stored(rank=3, modules=modules)), base_shape, dtype)

    assert packed.table[:, 2:5].tolist() == [[3, 0, 3], [0, 0, 0], [0, 0, 0], [3, 0, 0], [0, 0, 0]]
    assert (packed.table[:, 5:] == -1).all()
    blocks = [6 * 8, 3 * 8 + 3 * 4, 3 * 16, 3 * 8]
    assert packed.size_bytes == sum(-(-block * dtype.itemsize // ALIGN_BYTES) * ALIGN_BYTES for block in blocks)
    assert (packed.table[:, :2] * dtype.itemsize % ALIGN_BYTES == 0).all()
    assert packed.weights.dtype == dtype
    assert packed.weights.is_contiguous()


def test_an_adapter_of_another_base_is_unavailable(blobs, make_stored, base_shape):
    """A base with fewer layers or other widths refuses to pack it."""
    stored = blobs.open(make_stored(modules=("model.layers.1.mlp.down_proj",)))
    with pytest.raises(AdapterUnavailable, match="another base"):
        load_packed(stored, BaseShape("toy", 32, 1, base_shape.sites), torch.float32)
    wide = tuple(type(site)(site.name, site.in_features * 2, site.slices) for site in base_shape.sites)
    with pytest.raises(AdapterUnavailable, match="another base"):
        load_packed(stored, BaseShape("toy", 32, 2, wide), torch.float32)


def test_damaged_weights_are_unavailable(blobs, make_stored, base_shape):
    """A file that was cut off after its upload fails the load, and nothing else."""
    stored = blobs.open(make_stored())
    stored.weights_path.chmod(0o644)
    stored.weights_path.write_bytes(stored.weights_path.read_bytes()[:-4])
    with pytest.raises(AdapterUnavailable, match="damaged"):
        load_packed(stored, base_shape, torch.float32)


def test_weights_that_overflow_the_dtype_are_unavailable(blobs, store, write_files, base_shape):
    """Finite numbers of an fp32 file that fp16 cannot hold never reach a batch."""
    import numpy as np

    name = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{name}.lora_A.weight": np.full((2, 8), 1e6, np.float32),
        f"{name}.lora_B.weight": np.ones((8, 2), np.float32),
    }
    files = write_files(tensors=tensors)
    stored = blobs.open(store(files.config, files.weights))
    assert load_packed(stored, base_shape, torch.bfloat16)
    with pytest.raises(AdapterUnavailable, match="overflow"):
        load_packed(stored, base_shape, torch.float16)

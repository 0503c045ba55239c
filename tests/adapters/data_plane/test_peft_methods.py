"""Of every method that is served, each tensor is asked for, compared and looked at; and no input breaks the checks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loraplex.adapters.blobs import StoredAdapter
from loraplex.adapters.config_reader import ConfigReader
from loraplex.adapters.errors import AdapterInvalid, AdapterUnavailable
from loraplex.adapters.layout import TABLE_COLUMNS
from loraplex.adapters.peft_checks import AdapterLimits, check_adapter
from loraplex.adapters.peft_method import Expected
from loraplex.adapters.peft_methods import METHODS
from loraplex.adapters.types import EMBEDDING, HEAD
from loraplex.adapters.weights import load_packed

LIMITS = AdapterLimits(max_rank=16)
PREFIX = "base_model.model."
Q0, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
DIMENSIONS = {Q0: (8, 8), DOWN: (16, 8), HEAD: (8, 32), EMBEDDING: (32, 8)}
TARGETS = ["q_proj", "down_proj"]

CONFIGS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "block-diagonal": {"use_bdlora": {"nblocks": 2, "target_modules_bd_a": ["q_proj"]}},
    "head and embedding": {"target_modules": ["lm_head", "embed_tokens"]},
    "adalora": {"peft_type": "ADALORA", "init_r": 3, "rank_pattern": {f"{Q0}.lora_E": [True, False, True]}},
    "loha": {"peft_type": "LOHA", "r": 3, "alpha": 4},
    "lokr": {"peft_type": "LOKR", "r": 1, "alpha": 4},
    "lokr, both": {"peft_type": "LOKR", "r": 1, "alpha": 4, "decompose_both": True, "decompose_factor": 4},
    "vera": {"peft_type": "VERA", "r": 5},
    "miss": {"peft_type": "MISS", "r": 3},
    "miss, mini": {"peft_type": "MISS", "r": 3, "init_weights": "mini", "mini_r": 4},
    "ia3": {"peft_type": "IA3", "feedforward_modules": ["down_proj"]},
    "beft": {"peft_type": "BEFT"},
}


def config_of(name: str) -> dict[str, Any]:
    return {"target_modules": TARGETS, "r": 2, "lora_alpha": 4} | CONFIGS[name]


def expected_by_module(config: dict[str, Any]) -> Iterator[tuple[str, Expected]]:
    method = METHODS[config.get("peft_type", "LORA")].read(ConfigReader(config))
    for module, (inputs, outputs) in DIMENSIONS.items():
        if module.rsplit(".", 1)[-1] in config["target_modules"]:
            expected = method.expect(module, inputs, outputs)
            assert isinstance(expected, Expected)
            yield module, expected


def tensors_of(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """All that PEFT would save, with ones for numbers."""
    tensors, shared = {}, {}
    for module, expected in expected_by_module(config):
        tensors |= {f"{PREFIX}{module}.{end}": np.ones(shape, np.float32) for end, shape in expected.shapes.items()}
        for name, shape in expected.shared.items():
            shared[name] = np.maximum(shape, shared.get(name, shape))
    return tensors | {f"base_model.{name}": np.ones(tuple(shape), np.float32) for name, shape in shared.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_sound_adapter_of_each_method_passes(name, write_files, base_shape):
    """With the rank of the LoRA that it amounts to, and how large the numbers of each tensor are."""
    config = config_of(name)
    tensors = tensors_of(config)
    files = write_files(config, tensors)

    checked = check_adapter(files.config, files.weights, base_shape, LIMITS)

    assert checked.spec.modules == {module: expected.spec for module, expected in expected_by_module(config)}
    seen = {f"{PREFIX}{module}.{end}" for module, ends in checked.statistics.items() for end in ends}
    assert seen == {tensor for tensor in tensors if tensor.startswith(PREFIX)}


@pytest.mark.parametrize("name", CONFIGS)
def test_each_tensor_of_each_method_must_be_sound(name, write_files, base_shape):
    """Missing, of another shape, or with a NaN in it: refused, every one of them, and where it is is told."""
    config, tensors = config_of(name), tensors_of(config_of(name))

    def refused(changed: dict[str, np.ndarray]) -> list[dict[str, Any]]:
        files = write_files(config, changed)
        with pytest.raises(AdapterInvalid) as refusal:
            check_adapter(files.config, files.weights, base_shape, LIMITS)
        return refusal.value.report

    victims = {}
    for module, expected in expected_by_module(config):
        victims |= {f"{PREFIX}{module}.{end}": expected for end in expected.shapes}
        victims |= {f"base_model.{shared}": expected for shared in expected.shared}
    for victim, expected in victims.items():
        if len(expected.shapes) > 1:  # a module without its only tensor is one that has no adapter
            rest = {tensor: values for tensor, values in tensors.items() if tensor != victim}
            assert any(entry["code"].startswith("missing_") for entry in refused(rest)), victim
        longer = np.ones((*tensors[victim].shape[:-1], tensors[victim].shape[-1] + 1), np.float32)
        assert any(entry["where"] == victim for entry in refused(tensors | {victim: longer})), victim
        spoilt = tensors[victim].copy()
        spoilt.flat[-1] = np.nan
        (failure,) = refused(tensors | {victim: spoilt})
        assert (failure["code"], failure["where"]) == ("not_finite", victim)


@pytest.mark.parametrize("name", ["lora", "adalora", "loha", "lokr", "vera", "miss", "beft"])
def test_a_factor_that_is_zero_everywhere_has_no_effect(name, write_files, base_shape):
    """In whichever of the tensors that are multiplied the zero is."""
    config = config_of(name)
    (_, first), *_ = expected_by_module(config)
    for end in first.product:
        zeroed = {tensor: values * (not tensor.endswith(f".{end}")) for tensor, values in tensors_of(config).items()}
        files = write_files(config, {tensor: values.astype(np.float32) for tensor, values in zeroed.items()})
        with pytest.raises(AdapterInvalid, match="changes nothing"):
            check_adapter(files.config, files.weights, base_shape, LIMITS)


def test_the_rank_that_counts_is_that_of_the_lora(write_files, base_shape):
    """LoHa of rank 5 is a LoRA of rank 25, and is told to be smaller."""
    config = config_of("loha") | {"r": 5}
    files = write_files(config, tensors_of(config))
    with pytest.raises(AdapterInvalid, match="LoRA of rank 25"):
        check_adapter(files.config, files.weights, base_shape, LIMITS)


def test_a_block_that_cannot_be_repeated_is_refused(write_files, base_shape):
    """MiSS repeats a block of mini_r outputs; as in PEFT that must divide a module's width."""
    config = config_of("miss, mini") | {"mini_r": 5}
    tensors = {f"{PREFIX}{Q0}.miss_block": np.ones((3, 5), np.float32)}
    files = write_files(config, tensors)
    with pytest.raises(AdapterInvalid, match="mini_r must divide"):
        check_adapter(files.config, files.weights, base_shape, LIMITS)


@pytest.mark.parametrize("name", ["ia3", "beft", "loha", "lokr"])
def test_biases_of_methods_that_train_none_are_refused(name, write_files, base_shape):
    """PEFT knows no `bias` of these, so nothing may be made of it, and nothing left out in silence."""
    config = config_of(name) | {"bias": "all"}
    files = write_files(config, tensors_of(config) | {f"{PREFIX}{Q0}.base_layer.bias": np.ones(8, np.float32)})
    with pytest.raises(AdapterInvalid, match="not in the configuration"):
        check_adapter(files.config, files.weights, base_shape, LIMITS)


def test_a_rank_that_training_pruned_to_nothing_is_left_out(write_files, base_shape):
    """AdaLoRA may end with no rank at all for a module; its tensors are empty."""
    config = config_of("adalora") | {"rank_pattern": {f"{Q0}.lora_E": [False] * 3}}
    files = write_files(config, tensors_of(config))

    assert set(check_adapter(files.config, files.weights, base_shape, LIMITS).spec.modules) == {DOWN}


ENDS = sorted(
    {end for name in CONFIGS for _, expected in expected_by_module(config_of(name)) for end in expected.shapes}
)
ENDS += ["weight", "bias", "base_layer.weight", "base_layer.bias", "token_adapter.trainable_tokens_delta"]
NAMES = [f"{PREFIX}{module}.{end}" for module in DIMENSIONS for end in ENDS] + [
    "base_model.vera_A",
    "base_model.vera_B",
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 40)
    | st.sampled_from(["all", "lora_only", "mini", "mica", "embed_tokens"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["lm_head", "q_proj", Q0]), inner),
    max_leaves=5,
)
FIELDS = [
    *("r", "init_r", "alpha", "lora_alpha", "bias", "use_dora", "lora_bias", "use_rslora", "rank_pattern", "mini_r"),
    *("modules_to_save", "trainable_token_indices", "token_indices", "alora_invocation_tokens", "ensure_weight_tying"),
    *("use_bdlora", "velora_config", "feedforward_modules", "decompose_both", "decompose_factor", "save_projection"),
    *("init_weights", "init_lora_weights", "target_modules", "alpha_pattern"),
]
SHAPES = st.lists(st.sampled_from([0, 1, 2, 4, 8, 16, 32]), max_size=3).map(tuple)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(CONFIGS)),
    st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=2),
    st.dictionaries(st.sampled_from(NAMES), SHAPES | st.none(), max_size=2),
    st.booleans(),
)
def test_whatever_passes_can_be_packed(write_files, base_shape, make_base, name, fields, changes, ties):
    """Sound files with fields and tensors changed, added and taken away: the only exceptions are AdapterInvalid, whose
    report can be sent, and for what is at odds with the base's own weights, AdapterUnavailable."""
    tensors = tensors_of(config_of(name))
    for tensor, shape in changes.items():
        if shape is None:
            tensors.pop(tensor, None)
        else:
            tensors[tensor] = np.ones(shape, np.float32)
    files = write_files({"task_type": None} | config_of(name) | fields, tensors)
    try:
        checked = check_adapter(files.config, files.weights, base_shape, LIMITS)
    except AdapterInvalid as refused:
        json.dumps(refused.report).encode()
        return
    assert checked.spec.from_json(checked.spec.to_json()) == checked.spec
    with suppress(AdapterUnavailable):
        stored = StoredAdapter(checked.spec, files.weights, files.config, 0)
        packed = load_packed(stored, base_shape, torch.float32, base=make_base(1, ties_embeddings=ties))
        assert packed.table.shape == (base_shape.num_sites + 1, TABLE_COLUMNS)

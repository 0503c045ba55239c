"""An upload is served as PEFT would run it, or refused with everything that is wrong with it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loraplex.adapters.config_reader import PatternTable
from loraplex.adapters.errors import AdapterInvalid
from loraplex.adapters.peft_checks import MAX_REPORTED, AdapterLimits, check_adapter

LIMITS = AdapterLimits(max_rank=16)
Q0, Q1, V0 = (f"model.layers.{layer}.self_attn.{name}" for layer, name in ((0, "q_proj"), (1, "q_proj"), (0, "v_proj")))
PREFIX = "base_model.model."
A, B = f"{PREFIX}{Q0}.lora_A.weight", f"{PREFIX}{Q0}.lora_B.weight"
GOOD = {A: np.ones((2, 8), np.float32), B: np.ones((8, 2), np.float32)}


def report_of(files, shape, limits=LIMITS):
    with pytest.raises(AdapterInvalid) as refused:
        check_adapter(files.config, files.weights, shape, limits)
    json.dumps(refused.value.report).encode()
    assert all(failure["message"] for failure in refused.value.report)
    return refused.value.report


def codes_of(files, shape, limits=LIMITS):
    return [failure["code"] for failure in report_of(files, shape, limits)]


def test_a_sound_adapter_gives_its_spec_and_statistics(write_files, base_shape):
    """Rank and scaling per module, the hash of the bytes, and the size of the numbers."""
    files = write_files(tensors={A: GOOD[A] * 3, B: GOOD[B]})

    checked = check_adapter(files.config, files.weights, base_shape, LIMITS)

    assert {name: (spec.rank, spec.scaling) for name, spec in checked.spec.modules.items()} == {Q0: (2, 2.0)}
    assert checked.statistics[Q0]["lora_A.weight"].max_abs == 3
    assert checked.statistics[Q0]["lora_A.weight"].norm == pytest.approx(12)
    assert len(checked.weights_sha256) == 64


CONFIGS = [
    ({"peft_type": "FOURIERFT"}, "method_unsupported"),
    ({"peft_type": "XLORA"}, "method_unsupported"),
    ({"peft_type": None}, "method_unsupported"),
    ({"peft_type": [1]}, "method_unsupported"),
    ({"task_type": "SEQ_CLS"}, "wrong_task"),
    ({"bias": "some"}, "bias_unsupported"),
    ({"r": 0}, "rank_invalid"),
    ({"r": True}, "rank_invalid"),
    ({"r": 17}, "rank_too_large"),
    ({"rank_pattern": {"q_proj": 17}}, "rank_too_large"),
    ({"lora_alpha": "hot"}, "alpha_invalid"),
    ({"use_rslora": 1}, "wrong_type"),
    ({"rank_pattern": [1]}, "wrong_type"),
    ({"rank_pattern": {"(a+)+$": 2}}, "pattern_not_literal"),
    ({"alpha_pattern": {".*q_proj": 2}}, "pattern_not_literal"),
    ({"rank_pattern": {"q_proj": 0}}, "pattern_value_invalid"),
    ({"alpha_pattern": {"q_proj": "4"}}, "pattern_value_invalid"),
    ({"use_dora": True, "lora_bias": True}, "variants_combined"),
    ({"use_dora": True, "alora_invocation_tokens": [1]}, "variants_combined"),
    ({"init_lora_weights": "mica", "velora_config": {"num_groups": 2}}, "variants_combined"),
    ({"modules_to_save": ["norm"]}, "modules_to_save_unsupported"),
    ({"modules_to_save": "lm_head"}, "wrong_type"),
    ({"modules_to_save": ["lm_head"]}, "missing_module"),
    ({"modules_to_save": ["lm_head"], "trainable_token_indices": {"lm_head": [1]}}, "embedding_twice"),
    ({"layer_replication": [[0, 2]]}, "layer_replication_unsupported"),
    ({"trainable_token_indices": {"norm": [1]}}, "trainable_tokens_unsupported"),
    ({"trainable_token_indices": [1, 1]}, "token_indices_invalid"),
    ({"trainable_token_indices": [-1]}, "token_indices_invalid"),
    ({"trainable_token_indices": [1]}, "missing_module"),
    ({"target_parameters": ["experts.down"]}, "target_parameters_unsupported"),
    ({"alora_invocation_tokens": [1, "2"]}, "invocation_tokens_invalid"),
    ({"alora_invocation_tokens": [1] * 257}, "invocation_tokens_invalid"),
    ({"alora_invocation_tokens": [32]}, "invocation_tokens_invalid"),
    ({"alora_invocation_tokens": [1], "bias": "all"}, "alora_combined"),
    ({"use_qalora": True}, "qalora_unsupported"),
    ({"arrow_config": {}}, "arrow_unsupported"),
    ({"kasa_config": {}}, "kasa_unsupported"),
    ({"use_bdlora": {"nblocks": 3, "target_modules_bd_a": ["q_proj"]}}, "module_unsupported"),
    ({"use_bdlora": {"nblocks": "3"}}, "rank_invalid"),
    ({"peft_type": "ADALORA", "rank_pattern": {"q_proj.lora_E": [True]}}, "pattern_value_invalid"),
    ({"peft_type": "VERA", "save_projection": False}, "projection_missing"),
    ({"peft_type": "MISS", "init_weights": "bat"}, "bat_unsupported"),
    ({"peft_type": "LOKR", "decompose_factor": 0}, "wrong_type"),
    ({"init_lora_weights": "pissa"}, "pissa_unsupported"),
    ({"init_lora_weights": "pissa_niter_4"}, "pissa_unsupported"),
    ({"init_lora_weights": "olora"}, "olora_unsupported"),
    ({"init_lora_weights": "corda"}, "corda_unsupported"),
    ({"init_lora_weights": "loftq"}, "loftq_unsupported"),
    ({"init_lora_weights": "lora_ga"}, "lora_ga_unsupported"),
    ({"init_lora_weights": "other"}, "unknown_init"),
    ({"init_lora_weights": 3}, "unknown_init"),
    ({"lora_alpha": 0}, "scaling_zero"),
    ({"lora_alpha": 1e9}, "scaling_too_large"),
    ({"target_modules": ["v_proj"]}, "module_not_targeted"),
    ({"r": 4}, "rank_mismatch"),
]


@pytest.mark.parametrize(("config", "code"), CONFIGS, ids=[f"{code}-{i}" for i, (_, code) in enumerate(CONFIGS)])
def test_each_setting_that_is_not_served_has_its_code(config, code, write_files, base_shape):
    """A configuration Loraplex would run differently from PEFT is refused, and says which field and why."""
    assert set(codes_of(write_files(config), base_shape)) == {code}


BROKEN_CONFIGS = [
    (b"{" + b" " * (257 << 10) + b"}", "config_too_large"),
    (b"[1]", "config_not_json"),
    (b"{", "config_not_json"),
    (b"\xff", "config_not_json"),
    (b'{"r": Infinity}', "config_not_json"),
    (b'{"r": 1, "r": 2}', "config_duplicate_key"),
    (b'{"x": ' + b"[" * 9 + b"]" * 9 + b"}", "config_too_deep"),
    (b"[" * 60_000, "config_too_deep"),
]


@pytest.mark.parametrize(("data", "code"), BROKEN_CONFIGS, ids=[f"{c}-{i}" for i, (_, c) in enumerate(BROKEN_CONFIGS)])
def test_a_file_that_is_no_bounded_json_object_is_refused(data, code, write_files, base_shape):
    """Size, encoding, nesting and duplicate names are checked before any field is."""
    assert codes_of(write_files(data), base_shape) == [code]


WEIGHTS = [
    ({}, "no_modules"),
    ({A: GOOD[A]}, "missing_lora_b"),
    ({B: GOOD[B]}, "missing_lora_a"),
    (GOOD | {f"{PREFIX}{Q0}.lora_magnitude_vector": np.ones(8, np.float32)}, "unknown_tensor"),
    (GOOD | {f"{PREFIX}{Q0}.base_layer.bias": np.ones(8, np.float32)}, "unknown_tensor"),
    (GOOD | {f"{PREFIX}{Q0}.base_layer.weight": np.ones((8, 8), np.float32)}, "unknown_tensor"),
    (GOOD | {f"{PREFIX}model.norm.weight": np.ones(8, np.float32)}, "unknown_tensor"),
    (GOOD | {"base_model.vera_A": np.ones((2, 8), np.float32)}, "unknown_tensor"),
    (GOOD | {f"{PREFIX}lm_head.weight": np.ones(8, np.float32)}, "wrong_shape"),
    (GOOD | {f"{PREFIX}lm_head.weight": np.ones((33, 8), np.float32)}, "vocabulary_changed"),
    (GOOD | {f"{PREFIX}model.embed_tokens.base_layer.weight": np.ones((40, 8), np.float32)}, "vocabulary_changed"),
    (GOOD | {f"{PREFIX}model.norm.lora_A.weight": np.ones((2, 8), np.float32)}, "unknown_module"),
    (GOOD | {f"{PREFIX}{Q0.replace('0', '2')}.lora_A.weight": np.ones((2, 8), np.float32)}, "unknown_module"),
    (GOOD | {A: np.ones((2, 9), np.float32)}, "wrong_shape"),
    (GOOD | {A: np.ones(16, np.float32)}, "wrong_shape"),
    (GOOD | {A: np.ones((3, 8), np.float32)}, "rank_mismatch"),
    (GOOD | {B: np.ones((8, 3), np.float32)}, "rank_mismatch"),
    (GOOD | {A: np.full((2, 8), np.nan, np.float32)}, "not_finite"),
    (GOOD | {A: np.full((2, 8), -np.inf, np.float16)}, "not_finite"),
    (GOOD | {A: np.full((2, 8), 0x7F80, np.uint16)}, "not_finite"),
    (GOOD | {A: np.full((2, 8), 0xFFC1, np.uint16)}, "not_finite"),
    (GOOD | {B: np.zeros((8, 2), np.float32)}, "no_effect"),
    (GOOD | {B: np.full((8, 2), 0x8000, np.uint16)}, "no_effect"),
]


@pytest.mark.parametrize(("tensors", "code"), WEIGHTS, ids=[f"{code}-{i}" for i, (_, code) in enumerate(WEIGHTS)])
def test_each_defect_of_the_weights_has_its_code(tensors, code, write_files, base_shape):
    """Names, pairs, shapes, ranks and numbers are all compared with the base and the configuration."""
    assert codes_of(write_files(tensors=tensors), base_shape) == [code]


def test_all_failures_of_a_stage_are_told(write_files, base_shape):
    """The user fixes an upload in as few rounds as possible; configuration and header are one stage."""
    files = write_files({"use_qalora": True, "bias": "some", "r": 99}, tensors=b"short")

    assert set(codes_of(files, base_shape)) == {"qalora_unsupported", "bias_unsupported", "rank_too_large", "truncated"}


def test_a_report_is_bounded(write_files, base_shape):
    """Ten thousand failures make a report of fifty, and the count of the rest."""
    tensors = {f"stray.{i}": np.ones(1, np.float32) for i in range(10_000)}
    report = report_of(write_files(tensors=tensors), base_shape)

    assert len(report) == MAX_REPORTED + 1
    assert (report[-1]["code"], report[-1]["message"]) == ("more_failures", "and 9950 more")


def test_weights_that_are_too_large_are_refused_unread(write_files, base_shape):
    """The size is checked first."""
    assert codes_of(write_files(), base_shape, AdapterLimits(max_weights_bytes=100)) == ["weights_too_large"]


def test_a_pickle_is_named_as_one(write_files, base_shape):
    """The report of a renamed .bin tells how to convert it."""
    (failure,) = report_of(write_files(tensors=b"PK\x03\x04" + bytes(100)), base_shape)
    assert failure["code"] == "pickle_file"
    assert "save_file" in failure["message"]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.uint16])
def test_the_scan_crosses_chunks(dtype, tmp_path, base_shape, monkeypatch, write_files):
    """Statistics and hash do not depend on where a chunk ends."""
    a = np.full((2, 8), 0x4040, np.uint16) if dtype == np.uint16 else np.full((2, 8), 3, dtype)
    files = write_files(tensors=GOOD | {A: a})
    whole = check_adapter(files.config, files.weights, base_shape, LIMITS)
    monkeypatch.setattr("loraplex.adapters.weight_scan._CHUNK_BYTES", 12)

    assert check_adapter(files.config, files.weights, base_shape, LIMITS) == whole
    assert whole.statistics[Q0]["lora_A.weight"].max_abs == 3


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_inits_that_leave_the_base_alone_are_served(init, write_files, base_shape):
    """Only how training began differs; what is computed is plain LoRA."""
    files = write_files({"init_lora_weights": init, "loftq_config": {}, "unknown": {"x": [1]}, "modules_to_save": []})
    assert check_adapter(files.config, files.weights, base_shape, LIMITS).spec.modules[Q0].scaling == 2


def test_patterns_and_rslora_give_each_module_its_scaling(write_files, base_shape):
    """Rank and alpha by the first pattern that fits; rsLoRA divides by the root of the module's own rank."""
    tensors = {}
    for module, rank, out in ((Q0, 4, 8), (Q1, 2, 8), (V0, 9, 4)):
        tensors[f"{PREFIX}{module}.lora_A.weight"] = np.ones((rank, 8), np.float32)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = np.ones((out, rank), np.float32)
    config = {
        "use_rslora": True,
        "rank_pattern": {"^model.layers.0.self_attn.q_proj": 4, r"layers\.0\.self_attn\.v_proj$": 9},
        "alpha_pattern": {"q_proj": 8, "layers.1.self_attn.q_proj": 100},
    }
    files = write_files(config, tensors)

    modules = check_adapter(files.config, files.weights, base_shape, LIMITS).spec.modules

    assert {name: (spec.rank, spec.scaling) for name, spec in modules.items()} == {
        Q0: (4, 8 / 2),
        Q1: (2, 8 / math.sqrt(2)),
        V0: (9, 4 / 3),
    }


PATTERN_KEYS = [
    "q_proj",
    "^q_proj",
    r"layers\.1\.self_attn\.q_proj",
    "self_attn.q_proj$",
    "^model.layers.0.mlp.up",
    "1",
]


@given(st.lists(st.sampled_from(PATTERN_KEYS), unique=True), st.sampled_from([Q0, Q1, V0, "q_proj", "xq_proj"]))
def test_patterns_match_as_in_peft(keys, module):
    """For literal keys the answer is that of PEFT's own rule, which is a regular expression."""
    peft_key = next((key for key in keys if re.match(rf"(.*\.)?({key})$", module)), None)

    assert PatternTable({key: key for key in keys}).get(module, None) == peft_key


def test_a_slow_regular_expression_is_never_run(write_files, base_shape):
    """Keys that would take ages as regular expressions are refused as text."""
    patterns = {f"(.*a){{{n}}}(x+x+)+y": 2 for n in range(500)}
    report = report_of(write_files({"rank_pattern": patterns}), base_shape)
    assert {failure["code"] for failure in report} == {"pattern_not_literal", "more_failures"}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.just("q_proj"), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = [
    *("peft_type", "task_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias"),
    *("modules_to_save", "use_dora", "target_modules", "init_lora_weights", "kasa_config", "fan_in_fan_out"),
]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4) | st.binary(max_size=40))
def test_any_configuration_is_accepted_or_refused(write_files, base_shape, config):
    """Whatever is in the file, the only exception is AdapterInvalid, and its report can be sent."""
    files = write_files(config)
    try:
        check_adapter(files.config, files.weights, base_shape, LIMITS)
    except AdapterInvalid as refused:
        json.dumps(refused.report).encode()


PEFT_ADAPTERS = [
    {"rank": 4, "alpha": 8},
    {"rank": 4, "alpha": 8, "use_rslora": True, "modules": ("q_proj", "v_proj")},
    {"rank": 4, "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 7}, "alpha_pattern": {"down_proj": 3}},
    {"rank": 2, "layers_to_transform": [1], "modules": ("o_proj",)},
]


@pytest.mark.parametrize("options", PEFT_ADAPTERS, ids=["plain", "rslora", "patterns", "layers"])
def test_what_peft_saves_passes(options, make_adapter, tmp_path: Path, tiny_llama_shape):
    """Folders written by the PEFT library are accepted, with PEFT's own scaling for each module."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = make_adapter(tmp_path / "adapter", **options)
    checked = check_adapter(
        folder / "adapter_config.json", folder / "adapter_model.safetensors", tiny_llama_shape, AdapterLimits()
    )

    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    layers = {name: module for name, module in model.base_model.model.named_modules() if hasattr(module, "lora_A")}
    assert {name: (spec.rank, spec.scaling) for name, spec in checked.spec.modules.items()} == {
        name: (module.r["default"], module.scaling["default"]) for name, module in layers.items()
    }

"""Model configurations are read as Transformers reads them, and rotary tables equal its rotary modules."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
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
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from loraplex.engine.models.config import ModelConfig, UnsupportedModel, lora_shape, parse
from loraplex.engine.models.rope import rope_tables

SMALL = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

FAMILIES = [
    (LlamaConfig, LlamaForCausalLM, {"attention_bias": True, "mlp_bias": True}),
    (LlamaConfig, LlamaForCausalLM, {"head_dim": 12}),
    (MistralConfig, MistralForCausalLM, {"sliding_window": 16}),
    (Qwen2Config, Qwen2ForCausalLM, {}),
    (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16}),
    (Qwen3Config, Qwen3ForCausalLM, {"attention_bias": True, "head_dim": 16, "tie_word_embeddings": True}),
]

ROPES = [
    {"rope_type": "default", "rope_theta": 5000.0},
    {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0},
    {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
        "rope_theta": 500_000.0,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256, "rope_theta": 10_000.0},
    {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 256,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
        "truncate": False,
        "rope_theta": 10_000.0,
    },
    {
        "rope_type": "yarn",
        "factor": 4.0,
        "attention_factor": 1.5,
        "original_max_position_embeddings": 256,
        "rope_theta": 1_000_000.0,
    },
]


def llama(rope: dict[str, object]) -> LlamaConfig:
    return LlamaConfig(**SMALL | {"max_position_embeddings": 1024, "head_dim": 64, "rope_parameters": dict(rope)})


@pytest.mark.parametrize(("config_class", "model_class", "options"), FAMILIES)
def test_a_parsed_config_describes_the_modules_that_transformers_builds(
    tmp_path: Path, config_class: type, model_class: type, options: dict[str, object]
) -> None:
    """Names, widths, biases and q/k norms of every family are those of Transformers' own model."""
    with torch.device("meta"):
        model = model_class(config_class(**{**SMALL, "architectures": [model_class.__name__], **options}))
    model.config.save_pretrained(tmp_path)
    config = ModelConfig.from_folder(tmp_path)

    parameters = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    for module, (in_features, out_features) in lora_shape(config).modules().items():
        assert parameters[f"{module}.weight"] == (out_features, in_features)
    layer = "model.layers.1"
    assert config.qkv_bias == (f"{layer}.self_attn.k_proj.bias" in parameters)
    assert config.o_bias == (f"{layer}.self_attn.o_proj.bias" in parameters)
    assert config.mlp_bias == (f"{layer}.mlp.up_proj.bias" in parameters)
    assert config.qk_norm == (f"{layer}.self_attn.q_norm.weight" in parameters)
    assert config.tie_word_embeddings == model.config.tie_word_embeddings
    assert config.head_dim == model.model.layers[0].self_attn.head_dim
    window = options.get("sliding_window")
    assert config.sliding_windows == (window, window)


def test_both_spellings_of_rope_settings_mean_the_same() -> None:
    """`rope_theta` beside `rope_scaling` parses to what `rope_parameters` parses to."""
    scaling = {"factor": 4.0, "original_max_position_embeddings": 32}
    old = parse(SMALL | {"rope_theta": 5e5, "rope_scaling": {"type": "yarn", **scaling}})
    new = parse(SMALL | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5, **scaling}})

    assert old == new
    assert (new.rope.kind, new.rope.theta, new.rope.factor) == ("yarn", 5e5, 4.0)


def test_qwen_slides_only_where_it_says_so() -> None:
    """Qwen's window counts only with use_sliding_window, and then only on the layers meant."""
    qwen = SMALL | {"architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 4, "sliding_window": 8}
    sliding = qwen | {"use_sliding_window": True}

    assert parse(qwen).sliding_windows == (None,) * 4
    assert parse(sliding | {"max_window_layers": 3}).sliding_windows == (None, None, None, 8)
    listed = ["sliding_attention", "full_attention"] * 2
    assert parse(sliding | {"layer_types": listed}).sliding_windows == (8, None, 8, None)


def test_stop_tokens_come_from_both_files(tmp_path: Path) -> None:
    """An id in either file ends a sequence; lists and single ids are both read."""
    (tmp_path / "config.json").write_text(json.dumps(SMALL | {"eos_token_id": 7}))
    assert ModelConfig.from_folder(tmp_path).eos_token_ids == (7,)

    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 7]}))
    assert ModelConfig.from_folder(tmp_path).eos_token_ids == (7, 9)


def test_the_tiny_model_is_what_its_fixture_says(tiny_model_dir: Path) -> None:
    """The folder that other tests stand on parses, with its stop token and four LoRA sites in each layer."""
    config = ModelConfig.from_folder(tiny_model_dir)

    assert (config.num_layers, config.hidden_size, config.num_kv_heads, config.head_dim) == (2, 64, 2, 16)
    assert config.tie_word_embeddings
    assert config.eos_token_ids == (2,)
    assert [site.name for site in lora_shape(config).sites] == ["qkv", "o", "gate_up", "down"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not served; served are LlamaForCausalLM"),
        ({"architectures": None, "model_type": "mamba"}, "mamba"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "longrope"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"head_dim": 7}, "head_dim"),
        (
            {
                "architectures": ["Qwen3ForCausalLM"],
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": ["chunked_attention"] * 2,
            },
            "layer_types",
        ),
    ],
)
def test_what_is_not_served_is_refused_by_name(change: dict[str, object], message: str) -> None:
    """The refusal names the setting that is in the way."""
    with pytest.raises(UnsupportedModel, match=message):
        parse(SMALL | change)


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_an_unreadable_config_is_refused(tmp_path: Path, content: str) -> None:
    """A broken config.json names its path."""
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UnsupportedModel, match=r"config\.json"):
        ModelConfig.from_folder(tmp_path)


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope["rope_type"])
def test_rope_tables_equal_transformers(rope: dict[str, object]) -> None:
    """Within the configured context, every variant gives Transformers' cosines and sines."""
    theirs = llama(rope)
    length = 600
    cos, sin = rope_tables(parse(theirs.to_dict()), length)
    expected = LlamaRotaryEmbedding(theirs)(torch.zeros(1), torch.arange(length)[None])

    assert cos.shape == sin.shape == (length, 32)
    assert cos.dtype == torch.float32
    for ours, reference in zip((cos, sin), expected, strict=True):
        torch.testing.assert_close(ours, reference[0, :, :32], atol=2e-4, rtol=0)


def test_dynamic_scaling_is_static_at_the_served_length() -> None:
    """Beyond the configured context the tables are Transformers' for a sequence of exactly that length."""
    theirs = llama({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0})
    config = parse(theirs.to_dict())
    cos, sin = rope_tables(config, 2048)
    expected = LlamaRotaryEmbedding(theirs)(torch.zeros(1), torch.arange(2048)[None])

    torch.testing.assert_close(cos, expected[0][0, :, :32], atol=5e-4, rtol=0)
    torch.testing.assert_close(sin, expected[1][0, :, :32], atol=5e-4, rtol=0)
    plain = dataclasses.replace(config, rope=dataclasses.replace(config.rope, kind="default"))
    torch.testing.assert_close(rope_tables(config, 1024), rope_tables(plain, 1024))

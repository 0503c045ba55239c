"""Adapters of every kind that is served, written by PEFT, and PEFT's own answer for each of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from oracle import replace_weights
from peft import (
    AdaLoraConfig,
    BeftConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    PeftModel,
    TrainableTokensConfig,
    VeraConfig,
    get_peft_model,
)
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.config import BdLoraConfig, MontecloraConfig, VeloraConfig
from safetensors import safe_open
from transformers import AutoModelForCausalLM

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
INVOCATION = [40, 41]


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(**{"r": 8, "lora_alpha": 16, "target_modules": ALL, "task_type": "CAUSAL_LM"} | options)


def pruned_adalora() -> AdaLoraConfig:
    """As training leaves it: of two modules some ranks are gone, of one of them all."""
    config = AdaLoraConfig(init_r=6, lora_alpha=16, target_modules=ALL, total_step=10, task_type="CAUSAL_LM")
    config.rank_pattern = {
        "model.layers.0.self_attn.q_proj.lora_E": [True, False, True, True, False, True],
        "model.layers.1.mlp.up_proj.lora_E": [False] * 6,
    }
    return config


def kind(cls: Any, **options: Any) -> Callable[[], Any]:
    return lambda: cls(target_modules=ALL, task_type="CAUSAL_LM", **options)


KINDS: dict[str, Callable[[], Any]] = {
    "lora": lora,
    "lora, rank 64": lambda: lora(r=64, lora_alpha=64),
    "dora": lambda: lora(use_dora=True),
    "dora, rank 2, one module": lambda: lora(use_dora=True, r=2, target_modules=["k_proj"]),
    "dora, rsLoRA": lambda: lora(use_dora=True, r=4, use_rslora=True, rank_pattern={"o_proj": 9}),
    "lora_bias": lambda: lora(lora_bias=True),
    "block-diagonal": lambda: lora(
        use_bdlora=BdLoraConfig(
            nblocks=2, target_modules_bd_a=["o_proj", "down_proj"], target_modules_bd_b=["q_proj"], match_strict=False
        )
    ),
    "velora": lambda: lora(velora_config=VeloraConfig(num_groups=2)),
    "monteclora": lambda: lora(monteclora_config=MontecloraConfig()),
    "mica": lambda: lora(init_lora_weights="mica"),
    "alora": lambda: lora(alora_invocation_tokens=INVOCATION),
    "adalora": kind(AdaLoraConfig, init_r=5, lora_alpha=12, total_step=10),
    "adalora, pruned": pruned_adalora,
    "loha": kind(LoHaConfig, r=4, alpha=8),
    "lokr": kind(LoKrConfig, r=4, alpha=8),
    "lokr, both": kind(LoKrConfig, r=3, alpha=8, decompose_both=True),
    "lokr, factor 4": kind(LoKrConfig, r=64, alpha=64, decompose_factor=4),
    "vera": kind(VeraConfig, r=16),
    "miss": kind(MissConfig, r=6),
    "miss, mini": kind(MissConfig, r=8, mini_r=4, init_weights="mini"),
    "ia3": lambda: IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    ),
    "ia3, everywhere": lambda: IA3Config(
        target_modules=[*ALL, "lm_head"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    ),
    "beft": kind(BeftConfig),
    "head": lambda: lora(target_modules=["lm_head"]),
    "head, dora": lambda: lora(target_modules=["q_proj", "lm_head"], use_dora=True),
    "head, lora_bias": lambda: lora(target_modules=["q_proj", "lm_head"], lora_bias=True),
    "head, loha": lambda: LoHaConfig(r=3, target_modules=["lm_head"], task_type="CAUSAL_LM"),
    "embedding": lambda: lora(target_modules=["embed_tokens"]),
    "embedding, dora": lambda: lora(target_modules=["q_proj", "embed_tokens"], use_dora=True),
    "embedding and head": lambda: lora(target_modules=["embed_tokens", "lm_head", "q_proj"]),
    "embedding, tied head": lambda: lora(target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=True),
    "own head": lambda: lora(modules_to_save=["lm_head"]),
    "own embedding": lambda: lora(modules_to_save=["embed_tokens"]),
    "own embedding and head": lambda: lora(modules_to_save=["embed_tokens", "lm_head"]),
    "own embedding, tied head": lambda: lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    "own head, loha": kind(LoHaConfig, r=3, modules_to_save=["lm_head"]),
    "own tokens": lambda: lora(trainable_token_indices=[50, 7, 44, 9]),
    "own tokens of the head": lambda: lora(trainable_token_indices={"lm_head": [50, 7, 44, 9]}),
    "own tokens, different": lambda: lora(trainable_token_indices={"embed_tokens": [50, 7], "lm_head": [44, 9]}),
    "own tokens, same": lambda: lora(trainable_token_indices={"embed_tokens": [50, 7], "lm_head": [50, 7]}),
    "trainable tokens": lambda: TrainableTokensConfig(token_indices=[9, 60, 44], task_type="CAUSAL_LM"),
}

BIASED: dict[str, Callable[[], Any]] = {
    "bias of all": lambda: lora(bias="all", target_modules=["q_proj", "up_proj"]),
    "bias of targets": lambda: lora(bias="lora_only", target_modules=["q_proj", "down_proj"]),
    "dora, bias of all": lambda: lora(bias="all", use_dora=True, target_modules=["q_proj", "o_proj"]),
    "vera, bias of targets": kind(VeraConfig, r=8, bias="vera_only"),
}
"""For a base that has biases."""

RESIZED: dict[str, tuple[int, Callable[[], Any]]] = {
    "new tokens, frozen": (5, lora),
    "new tokens, own embedding": (5, lambda: lora(modules_to_save=["embed_tokens"])),
    "new tokens, own head": (3, lambda: lora(modules_to_save=["lm_head"])),
    "new tokens, own embedding and head": (7, lambda: lora(modules_to_save=["embed_tokens", "lm_head"])),
    "new tokens, own embedding, tied head": (
        5,
        lambda: lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    ),
    "new tokens, some trained": (5, lambda: lora(trainable_token_indices=[50, 289, 7])),
    "new tokens, dora": (2, lambda: lora(use_dora=True)),
    "fewer tokens": (-20, lora),
    "fewer tokens, own embedding and head": (-20, lambda: lora(modules_to_save=["embed_tokens", "lm_head"])),
    "fewer tokens, some trained": (-20, lambda: lora(trainable_token_indices=[50, 7])),
}
"""How many tokens the embedding and the head have more than the base's, and what is trained then."""

SOME = {"target_modules": ["q_proj", "down_proj"]}

REAL: dict[str, Callable[[], Any]] = {
    "dora": lambda: lora(use_dora=True, **SOME),
    "alora": lambda: lora(alora_invocation_tokens=INVOCATION, **SOME),
    "loha": lambda: LoHaConfig(r=4, alpha=4, task_type="CAUSAL_LM", **SOME),
    "ia3": KINDS["ia3"],
    "own tokens": lambda: lora(trainable_token_indices=[50, 7, 44, 9], **SOME),
    "own embedding and head": lambda: lora(modules_to_save=["embed_tokens", "lm_head"], **SOME),
    "embedding and head, dora": lambda: lora(target_modules=["embed_tokens", "lm_head"], use_dora=True),
}
"""For the base model that is served by default."""


@cache
def _loaded(base: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def _fresh(base: Path, vocab_size: int | None = None) -> torch.nn.Module:
    """A model of its own: some adapters change the base that they are loaded on. vocab_size: if not the base's."""
    model = copy.deepcopy(_loaded(base))
    if vocab_size is not None:
        model.resize_token_embeddings(vocab_size)
    return model


def _vocab_size(folder: Path) -> int | None:
    """That of the file's embedding, where there is one."""
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        embedding = (name for name in file.keys() if "embed_tokens" in name and name.endswith("weight"))  # noqa: SIM118
        return next((file.get_slice(name).get_shape()[0] for name in embedding), None)


def write(path: Path, base: Path, config: Any, seed: int, spread: float = 0.1, more_tokens: int = 0) -> Path:
    """Saved by PEFT after every number that it trains was moved from where PEFT began."""
    torch.manual_seed(seed)  # rows of new tokens are drawn
    resized = _loaded(base).config.vocab_size + more_tokens if more_tokens else None
    model = get_peft_model(_fresh(base, resized), config)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            moved = 0.3 if "magnitude" in name or "ia3" in name else spread
            weight.data += moved * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(path)
    return path


@torch.inference_mode()
def blended_logits(base: Path, folder: Path, scale: float, tokens: list[int]) -> torch.Tensor:
    """[len(tokens), vocab] fp32 of weights that are `scale` of the way from the base to PEFT's merged model."""
    model = _fresh(base)
    before = copy.deepcopy(model.state_dict())
    merged = PeftModel.from_pretrained(model, folder).merge_and_unload()
    after = {name: torch.lerp(before[name], weight, scale) for name, weight in merged.state_dict().items()}
    merged.load_state_dict(after)
    logits: torch.Tensor = merged.eval()(torch.tensor([tokens])).logits[0]
    return logits


@torch.inference_mode()
def summed_logits(base: Path, parts: Sequence[tuple[Path, float]], tokens: list[int]) -> torch.Tensor:
    """[len(tokens), vocab] fp32 of LoRA adapters that are active together, each with its scaling multiplied."""
    model = PeftModel.from_pretrained(_fresh(base), parts[0][0], adapter_name="0")
    for number, (folder, _) in enumerate(parts[1:], 1):
        model.load_adapter(folder, adapter_name=str(number))
    for layer in (module for module in model.modules() if isinstance(module, LoraLayer)):
        for number, (_, weight) in enumerate(parts):
            if str(number) in layer.scaling:
                layer.scaling[str(number)] *= weight
    model.base_model.set_adapter([str(number) for number in range(len(parts))])
    logits: torch.Tensor = model.eval()(torch.tensor([tokens])).logits[0]
    return logits


@torch.inference_mode()
def peft_logits(
    base: Path, folder: Path, tokens: list[int], start: int = 0, quantization: str = "none"
) -> torch.Tensor:
    """[len(tokens), vocab] fp32. start: where an aLoRA begins to act; quantization: of the base."""
    fresh = _fresh(base, _vocab_size(folder))
    replace_weights(fresh, quantization)
    model = PeftModel.from_pretrained(fresh, folder).eval()
    is_alora = bool(getattr(model.peft_config["default"], "alora_invocation_tokens", None))
    options = {"alora_offsets": [len(tokens) - start]} if is_alora else {}
    logits: torch.Tensor = model(torch.tensor([tokens]), **options).logits[0]
    return logits

"""PEFT's LoRA and its variants: the tensors of each, and which of them can be combined.

Knows the configuration's fields and shapes; knows no file and no tensor library.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from loraplex.adapters.config_reader import ConfigReader, PatternTable
from loraplex.adapters.peft_method import Expected
from loraplex.adapters.types import EMBEDDING, Form, ModuleSpec, Part

_INITS = {"gaussian", "eva", "orthogonal", "mica", "true", "false"}
_BASE_CHANGING_INITS = {"pissa", "olora", "corda", "loftq", "lora_ga"}


@dataclass(frozen=True, slots=True)
class Lora:
    """LORA, and those of its variants that leave the base alone: DoRA, a bias of B, aLoRA, block-diagonal factors.

    blocks: of a factor that is block-diagonal, A where a module's name contains one of a_blocks, B for b_blocks
    """

    rank: int
    alpha: float
    use_rslora: bool
    ranks: PatternTable
    alphas: PatternTable
    use_dora: bool
    has_bias: bool
    ignored: tuple[str, ...]
    blocks: int
    a_blocks: tuple[str, ...]
    b_blocks: tuple[str, ...]
    linear_variant: str | None

    @classmethod
    def read(cls, reader: ConfigReader) -> Self:
        variants = [key for key in _LORA_VARIANTS if reader.config.get(key)]
        variants += ["init_lora_weights"] if reader.config.get("init_lora_weights") == "mica" else []
        if len(variants) > 1:
            reader.refuse("variants_combined", variants[0], "PEFT has no such combination", "one of them", variants)
        use_dora, has_bias = reader.flag("use_dora"), reader.flag("lora_bias")
        if use_dora and has_bias:
            reader.refuse("variants_combined", "lora_bias", "PEFT has no such combination", "lora_bias off", has_bias)
        _check_init(reader)
        blocks = ConfigReader(reader.take("use_bdlora", {}, lambda value: isinstance(value, dict), "an object"))
        read = cls(
            rank=reader.rank("r", 8),
            alpha=reader.number("lora_alpha", 8),
            use_rslora=reader.flag("use_rslora"),
            ranks=reader.rank_patterns(),
            alphas=reader.alpha_patterns(),
            use_dora=use_dora,
            has_bias=has_bias,
            ignored=tuple(prefix for key, prefix in _TRAINING_TENSORS.items() if reader.config.get(key)),
            blocks=blocks.rank("nblocks", 1),
            a_blocks=blocks.names("target_modules_bd_a"),
            b_blocks=blocks.names("target_modules_bd_b"),
            linear_variant="lora_bias" if has_bias else next(iter({*variants} - _EMBEDDING_VARIANTS), None),
        )
        reader.failures += blocks.failures
        return read

    def expect(self, module: str, inputs: int, outputs: int) -> Expected | str:
        rank = int(self.ranks.get(module, self.rank))
        scaling = float(self.alphas.get(module, self.alpha)) / (math.sqrt(rank) if self.use_rslora else rank)
        extra: dict[str, tuple[int, ...]] = {"lora_magnitude_vector": (outputs,)} if self.use_dora else {}
        parts: frozenset[Part] = frozenset({"magnitude"} if self.use_dora else ())
        if module == EMBEDDING:
            if self.linear_variant:
                return f"PEFT has no {self.linear_variant} of an embedding; leave embed_tokens out of target_modules"
            shapes = {"lora_embedding_A": (rank, inputs), "lora_embedding_B": (outputs, rank)} | extra
            return Expected(ModuleSpec(rank, scaling, parts=parts), shapes, _product(shapes, extra))
        extra |= {"lora_B.bias": (outputs,)} if self.has_bias else {}
        parts |= {"lora_bias"} if self.has_bias else set()
        in_a = self.blocks if any(part in module for part in self.a_blocks) else 1
        in_b = self.blocks if any(part in module for part in self.b_blocks) else 1
        if inputs % in_a or rank % in_a or outputs % in_b or rank % in_b or min(in_a, in_b) > 1:
            return "nblocks must divide the rank and the width, and one factor may have blocks; correct use_bdlora"
        form: Form = "block_lora" if in_a * in_b > 1 else "lora"
        shapes = {"lora_A.weight": (rank, inputs // in_a), "lora_B.weight": (outputs, rank // in_b)} | extra
        return Expected(ModuleSpec(rank, scaling, form, parts), shapes, _product(shapes, extra), self.ignored)


_LORA_VARIANTS = ("use_dora", "alora_invocation_tokens", "velora_config", "monteclora_config", "use_bdlora")
_EMBEDDING_VARIANTS = {"use_dora", "init_lora_weights"}
_TRAINING_TENSORS = {"velora_config": "lora_velora_", "monteclora_config": "lora_monteclora_"}


def _product(shapes: Mapping[str, tuple[int, ...]], extra: Mapping[str, tuple[int, ...]]) -> tuple[str, ...] | None:
    return None if extra else tuple(shapes)


def _check_init(reader: ConfigReader) -> None:
    """Some ways to begin a training move part of the base into the adapter, which is then no adapter to the base."""
    value = reader.config.get("init_lora_weights")
    name = "true" if value is None else str(value).lower() if isinstance(value, (str, bool)) else ""
    if name in _INITS:
        return
    for method in sorted(_BASE_CHANGING_INITS):
        if name == method or name.startswith(f"{method}_niter_"):
            remedy = (
                f"{method} changes the base weights; save with "
                "path_initial_model_for_weight_conversion, which turns the adapter into a plain LoRA"
            )
            reader.refuse(f"{method}_unsupported", "init_lora_weights", remedy, "a plain LoRA", value)
            return
    reader.refuse("unknown_init", "init_lora_weights", "train with one of these", ", ".join(sorted(_INITS)), value)

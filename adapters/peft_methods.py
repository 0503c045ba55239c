"""PEFT's methods that are served, beside LoRA: for one module the tensors of each, and the LoRA that they amount to.

Knows their formulas as far as shapes go, as PEFT's layers compute at inference; knows no file and no tensor library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from loraplex.adapters.config_reader import ConfigReader, PatternTable, is_list_of, is_rank
from loraplex.adapters.peft_lora import Lora
from loraplex.adapters.peft_method import Expected, Method
from loraplex.adapters.types import EMBEDDING, Form, ModuleSpec


@dataclass(frozen=True, slots=True)
class AdaLora:
    """ADALORA: B diag(E) A, divided by the rank that training began with; `kept` says which ranks it ended with."""

    rank: int
    alpha: float
    kept: Mapping[str, int]

    @classmethod
    def read(cls, reader: ConfigReader) -> Self:
        rank = reader.rank("init_r", 12)
        none: dict[str, Any] = {}
        patterns = reader.take("rank_pattern", none, lambda value: isinstance(value, dict), "an object")
        kept = {}
        for key, flags in patterns.items():
            if is_list_of(flags, lambda flag: isinstance(flag, bool)) and len(flags) == rank:
                kept[key.removesuffix(".lora_E")] = sum(flags)
            else:
                expected = f"a list of {rank} times true or false"
                reader.refuse("pattern_value_invalid", "rank_pattern", "correct the value", expected, flags)
        return cls(rank, reader.number("lora_alpha", 8), kept)

    def expect(self, module: str, inputs: int, outputs: int) -> Expected | str:
        rank = self.kept.get(module, self.rank)
        scaling = (self.alpha if self.alpha > 0 else self.rank) / (self.rank + 1e-5)
        shapes = {"lora_A": (rank, inputs), "lora_B": (outputs, rank), "lora_E": (rank, 1)}
        return _linear_only(module, Expected(ModuleSpec(rank, scaling, "adalora"), shapes, tuple(shapes)))


@dataclass(frozen=True, slots=True)
class _Lycoris:
    """What LOHA and LOKR share."""

    rank: int
    alpha: float
    ranks: PatternTable
    alphas: PatternTable

    @classmethod
    def read_common(cls, reader: ConfigReader) -> dict[str, Any]:
        return {
            "rank": reader.rank("r", 8),
            "alpha": reader.number("alpha", 8),
            "ranks": reader.rank_patterns(),
            "alphas": reader.alpha_patterns(),
        }

    def of(self, module: str) -> tuple[int, float]:
        """Rank and scaling."""
        rank = int(self.ranks.get(module, self.rank))
        return rank, float(self.alphas.get(module, self.alpha)) / rank


@dataclass(frozen=True, slots=True)
class LoHa(_Lycoris):
    """LOHA: (W1a W1b) * (W2a W2b) element by element, which has the rank r * r."""

    @classmethod
    def read(cls, reader: ConfigReader) -> Self:
        return cls(**cls.read_common(reader))

    def expect(self, module: str, inputs: int, outputs: int) -> Expected | str:
        rank, scaling = self.of(module)
        a, b = (outputs, rank), (rank, inputs)
        shapes = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": a, "hada_w2_b": b}
        return _linear_only(module, Expected(ModuleSpec(rank * rank, scaling, "loha"), shapes, tuple(shapes)))


@dataclass(frozen=True, slots=True)
class LoKr(_Lycoris):
    """LOKR: the Kronecker product of W1 and W2, each whole or of rank r; its rank is the product of theirs."""

    decompose_both: bool
    decompose_factor: int

    @classmethod
    def read(cls, reader: ConfigReader) -> Self:
        common = cls.read_common(reader)
        factor = reader.take("decompose_factor", -1, lambda v: is_rank(v) or v == -1, "-1 or a whole number from 1")
        return cls(**common, decompose_both=reader.flag("decompose_both"), decompose_factor=factor)

    def expect(self, module: str, inputs: int, outputs: int) -> Expected | str:
        rank, scaling = self.of(module)
        in_1, in_2 = _factorization(inputs, self.decompose_factor)
        out_1, out_2 = _factorization(outputs, self.decompose_factor)
        is_whole = (not (self.decompose_both and rank < max(out_1, in_1) / 2), not rank < max(out_2, in_2) / 2)
        shapes: dict[str, tuple[int, ...]] = {}
        true_rank = 1
        for name, whole, rows, columns in (("w1", is_whole[0], out_1, in_1), ("w2", is_whole[1], out_2, in_2)):
            halves = {f"lokr_{name}_a": (rows, rank), f"lokr_{name}_b": (rank, columns)}
            shapes |= {f"lokr_{name}": (rows, columns)} if whole else halves
            true_rank *= min(rows, columns) if whole else min(rank, rows, columns)
        return _linear_only(module, Expected(ModuleSpec(true_rank, scaling, "lokr"), shapes, tuple(shapes)))


@dataclass(frozen=True, slots=True)
class Vera:
    """VERA: one random A and B for all modules, and two vectors for each of them."""

    rank: int

    @classmethod
    def read(cls, reader: ConfigReader) -> Self:
        if reader.config.get("save_projection") is False:
            remedy = "its random matrices are not in the file and differ between machines; save them with the adapter"
            reader.refuse("projection_missing", "save_projection", remedy, "true", False)
        return cls(reader.rank("r", 256))

    def expect(self, module: str, inputs: int, outputs: int) -> Expected | str:
        shapes = {"vera_lambda_b": (outputs,), "vera_lambda_d": (self.rank,)}
        shared = {"vera_A": (self.rank, inputs), "vera_B": (outputs, self.rank)}
        expected = Expected(ModuleSpec(self.rank, 1.0, "vera"), shapes, tuple(shapes), shared=shared)
        return _linear_only(module, expected)


@dataclass(frozen=True, slots=True)
class Miss:
    """MISS: inputs summed up in `rank` groups, times a block. mini_rank: the block's width where it is repeated."""

    rank: int
    mini_rank: int | None

    @classmethod
    def read(cls, reader: ConfigReader) -> Self:
        init = reader.config.get("init_weights")
        if init == "bat":
            remedy = "it multiplies the base weights; convert it to LoRA with peft.save_as_lora, or train without it"
            reader.refuse("bat_unsupported", "init_weights", remedy, "true or mini", init)
        return cls(reader.rank("r", 64), reader.rank("mini_r", 1) if init == "mini" else None)

    def expect(self, module: str, inputs: int, outputs: int) -> Expected | str:
        if outputs % (self.mini_rank or outputs):
            return "mini_r must divide the width of every module; train with another one"
        shapes = {"miss_block": (self.rank, self.mini_rank or outputs)}
        return _linear_only(module, Expected(ModuleSpec(self.rank, 1.0, "miss"), shapes, tuple(shapes)))


@dataclass(frozen=True, slots=True)
class Ia3:
    """IA3: a factor for every output, or for every input of the modules that are `feedforward`."""

    feedforward: tuple[str, ...]

    @classmethod
    def read(cls, reader: ConfigReader) -> Self:
        return cls(reader.names("feedforward_modules"))

    def expect(self, module: str, inputs: int, outputs: int) -> Expected | str:
        is_feedforward = module.endswith(self.feedforward)
        if is_feedforward and not module.endswith(".mlp.down_proj"):
            return "factors of inputs are served for mlp.down_proj alone; take others out of feedforward_modules"
        shapes = {"ia3_l": (1, inputs) if is_feedforward else (outputs, 1)}
        form: Form = "ia3_in" if is_feedforward else "ia3"
        return _linear_only(module, Expected(ModuleSpec(0, 1.0, form), shapes, None))


@dataclass(frozen=True, slots=True)
class Beft:
    """BEFT: a bias for every output."""

    @classmethod
    def read(cls, reader: ConfigReader) -> Self:
        return cls()

    def expect(self, module: str, inputs: int, outputs: int) -> Expected | str:
        shapes = {"beft_bias": (1, outputs)}
        return _linear_only(module, Expected(ModuleSpec(0, 1.0, "beft"), shapes, tuple(shapes)))


@dataclass(frozen=True, slots=True)
class TrainableTokens:
    """TRAINABLE_TOKENS: nothing but rows of the embedding and the head, which `PeftConfig.token_rows` tells."""

    @classmethod
    def read(cls, reader: ConfigReader) -> Self:
        return cls()

    def expect(self, module: str, inputs: int, outputs: int) -> Expected | str:
        return "this method trains rows of the embedding only; save the adapter again with PEFT"


METHODS: Mapping[str, type[Method]] = {
    "LORA": Lora,
    "ADALORA": AdaLora,
    "LOHA": LoHa,
    "LOKR": LoKr,
    "VERA": Vera,
    "MISS": Miss,
    "IA3": Ia3,
    "BEFT": Beft,
    "TRAINABLE_TOKENS": TrainableTokens,
}


def _linear_only(module: str, expected: Expected) -> Expected | str:
    return "PEFT has no such adapter of an embedding; leave embed_tokens out" if module == EMBEDDING else expected


def _factorization(size: int, factor: int) -> tuple[int, int]:
    """How LoKr cuts a dimension in two, the first of them at most `factor` (-1: any); as PEFT has it from LyCORIS."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    most = size if factor == -1 else factor
    first, second = 1, size
    shortest = first + second
    while first < second:
        larger = next(divisor for divisor in range(first + 1, size + 1) if size % divisor == 0)
        if larger + size // larger > shortest or larger > most:
            break
        first, second = larger, size // larger
    return min(first, second), max(first, second)

"""What a method's tensors do to a module, in one form for all: y += x A^T B^T, then what is not of low rank.

Knows PEFT's formulas, as its layers compute at inference; knows no layout. In fp32 but for what is only copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from loraplex.adapters.errors import AdapterUnavailable
from loraplex.adapters.types import Form, ModuleSpec

_ROWS = 4096
"""Of a base's weight that are looked at together."""


class BaseWeights(Protocol):
    """The base model's own weights, for adapters that cannot be told without them. Any thread may ask."""

    @property
    def fingerprint(self) -> str:
        """Another one for other weights, or for weights that are held otherwise."""

    @property
    def ties_embeddings(self) -> bool:
        """Whether the head multiplies with the embedding."""

    def stored(self, name: str) -> Tensor | None:
        """The tensor as the checkpoint has it, on the CPU. None: it has none."""

    def weight(self, module: str) -> Tensor:
        """[out_features, in_features] on the CPU, as the engine computes with it."""


class WeightsFile:
    """An open weights file."""

    def __init__(self, file: safe_open) -> None:
        self._file = file
        self._names = frozenset(file.keys())  # type: ignore[no-untyped-call]  # safetensors has no annotations

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)  # type: ignore[no-untyped-call]  # safetensors has no annotations
        return tensor


@dataclass(frozen=True, slots=True)
class ModuleWeights:
    """The tensors of one module, by the end of their names."""

    file: WeightsFile
    module: str

    def __contains__(self, end: str) -> bool:
        return self._name(end) in self.file

    def __getitem__(self, end: str) -> Tensor:
        return self.file[self._name(end)]

    def _name(self, end: str) -> str:
        return f"base_model.model.{self.module}.{end}"


@dataclass(frozen=True, slots=True)
class Effect:
    """y becomes y + y * gain + shift + x A^T B^T.  a [rank, in_features], b [out_features, rank]; gain, shift
    [out_features] or None; scaling and DoRA's magnitude are folded in. rank 0: a and b are None."""

    a: Tensor | None
    b: Tensor | None
    gain: Tensor | None = None
    shift: Tensor | None = None


def effect_of(tensors: ModuleWeights, spec: ModuleSpec, inputs: int, outputs: int, base: BaseWeights | None) -> Effect:
    """Raises AdapterUnavailable if the tensors do not fit the module."""
    if spec.form == "ia3":
        return Effect(None, None, gain=_sized(tensors, "ia3_l", outputs) - 1)
    if spec.form == "beft":
        return Effect(None, None, shift=_sized(tensors, "beft_bias", outputs))
    a, b = _factors(tensors, spec, inputs, outputs) if spec.rank else (None, None)
    if not spec.parts:
        return Effect(a, b)
    gain, shift = None, torch.zeros(outputs)
    if "magnitude" in spec.parts:
        assert base is not None
        assert a is not None
        assert b is not None
        magnitude = _sized(tensors, "lora_magnitude_vector", outputs)
        gain = magnitude / _row_norms(base.weight(tensors.module), a, b) - 1
        b = b * (1 + gain).unsqueeze(1)
        shift -= gain * _base_bias(base, tensors.module, outputs, required=False)
    if "lora_bias" in spec.parts:
        shift += spec.scaling * _sized(tensors, "lora_B.bias", outputs)
    if "bias" in spec.parts:
        assert base is not None
        end = "base_layer.bias" if "base_layer.bias" in tensors else "bias"
        shift += _sized(tensors, end, outputs) - _base_bias(base, tensors.module, outputs, required=True)
    return Effect(a, b, gain, shift)


@dataclass(frozen=True, slots=True)
class EmbeddingEffect:
    """Of LoRA of the embedding: row t becomes row t * (1 + gain) + b a[:, t].  a [rank, vocab], b [hidden, rank], gain
    [hidden] or None; scaling and magnitude are folded in."""

    a: Tensor
    b: Tensor
    gain: Tensor | None


def embedding_effect(
    tensors: ModuleWeights, spec: ModuleSpec, vocab: int, hidden: int, base: BaseWeights | None
) -> EmbeddingEffect:
    """Raises AdapterUnavailable if the tensors do not fit the embedding."""
    a, b = tensors["lora_embedding_A"], tensors["lora_embedding_B"].float() * spec.scaling
    _check_fit(tensors.module, a, b, spec.rank, vocab, hidden)
    if "magnitude" not in spec.parts:
        return EmbeddingEffect(a, b, None)
    assert base is not None
    squares = torch.zeros(hidden)
    for rows, weight in _pieces(base.weight(tensors.module)):
        squares += (weight + a[:, rows].float().T @ b.T).square().sum(0)
    gain = _sized(tensors, "lora_magnitude_vector", hidden) / squares.sqrt() - 1
    return EmbeddingEffect(a, b * (1 + gain).unsqueeze(1), gain)


def input_factor(tensors: ModuleWeights, inputs: int) -> Tensor:
    """IA3's, of a module's inputs."""
    return _sized(tensors, "ia3_l", inputs)


def _factors(tensors: ModuleWeights, spec: ModuleSpec, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    a, b = _FORMS[spec.form](tensors, inputs, outputs)
    _check_fit(tensors.module, a, b, spec.rank, inputs, outputs)
    return a, b.float() * spec.scaling  # in fp32, so that folding costs one rounding


def _lora(tensors: ModuleWeights, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    return tensors["lora_A.weight"], tensors["lora_B.weight"]


def _block_lora(tensors: ModuleWeights, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    """A or B is [blocks * rows, columns of one block]: the blocks of a diagonal, one below the other."""
    a, b = tensors["lora_A.weight"], tensors["lora_B.weight"]
    in_a, in_b = inputs // a.shape[1], a.shape[0] // b.shape[1]
    return _block_diagonal(a, in_a), _block_diagonal(b, in_b)


def _block_diagonal(blocks: Tensor, count: int) -> Tensor:
    whole: Tensor = torch.block_diag(*blocks.chunk(count))  # type: ignore[no-untyped-call]  # torch has no annotations
    return whole


def _adalora(tensors: ModuleWeights, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    return tensors["lora_A"].float() * tensors["lora_E"].float(), tensors["lora_B"]


def _loha(tensors: ModuleWeights, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    """(W1a W1b) * (W2a W2b) = sum over p, q of (W1a[:, p] * W2a[:, q]) (W1b[p] * W2b[q])."""
    w1_a, w1_b, w2_a, w2_b = (tensors[f"hada_{name}"].float() for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
    a = (w1_b.unsqueeze(1) * w2_b.unsqueeze(0)).reshape(-1, inputs)
    return a, (w1_a.unsqueeze(2) * w2_a.unsqueeze(1)).reshape(outputs, -1)


def _lokr(tensors: ModuleWeights, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    """(X1 Y1) kron (X2 Y2) = (X1 kron X2) (Y1 kron Y2)."""
    (b_1, a_1), (b_2, a_2) = _halves(tensors, "lokr_w1"), _halves(tensors, "lokr_w2")
    return torch.kron(a_1, a_2), torch.kron(b_1, b_2)


def _halves(tensors: ModuleWeights, name: str) -> tuple[Tensor, Tensor]:
    """A matrix as a product over the smallest of its sides, or over its rank if that is smaller."""
    if name in tensors:
        whole = tensors[name].float()
    else:
        left, right = tensors[f"{name}_a"].float(), tensors[f"{name}_b"].float()
        if left.shape[1] <= min(left.shape[0], right.shape[1]):
            return left, right
        whole = left @ right
    rows, columns = whole.shape
    return (whole, torch.eye(columns)) if columns <= rows else (torch.eye(rows), whole)


def _vera(tensors: ModuleWeights, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    a, b = tensors.file["base_model.vera_A"][:, :inputs], tensors.file["base_model.vera_B"][:outputs]
    return tensors["vera_lambda_d"].float().unsqueeze(1) * a, tensors["vera_lambda_b"].float().unsqueeze(1) * b


def _miss(tensors: ModuleWeights, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    """Input i goes into the sum i % rank; a block that is narrower than the output is repeated."""
    block = tensors["miss_block"].float()
    place = torch.arange(inputs)
    a = torch.zeros(block.shape[0], inputs)
    a[place % block.shape[0], place] = 1
    return a, block.repeat(1, outputs // block.shape[1]).T


_FORMS: dict[Form, Callable[[ModuleWeights, int, int], tuple[Tensor, Tensor]]] = {
    "lora": _lora,
    "block_lora": _block_lora,
    "adalora": _adalora,
    "loha": _loha,
    "lokr": _lokr,
    "vera": _vera,
    "miss": _miss,
}


def _row_norms(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The length of every row of weight + B A."""
    return torch.cat([(piece + b[rows] @ a.float()).norm(dim=1) for rows, piece in _pieces(weight)])


def _pieces(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some rows at a time in fp32: of the matrix of a large vocabulary there is not to be another copy."""
    for first in range(0, weight.shape[0], _ROWS):
        rows = slice(first, min(first + _ROWS, weight.shape[0]))
        yield rows, weight[rows].float()


def _base_bias(base: BaseWeights, module: str, outputs: int, *, required: bool) -> Tensor:
    bias = base.stored(f"{module}.bias")
    if bias is None and required:
        raise AdapterUnavailable(f"this adapter replaces the bias of {module}, and this base has none")
    return torch.zeros(outputs) if bias is None else bias.float()


def _sized(tensors: ModuleWeights, end: str, size: int) -> Tensor:
    vector = tensors[end].float().flatten()
    if vector.shape != (size,):
        name = f"{tensors.module}.{end}"
        raise AdapterUnavailable(f"this adapter was checked for another base: {name} has {vector.numel()} numbers")
    return vector


def _check_fit(module: str, a: Tensor, b: Tensor, rank: int, inputs: int, outputs: int) -> None:
    for name, factor, expected in (("A", a, (rank, inputs)), ("B", b, (outputs, rank))):
        if factor.shape != expected:
            raise AdapterUnavailable(
                f"this adapter was checked for another base: {name} of {module} is {list(factor.shape)}, "
                f"not {list(expected)}"
            )

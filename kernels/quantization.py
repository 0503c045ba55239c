"""Weights as small integers: how a matrix becomes int8 or int4 codes, what these stand for, how kernels lay them out.

Only the weights are quantised, when they are loaded; activations keep their dtype. Knows no kernel and no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from loraplex.kernels.ops import Linear

GROUP_INPUTS = {8: 64, 4: 32}
"""Neighbouring inputs of one output that share a scale and a minimum, by the bits of a code."""

PANEL_OUTPUTS = 48
"""Outputs that lie together in a packed matrix, as in cpu/quantized.h."""


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A matrix weight[o, i] = scale[o, g] * code[o, i] + minimum[o, g], g = i // GROUP_INPUTS[bits].

    codes    [out_features, in_features] uint8, 0 .. 2^bits - 1
    scales, minimums  [out_features, ceil(in_features / GROUP_INPUTS[bits])] bf16
    dtype    of the matrix before, and so of what it is multiplied with
    """

    bits: int
    dtype: torch.dtype
    codes: Tensor
    scales: Tensor
    minimums: Tensor

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The matrix itself: exact in fp64, rounded once in other dtypes but fp32, where the sum rounds as well."""
        wide = torch.promote_types(dtype, torch.float32)
        group = torch.arange(self.codes.shape[1], device=self.codes.device) // GROUP_INPUTS[self.bits]
        scaled = self.codes.to(wide) * self.scales.to(wide)[:, group]
        return scaled.add_(self.minimums.to(wide)[:, group]).to(dtype)


@runtime_checkable
class QuantizedKernels(Protocol):
    """Kernels that multiply quantised weights too."""

    def quantized_linear(self, weight: QuantizedWeight, bias: Tensor | None) -> Linear:
        """As `Kernels.linear` with `weight.dequantized`; the result is right to the rounding of x's dtype."""


def quantize(weight: Tensor, bits: int) -> QuantizedWeight:
    """Codes of a floating [out_features, in_features] matrix: each group's range in 2^bits - 1 equal steps, rounded to
    the nearest. A group that lay on such a grid already, like those of a GGUF file in Q4_1, comes out as it was."""
    steps = 2**bits - 1
    groups = _grouped(weight.float(), GROUP_INPUTS[bits])
    lowest, highest = groups.amin(-1), groups.amax(-1)
    minimums = lowest.bfloat16()
    # 0 would divide; a group of equal numbers is all minimum
    scales = ((highest - minimums.float()) / steps).clamp(min=torch.finfo(torch.bfloat16).tiny).bfloat16()
    codes = ((groups - minimums.float().unsqueeze(-1)) / scales.float().unsqueeze(-1)).round_().clamp_(0, steps)
    codes = codes.to(torch.uint8).flatten(1)[:, : weight.shape[1]].contiguous()
    return QuantizedWeight(bits, weight.dtype, codes, scales, minimums)


def pack(weight: QuantizedWeight) -> tuple[Tensor, Tensor]:
    """(codes int32, scales bf16) in the layout that cpu/quantized.h describes; what pads it stands for zeros."""
    bits, inputs = weight.bits, GROUP_INPUTS[weight.bits]
    word_inputs = 32 // bits
    codes = _panels(_grouped(weight.codes, inputs).flatten(1))  # [panels, 48, padded inputs]
    halves = codes.int().reshape(*codes.shape[:2], -1, word_inputs // 2, 2)  # [panels, 48, words, place, half]
    places = torch.arange(word_inputs // 2, dtype=torch.int32)[:, None] * bits + torch.tensor([0, 16])
    # Every code has bits of its own, so that the sum is an or; one in the sign bit wraps around, as it should.
    words = (halves << places.int()).sum((-2, -1), dtype=torch.int32)
    scales = torch.stack((_panels(weight.scales), _panels(weight.minimums)))  # [2, panels, 48, groups]
    return words.transpose(1, 2).contiguous(), scales.permute(1, 3, 0, 2).contiguous()


def _grouped(matrix: Tensor, inputs: int) -> Tensor:
    """[rows, columns] -> [rows, groups, inputs]; the last group is filled up with its last column."""
    missing = -matrix.shape[1] % inputs
    if missing:
        matrix = torch.cat((matrix, matrix[:, -1:].expand(-1, missing)), dim=1)
    return matrix.reshape(matrix.shape[0], -1, inputs)


def _panels(matrix: Tensor) -> Tensor:
    """[out_features, columns] -> [panels, 48, columns], rows of zeros at the end."""
    missing = -matrix.shape[0] % PANEL_OUTPUTS
    return functional.pad(matrix, (0, 0, 0, missing)).reshape(-1, PANEL_OUTPUTS, matrix.shape[1])

"""Quantised weights stand for what was quantised, as closely as their bits allow, and take the memory they promise."""

import pytest
import torch
from kernels.cases import QUANTIZED_CASES, check

from loraplex.kernels.quantization import GROUP_INPUTS, QuantizedKernels, pack, quantize
from loraplex.kernels.reference import ReferenceKernels
from loraplex.kernels.triton_backend import TritonKernels


def random_matrix(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.1


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", [(7, 192), (33, 65), (1, 1)], ids=str)
def test_no_weight_moves_by_more_than_half_a_step(bits: int, shape: tuple[int, int]):
    """A group's range is cut into 2^bits - 1 steps; scale and minimum add the rounding of bf16."""
    weight = random_matrix(*shape)
    restored = quantize(weight, bits).dequantized(torch.float32)
    for start in range(0, shape[1], GROUP_INPUTS[bits]):
        group = weight[:, start : start + GROUP_INPUTS[bits]]
        lowest, highest = group.amin(1, keepdim=True), group.amax(1, keepdim=True)
        half_step = (highest - lowest) / (2**bits - 1) / 2
        rounding = (highest - lowest + 2 * lowest.abs()) / 256
        assert ((restored[:, start : start + group.shape[1]] - group).abs() <= half_step + rounding).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_on_a_grid_come_back_as_they_were(bits: int):
    """What was stored in so many bits loses nothing: steps and minimum are found again."""
    codes = torch.randint(2**bits, (5, 2 * GROUP_INPUTS[bits]), generator=torch.Generator().manual_seed(0))
    codes.view(5, 2, -1)[..., :2] = torch.tensor([0, 2**bits - 1])  # both ends are in use
    weight = codes * 0.03125 - 1.5
    assert torch.equal(quantize(weight, bits).dequantized(torch.float32), weight)


@pytest.mark.parametrize("value", [0.0, 0.3, -2.0])
@pytest.mark.parametrize("bits", [8, 4])
def test_equal_weights_stay_equal(bits: int, value: float):
    """A group without a range is its minimum, in bf16; nothing divides by zero."""
    restored = quantize(torch.full((3, 70), value), bits).dequantized(torch.float32)
    assert torch.equal(restored, torch.full((3, 70), value).bfloat16().float())


@pytest.mark.parametrize(("bits", "bits_per_weight"), [(8, 8.5), (4, 5.0)])
def test_packed_weights_are_as_small_as_promised(bits: int, bits_per_weight: float):
    """Codes, scales and minimums of a matrix without padding."""
    codes, scales = pack(quantize(random_matrix(96, 256), bits))
    assert (codes.nbytes + scales.nbytes) * 8 == 96 * 256 * bits_per_weight


@pytest.mark.parametrize("case", QUANTIZED_CASES, ids=str)
def test_the_reference_multiplies_what_the_codes_stand_for(case):
    """In bf16 too, where the restored matrix is rounded."""
    check(ReferenceKernels(), case, torch.device("cpu"), torch.bfloat16)


def test_kernels_without_quantised_products_are_told_apart():
    """Triton's have none."""
    assert isinstance(ReferenceKernels(), QuantizedKernels)
    assert not isinstance(TritonKernels(), QuantizedKernels)

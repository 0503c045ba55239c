"""The tile product that the LoRA and attention kernels share, and how exactly it is to be taken."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# A @triton.jit function is a program for the device in Python's syntax: its types are the compiler's.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def dot(a, b, MODE: tl.constexpr):
    """a @ b, accumulated in fp32. MODE: what `dot_mode` says of the tensors that the tiles come from."""
    if MODE == "interpreter":
        product = tl.dot(a.to(tl.float32), b.to(tl.float32))
    else:
        product = tl.dot(a, b, input_precision=MODE)
    return product


def dot_mode(x: Tensor) -> str:
    """How products of tiles of x's device and dtype are taken.

    "interpreter": widened first, as the interpreter multiplies the bit patterns of bf16; "ieee": fp32 as it is;
    "tf32": 16-bit tiles as they are, fp32 intermediates on tensor cores with the 10-bit fraction that fp16 has.
    """
    if not x.is_cuda:
        return "interpreter"
    return "ieee" if x.dtype == torch.float32 else "tf32"

"""`TritonKernels`: the GPU's implementation of `ops.Kernels`, put together from one module per kind of operation.

Dense products go to cuBLAS. Knows nothing of its own.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor
from torch.nn import functional

from loraplex.kernels import triton_attention, triton_elementwise, triton_lora, triton_sampling, triton_vectors
from loraplex.kernels.ops import AttentionBatch, Linear, LoraBatch, SamplingBatch


class TritonKernels:
    """`ops.Kernels` in Triton. Tensors lie on one CUDA device, or on the CPU under Triton's interpreter."""

    name = "triton"

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        return partial(functional.linear, weight=weight, bias=bias)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return triton_elementwise.rms_norm(x, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        return triton_elementwise.add_rms_norm(x, residual, weight, eps)

    def rotary(self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> None:
        triton_elementwise.rotary(query, key, cos, sin, positions)

    def write_kv(self, key: Tensor, value: Tensor, key_pages: Tensor, value_pages: Tensor, slots: Tensor) -> None:
        triton_elementwise.write_kv(key, value, key_pages, value_pages, slots)

    def paged_attention(
        self,
        query: Tensor,
        key_pages: Tensor,
        value_pages: Tensor,
        batch: AttentionBatch,
        scale: float,
        window: int | None,
    ) -> Tensor:
        return triton_attention.paged_attention(query, key_pages, value_pages, batch, scale, window)

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        return triton_elementwise.silu_and_mul(gate_up)

    def add_lora(self, out: Tensor, x: Tensor, lora: LoraBatch, site: int, slice_widths: tuple[int, ...]) -> None:
        triton_lora.add_lora(out, x, lora, site, slice_widths)

    def scale_and_shift(self, out: Tensor, lora: LoraBatch, site: int) -> None:
        triton_vectors.scale_and_shift(out, lora, site)

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        return triton_sampling.sample(logits, batch)

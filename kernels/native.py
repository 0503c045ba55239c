"""The operations of `ops` on CPUs: the compiled library of cpu/, called through ctypes.

Knows how tensors become pointers and strides. The arithmetic is in cpu/, the building in native_library.py.
fp32 and bf16 run compiled; for other dtypes every operation is inherited from the reference.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping
from ctypes import c_float, c_int, c_int64, c_void_p
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from loraplex.kernels.native_library import load_library
from loraplex.kernels.ops import AttentionBatch, Linear, LoraBatch, SamplingBatch
from loraplex.kernels.quantization import QuantizedWeight, pack
from loraplex.kernels.reference import ReferenceKernels

_POSITIONS_UNLIMITED = 2**31 - 1

_QUANTIZED_LINEAR = (c_void_p, c_void_p, *(c_int64,) * 4, c_void_p, c_void_p, c_void_p)

_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "rms_norm": (c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_int64, c_int64, c_int64, c_float),
    "add_rms_norm": (c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_float),
    "rotary": (
        *(c_void_p, c_int64, c_int64, c_void_p, c_int64, c_int64, c_int64),
        *(c_void_p, c_void_p, c_int64, c_void_p, c_int64),
    ),
    "write_kv": (
        c_void_p,
        c_int64,
        c_void_p,
        c_int64,
        c_void_p,
        c_void_p,
        c_void_p,
        c_int64,
        c_int64,
        c_int64,
        c_int64,
    ),
    "paged_attention": (
        *(c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),
        *(c_int, c_int, c_int, c_int, c_int, c_int, c_float, c_int),
    ),
    "silu_and_mul": (c_void_p, c_void_p, c_int64, c_int64),
    "add_lora": (
        *(c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_int64),
        *(c_void_p, c_int, c_int, c_void_p, c_int),
    ),
    "scale_and_shift": (c_void_p, c_int64, c_void_p, c_void_p, c_int64, c_void_p, c_int),
    "int8_linear": _QUANTIZED_LINEAR,
    "int4_linear": _QUANTIZED_LINEAR,
    "sample": (c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),
}


class NativeKernels(ReferenceKernels):
    """`ops.Kernels` on one CPU. The first construction on a machine compiles for a few seconds; later ones load.

    variant: an instruction set of `native_library.supported_variants`, by default the best. `environment` stands for
    os.environ, where the compiler and its cache are looked for. Raises NativeUnavailable.
    """

    name = "native"

    def __init__(self, environment: Mapping[str, str] | None = None, variant: str | None = None) -> None:
        library = load_library(variant, os.environ if environment is None else environment)
        self.instructions = _string(library, "instructions")
        self._compiled = {torch.float32: _functions(library, "f32"), torch.bfloat16: _functions(library, "bf16")}
        self._slice_widths: dict[tuple[int, ...], ctypes.Array[c_int]] = {}
        self._last_lora: tuple[LoraBatch | None, tuple[int, ...]] = (
            None,
            (),
        )  # of a step's calls only the site differs

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        if weight.dtype == torch.bfloat16 and _packed_products_work():
            return _PackedLinear(weight, bias)
        return super().linear(weight, bias)

    def quantized_linear(self, weight: QuantizedWeight, bias: Tensor | None) -> Linear:
        compiled = self._compiled.get(weight.dtype)
        if compiled is None:
            return super().quantized_linear(weight, bias)
        return _QuantizedLinear(getattr(compiled, f"int{weight.bits}_linear"), weight, bias)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        compiled = self._compiled.get(x.dtype)
        if compiled is None:
            return super().rms_norm(x, weight, eps)
        out = torch.empty(x.shape, dtype=x.dtype)
        rows = x if x.dim() == 3 else x.reshape(-1, 1, x.shape[-1])
        if rows.stride(2) != 1:
            rows = rows.contiguous()
        outer, inner, width = rows.shape
        compiled.rms_norm(
            *(out.data_ptr(), rows.data_ptr(), rows.stride(0), rows.stride(1)),
            *(weight.data_ptr(), outer, inner, width, eps),
        )
        return out

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        compiled = self._compiled.get(x.dtype)
        if compiled is None:
            return super().add_rms_norm(x, residual, weight, eps)
        out = torch.empty_like(x)
        compiled.add_rms_norm(
            out.data_ptr(), x.data_ptr(), residual.data_ptr(), weight.data_ptr(), x.shape[0], x.shape[1], eps
        )
        return out

    def rotary(self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> None:
        compiled = self._compiled.get(query.dtype)
        if compiled is None:
            return super().rotary(query, key, cos, sin, positions)
        tokens, heads, head_dim = query.shape
        compiled.rotary(
            *(query.data_ptr(), query.stride(0), heads, key.data_ptr(), key.stride(0), key.shape[1], head_dim),
            *(cos.data_ptr(), sin.data_ptr(), cos.shape[1], positions.data_ptr(), tokens),
        )
        return None

    def write_kv(self, key: Tensor, value: Tensor, key_pages: Tensor, value_pages: Tensor, slots: Tensor) -> None:
        compiled = self._compiled.get(key.dtype)
        if compiled is None:
            return super().write_kv(key, value, key_pages, value_pages, slots)
        _, kv_heads, page_tokens, head_dim = key_pages.shape
        compiled.write_kv(
            *(key.data_ptr(), key.stride(0), value.data_ptr(), value.stride(0)),
            *(key_pages.data_ptr(), value_pages.data_ptr(), slots.data_ptr()),
            *(key.shape[0], kv_heads, page_tokens, head_dim),
        )
        return None

    def paged_attention(
        self,
        query: Tensor,
        key_pages: Tensor,
        value_pages: Tensor,
        batch: AttentionBatch,
        scale: float,
        window: int | None,
    ) -> Tensor:
        compiled = self._compiled.get(query.dtype)
        _, kv_heads, page_tokens, head_dim = key_pages.shape
        if compiled is None or head_dim % 2:  # the machine multiplies pairs
            return super().paged_attention(query, key_pages, value_pages, batch, scale, window)
        out = torch.empty(query.shape, dtype=query.dtype)
        compiled.paged_attention(
            *(out.data_ptr(), query.data_ptr(), query.stride(0), key_pages.data_ptr(), value_pages.data_ptr()),
            *(batch.query_starts.data_ptr(), batch.context_lens.data_ptr(), batch.page_tables.data_ptr()),
            *(batch.context_lens.shape[0], batch.page_tables.stride(0), query.shape[1], kv_heads, head_dim),
            *(page_tokens, scale, _POSITIONS_UNLIMITED if window is None else window),
        )
        return out

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        compiled = self._compiled.get(gate_up.dtype)
        if compiled is None:
            return super().silu_and_mul(gate_up)
        tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = torch.empty((tokens, width), dtype=gate_up.dtype)
        compiled.silu_and_mul(out.data_ptr(), gate_up.data_ptr(), tokens, width)
        return out

    def add_lora(self, out: Tensor, x: Tensor, lora: LoraBatch, site: int, slice_widths: tuple[int, ...]) -> None:
        compiled = self._compiled.get(x.dtype)
        if compiled is None:
            return super().add_lora(out, x, lora, site, slice_widths)
        widths = self._slice_widths.get(slice_widths)
        if widths is None:
            widths = self._slice_widths[slice_widths] = (c_int * len(slice_widths))(*slice_widths)
        pool, table, site_bytes, table_stride, work, entries = self._arguments(lora)
        compiled.add_lora(
            *(out.data_ptr(), x.data_ptr(), x.shape[1], pool, table + site * site_bytes, table_stride),
            *(work, entries, lora.max_rank, widths, len(slice_widths)),
        )
        return None

    def scale_and_shift(self, out: Tensor, lora: LoraBatch, site: int) -> None:
        compiled = self._compiled.get(out.dtype)
        if compiled is None:
            return super().scale_and_shift(out, lora, site)
        pool, table, site_bytes, table_stride, work, entries = self._arguments(lora)
        compiled.scale_and_shift(
            *(out.data_ptr(), out.shape[1], pool, table + site * site_bytes, table_stride, work, entries)
        )
        return None

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        compiled = self._compiled.get(logits.dtype)
        if compiled is None:
            return super().sample(logits, batch)
        rows, vocab = logits.shape
        ids = torch.empty(rows, dtype=torch.int64)
        compiled.sample(
            *(ids.data_ptr(), logits.data_ptr(), logits.stride(0), rows, vocab),
            *(batch.temperature.data_ptr(), batch.top_k.data_ptr(), batch.top_p.data_ptr()),
            *(batch.min_p.data_ptr(), batch.uniform.data_ptr()),
        )
        return ids

    def _arguments(self, lora: LoraBatch) -> tuple[int, ...]:
        if self._last_lora[0] is not lora:
            self._last_lora = lora, _lora_arguments(lora)
        return self._last_lora[1]


def _lora_arguments(lora: LoraBatch) -> tuple[int, ...]:
    """Pool; table, bytes from one of its sites to the next, numbers from one adapter to the next; work, its entries."""
    table, work = lora.table, lora.work
    site_bytes = table.stride(1) * table.element_size()
    return lora.pool.data_ptr(), table.data_ptr(), site_bytes, table.stride(0), work.data_ptr(), work.shape[0]


class _PackedLinear:
    """A bf16 product whose weight oneDNN has laid out once, instead of at every call."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self._bias = bias
        self._multiply = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: Tensor) -> Tensor:
        product: Tensor = self._multiply(x, self._packed, self._bias, "none", [], "")
        return product


class _QuantizedLinear:
    """A product with int8 or int4 weights, which are kept as the compiled code reads them and not otherwise."""

    def __init__(self, multiply: Callable[..., None], weight: QuantizedWeight, bias: Tensor | None) -> None:
        self._multiply = multiply
        self._codes, self._scales = pack(weight)
        self._bias = bias
        self._out_features, self._in_features = weight.codes.shape
        self._weight_pointers = (self._codes.data_ptr(), self._scales.data_ptr())

    def __call__(self, x: Tensor) -> Tensor:
        out = torch.empty((x.shape[0], self._out_features), dtype=x.dtype)
        self._multiply(
            *(out.data_ptr(), x.data_ptr(), x.stride(0), x.shape[0], self._in_features, self._out_features),
            *(*self._weight_pointers, None if self._bias is None else self._bias.data_ptr()),
        )
        return out


@cache
def _packed_products_work() -> bool:
    """Whether this torch on this CPU has the private oneDNN operations, with the meaning relied on here."""
    weight, x = torch.eye(16, dtype=torch.bfloat16), torch.arange(32, dtype=torch.bfloat16).view(2, 16)
    try:
        return torch.equal(_PackedLinear(weight, None)(x), x)
    except (RuntimeError, AttributeError, TypeError):
        return False


def _functions(library: ctypes.CDLL, dtype: str) -> SimpleNamespace:
    """Every op as a callable that takes pointers and numbers, for one dtype."""

    def function(op: str) -> Callable[..., None]:
        address = c_void_p.in_dll(library, f"{op}_{dtype}").value
        assert address is not None
        return ctypes.CFUNCTYPE(None, *_ARGUMENTS[op])(address)

    return SimpleNamespace(**{op: function(op) for op in _ARGUMENTS})


def _string(library: ctypes.CDLL, name: str) -> str:
    return (ctypes.c_char_p.in_dll(library, name).value or b"").decode()

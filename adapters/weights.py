"""An adapter's weights in the one form that the kernels read: a flat tensor and a table of offsets and ranks.

Knows PEFT's tensor names, the base's sites, and the layout that `loraplex.kernels.ops.LoraBatch` defines. Knows no
device and no cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loraplex.adapters.blobs import StoredAdapter
from loraplex.adapters.errors import AdapterUnavailable
from loraplex.adapters.types import AdapterSpec, BaseShape, LoraSite, ModuleSpec

MAX_SLICES = 3
"""Slices in a table row: the same number as in `loraplex.kernels.ops`."""

ALIGN_BYTES = 64
"""Every A, every first B of a site, and every adapter in the device pool begins at a multiple of this."""


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """weights   [elements] contiguous, the pool's dtype, on the host
    table     [num_sites, 2 + MAX_SLICES] int64: LoraBatch's rows, offsets counted from the start of `weights`
    max_rank  the largest sum of a row's ranks
    """

    weights: Tensor
    table: Tensor
    max_rank: int

    @property
    def size_bytes(self) -> int:
        return self.weights.nbytes


@dataclass(frozen=True, slots=True)
class SiteLayout:
    """Where one site of one layer lies. slices: (module, its LoRA or None) in the site's order."""

    site: LoraSite
    slices: tuple[tuple[str, ModuleSpec | None], ...]
    a_offset: int
    b_offset: int

    @property
    def ranks(self) -> list[int]:
        return [spec.rank if spec else 0 for _, spec in self.slices]

    @property
    def row(self) -> list[int]:
        return [self.a_offset, self.b_offset, *self.ranks, *[0] * (MAX_SLICES - len(self.slices))]


def load_packed(
    stored: StoredAdapter, shape: BaseShape, dtype: torch.dtype, *, pause: Callable[[], None] = lambda: None
) -> PackedAdapter:
    """Read and pack an adapter. pause: called after each site, for a caller that spreads the work over time.

    Raises AdapterUnavailable if the file is damaged, does not fit the base, or overflows `dtype`.
    """
    sites, elements = plan_layout(stored.spec, shape, ALIGN_BYTES // dtype.itemsize)
    ends = [*(layout.a_offset for layout in sites[1:]), elements]
    weights = torch.empty(elements, dtype=dtype)  # not zeros, which would take all of the memory at once
    try:
        with safe_open(stored.weights_path, framework="pt") as file:
            for layout, end in zip(sites, ends, strict=True):
                _pack_site(weights, layout, end, file)
                pause()
    except (SafetensorError, OSError) as error:
        raise AdapterUnavailable("the weights file of this adapter version is damaged; upload it again") from error
    # not isfinite(weights).all(): in bf16 and fp16 that takes fifty times as long. A NaN is both extremes.
    if not all(torch.isfinite(extreme) for extreme in weights.aminmax()):
        raise AdapterUnavailable(f"the weights of this adapter overflow {dtype}; serve the base model in bfloat16")
    table = torch.tensor([layout.row for layout in sites], dtype=torch.int64).reshape(shape.num_sites, -1)
    return PackedAdapter(weights, table, max(sum(layout.ranks) for layout in sites))


def plan_layout(spec: AdapterSpec, shape: BaseShape, align: int) -> tuple[list[SiteLayout], int]:
    """Where each site goes, in the order of sites, and how many elements all of them take.

    Memory follows the true ranks: a module that the adapter does not touch takes nothing. Raises AdapterUnavailable
    if the adapter touches a module that the base does not have.
    """
    if unknown := spec.modules.keys() - shape.modules().keys():
        raise AdapterUnavailable(f"this adapter was checked for another base: it has no {min(unknown)}")
    layouts = []
    end = 0
    for site, slices in _sites(spec, shape):
        ranks = [module.rank if module else 0 for _, module in slices]
        a_offset = end
        b_offset = a_offset + _round_up(sum(ranks) * site.in_features, align)
        widths = [part.out_features for part in site.slices]
        end = b_offset + _round_up(sum(rank * width for rank, width in zip(ranks, widths, strict=True)), align)
        layouts.append(SiteLayout(site, slices, a_offset, b_offset))
    return layouts, end


def _sites(spec: AdapterSpec, shape: BaseShape) -> Iterator[tuple[LoraSite, tuple[tuple[str, ModuleSpec | None], ...]]]:
    for layer in range(shape.num_layers):
        for site in shape.sites:
            names = (f"model.layers.{layer}.{part.module}" for part in site.slices)
            yield site, tuple((name, spec.modules.get(name)) for name in names)


def _pack_site(weights: Tensor, layout: SiteLayout, end: int, file: safe_open) -> None:
    a_start, b_start = layout.a_offset, layout.b_offset
    for (module, spec), part in zip(layout.slices, layout.site.slices, strict=True):
        if spec is None:
            continue
        a = _read(file, f"{module}.lora_A", (spec.rank, layout.site.in_features))
        b = _read(file, f"{module}.lora_B", (part.out_features, spec.rank))
        weights[a_start : a_start + a.numel()].view(a.shape).copy_(a)
        # scaled in fp32, so that folding costs one rounding
        weights[b_start : b_start + b.numel()].view(b.shape[1], b.shape[0]).copy_((b.float() * spec.scaling).t())
        a_start += a.numel()
        b_start += b.numel()
    # the gaps that alignment leaves: no kernel reads them, but they must not hold what was there before
    weights[a_start : layout.b_offset] = 0
    weights[b_start:end] = 0


def _read(file: safe_open, name: str, expected: tuple[int, int]) -> Tensor:
    full_name = f"base_model.model.{name}.weight"
    tensor: Tensor = file.get_tensor(full_name)  # type: ignore[no-untyped-call]  # safetensors has no annotations
    if tensor.shape != expected:
        raise AdapterUnavailable(
            f"this adapter was checked for another base: {name} is {list(tensor.shape)}, not {list(expected)}"
        )
    return tensor


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple

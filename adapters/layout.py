"""Where everything of an adapter lies in its one flat tensor, as a function of its spec and the base's shape alone.

Knows offsets, in elements; knows no file and no numbers. The table's rows are `loraplex.kernels.ops.LoraBatch`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from loraplex.adapters.errors import AdapterUnavailable
from loraplex.adapters.types import EMBEDDING, HEAD, AdapterSpec, BaseShape, LoraSite, ModuleSpec
from loraplex.adapters.vocabulary import VocabularyLayout, plan_vocabulary

MAX_SLICES = 3
TABLE_COLUMNS = 4 + MAX_SLICES
"""Slices in a row of the table, and its columns: the same numbers as in `loraplex.kernels.ops`."""

ALIGN_BYTES = 64
"""Every block of an adapter, and every adapter in the device pool, begins at a multiple of this."""

NOWHERE = -1
"""The offset, in the table, of what an adapter does not have."""

_FEEDS = {".mlp.up_proj": ".mlp.down_proj"}
"""Module -> the one whose input is multiplied with its output, so that a factor of that input is one of this output."""


@dataclass(frozen=True, slots=True)
class SiteLayout:
    """Where one site lies, in the order of a, b, gain, shift. slices: (module, what is done to it) in the site's order.

    gain, shift: NOWHERE, or [width of the site], see `loraplex.kernels.ops.Kernels.scale_and_shift`
    """

    site: LoraSite
    slices: tuple[tuple[str, ModuleSpec | None], ...]
    a_offset: int
    b_offset: int
    b_end: int
    gain_offset: int
    shift_offset: int
    end: int

    @property
    def ranks(self) -> list[int]:
        return [spec.rank if spec else 0 for _, spec in self.slices]

    @property
    def row(self) -> list[int]:
        ranks = [*self.ranks, *[0] * (MAX_SLICES - len(self.slices))]
        return [self.a_offset, self.b_offset, *ranks, self.gain_offset, self.shift_offset]


@dataclass(frozen=True, slots=True)
class AdapterLayout:
    """sites: in their order, the head last, behind the vocabulary's part, where there is one."""

    sites: tuple[SiteLayout, ...]
    vocabulary: VocabularyLayout | None
    elements: int

    def table(self) -> Tensor:
        """[num_sites + 1, TABLE_COLUMNS] int64"""
        return torch.tensor([layout.row for layout in self.sites], dtype=torch.int64)


def plan_layout(spec: AdapterSpec, shape: BaseShape, align: int, *, ties_embeddings: bool = False) -> AdapterLayout:
    """Where each part goes. Memory follows the true ranks: a module that the adapter does not touch takes nothing.

    ties_embeddings: the base has one matrix for both ends. Raises AdapterUnavailable if the adapter touches a module
    that the base does not have, or both ends in a way that PEFT does not know.
    """
    if unknown := spec.modules.keys() - shape.modules().keys() - {EMBEDDING, HEAD}:
        raise AdapterUnavailable(f"this adapter was checked for another base: it has no {min(unknown)}")
    vocabulary, end = plan_vocabulary(spec, shape, align, ties_embeddings=ties_embeddings)
    sites = []
    for site, modules in shape.numbered_sites():
        layout = _plan_site(site, modules, spec.modules, end, align)
        sites.append(layout)
        end = layout.end
    return AdapterLayout(tuple(sites), vocabulary, end)


def _plan_site(
    site: LoraSite, names: tuple[str, ...], modules: Mapping[str, ModuleSpec], start: int, align: int
) -> SiteLayout:
    slices = tuple((name, modules.get(name)) for name in names)
    ranks = [module.rank if module else 0 for _, module in slices]
    widths = [part.out_features for part in site.slices]
    b_offset = start + _round_up(sum(ranks) * site.in_features, align)
    b_end = b_offset + _round_up(sum(rank * width for rank, width in zip(ranks, widths, strict=True)), align)
    width = _round_up(sum(widths), align)
    has_gain, has_shift = _has_gain(slices, modules), _has_shift(slices)
    return SiteLayout(
        site,
        slices,
        a_offset=start,
        b_offset=b_offset,
        b_end=b_end,
        gain_offset=b_end if has_gain else NOWHERE,
        shift_offset=b_end + has_gain * width if has_shift else NOWHERE,
        end=b_end + (has_gain + has_shift) * width,
    )


def _has_gain(slices: tuple[tuple[str, ModuleSpec | None], ...], modules: Mapping[str, ModuleSpec]) -> bool:
    return any(
        (spec is not None and (spec.form == "ia3" or "magnitude" in spec.parts)) or factor_of(name, modules) is not None
        for name, spec in slices
    )


def _has_shift(slices: tuple[tuple[str, ModuleSpec | None], ...]) -> bool:
    return any(spec is not None and (spec.form == "beft" or bool(spec.parts)) for _, spec in slices)


def factor_of(name: str, modules: Mapping[str, ModuleSpec]) -> str | None:
    """The module whose factors of inputs are factors of this one's outputs."""
    for module, fed in _FEEDS.items():
        other = name.removesuffix(module) + fed
        if name.endswith(module) and other in modules and modules[other].form == "ia3_in":
            return other
    return None


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple

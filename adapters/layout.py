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
class OwnRows:
    """Rows of the embedding or the head that are the adapter's own: views of its memory.

    rows    [len(tokens) or vocab, hidden]
    tokens  [rows] int64, rising; None: every token's
    """

    rows: Tensor
    tokens: Tensor | None


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What an adapter has of its own at the ends of the model: views of its memory. LoRA of the head is a site.

    embedding_a  [vocab, rank]    embedding_b  [rank, hidden], scaling folded in: LoRA of the embedding
    gain         [hidden]: what a row of the embedding is multiplied with, less one
    """

    embedding: OwnRows | None
    head: OwnRows | None
    embedding_a: Tensor | None
    embedding_b: Tensor | None
    gain: Tensor | None

    @property
    def changes_embedding(self) -> bool:
        return self.embedding is not None or self.embedding_a is not None

    @property
    def is_additive(self) -> bool:
        return self.embedding is None and self.head is None and self.gain is None


@dataclass(frozen=True, slots=True)
class Block:
    """A matrix, or a vector, at an offset. tokens: of rows, those whose they are in rising order; None: all."""

    offset: int
    shape: tuple[int, ...]
    tokens: tuple[int, ...] | None = None

    def view(self, weights: Tensor) -> Tensor:
        return weights[self.offset : self.end].view(self.shape)

    @property
    def end(self) -> int:
        return self.offset + torch.Size(self.shape).numel()

    def own_rows(self, weights: Tensor) -> OwnRows:
        tokens = None if self.tokens is None else torch.tensor(self.tokens, device=weights.device)
        return OwnRows(self.view(weights), tokens)


@dataclass(frozen=True, slots=True)
class AdapterLayout:
    """sites: in their order, the head last. vocabulary: of `Vocabulary`'s fields those that the adapter has.

    shares_rows: the head's rows are the embedding's
    """

    sites: tuple[SiteLayout, ...]
    vocabulary: Mapping[str, Block]
    shares_rows: bool
    elements: int

    def table(self) -> Tensor:
        """[num_sites + 1, TABLE_COLUMNS] int64"""
        return torch.tensor([layout.row for layout in self.sites], dtype=torch.int64)


def views(vocabulary: Mapping[str, Block], shares_rows: bool, weights: Tensor) -> Vocabulary | None:
    """weights: the adapter's, wherever they are."""
    if not vocabulary:
        return None
    embedding, head = (
        vocabulary[name].own_rows(weights) if name in vocabulary else None for name in ("embedding", "head")
    )
    matrices = {name: block.view(weights) for name, block in vocabulary.items() if name not in ("embedding", "head")}
    return Vocabulary(
        embedding=embedding,
        head=embedding if shares_rows else head,
        embedding_a=matrices.get("embedding_a"),
        embedding_b=matrices.get("embedding_b"),
        gain=matrices.get("gain"),
    )


def plan_layout(spec: AdapterSpec, shape: BaseShape, align: int, *, ties_embeddings: bool = False) -> AdapterLayout:
    """Where each part goes: first what is of the vocabulary, then the sites.

    Memory follows the true ranks: a module that the adapter does not touch takes nothing. ties_embeddings: the base has
    one matrix for both ends. Raises AdapterUnavailable if the adapter touches a module that the base does not have.
    """
    if unknown := spec.modules.keys() - shape.modules().keys() - {EMBEDDING, HEAD}:
        raise AdapterUnavailable(f"this adapter was checked for another base: it has no {min(unknown)}")
    shares_rows = ties_embeddings and _shares_rows(spec)
    vocabulary, end = _plan_vocabulary(spec, shape, align, shares_rows=shares_rows)
    sites = []
    for site, modules in shape.numbered_sites():
        layout = _plan_site(site, modules, spec.modules, end, align)
        sites.append(layout)
        end = layout.end
    return AdapterLayout(tuple(sites), vocabulary, shares_rows, end)


def _shares_rows(spec: AdapterSpec) -> bool:
    """Of an adapter to a base that has one matrix for both ends: with rows of the embedding those of the head change,
    unless the head has others."""
    rows = spec.token_rows.get(EMBEDDING)
    shares = rows is not None and spec.token_rows.get(HEAD, rows) == rows
    if shares and (HEAD in spec.modules or HEAD in spec.replaced):
        raise AdapterUnavailable("on a base with tied embeddings PEFT cannot train tokens beside lm_head; choose one")
    return shares


def _plan_vocabulary(
    spec: AdapterSpec, shape: BaseShape, align: int, *, shares_rows: bool
) -> tuple[dict[str, Block], int]:
    hidden, vocab = shape.hidden_size, shape.vocab_size
    wanted: list[tuple[str, tuple[int, ...], tuple[int, ...] | None]] = []
    for name, module in (("embedding", EMBEDDING), ("head", HEAD)):
        if module in spec.replaced:
            wanted.append((name, (vocab, hidden), None))
        elif module in spec.token_rows and not (shares_rows and module == HEAD):
            tokens = tuple(sorted(spec.token_rows[module]))
            wanted.append((name, (len(tokens), hidden), tokens))
    if embedding := spec.modules.get(EMBEDDING):
        wanted.append(("embedding_a", (vocab, embedding.rank), None))
        wanted.append(("embedding_b", (embedding.rank, hidden), None))
        if "magnitude" in embedding.parts:
            wanted.append(("gain", (hidden,), None))
    blocks: dict[str, Block] = {}
    end = 0
    for name, block_shape, row_tokens in wanted:
        blocks[name] = Block(end, block_shape, row_tokens)
        end = _round_up(blocks[name].end, align)
    return blocks, end


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

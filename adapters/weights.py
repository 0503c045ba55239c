"""An adapter's weights in the one form that the kernels read: a flat tensor, and where in it what lies.

Knows the weights file and the layout; the layout's arithmetic is `layout`'s, that of the methods `factors`'. Knows no
device and no cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loraplex.adapters.blobs import StoredAdapter
from loraplex.adapters.errors import AdapterUnavailable
from loraplex.adapters.factors import (
    BaseWeights,
    Effect,
    ModuleWeights,
    WeightsFile,
    effect_of,
    embedding_effect,
    input_factor,
)
from loraplex.adapters.layout import ALIGN_BYTES, AdapterLayout, SiteLayout, factor_of, plan_layout
from loraplex.adapters.types import EMBEDDING, HEAD, MATRIX_ENDS, ROW_ENDS, AdapterSpec, BaseShape, ModuleSpec
from loraplex.adapters.vocabulary import Block, VocabularyLayout


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """weights     [elements] contiguous, the pool's dtype, on the host
    table       [num_sites + 1, TABLE_COLUMNS] int64: LoraBatch's rows, offsets counted from the start of `weights`
    vocabulary  where in `weights` what it has of its own at the ends of the model lies
    """

    weights: Tensor
    table: Tensor
    vocabulary: VocabularyLayout | None = None

    @property
    def size_bytes(self) -> int:
        return self.weights.nbytes


def load_packed(
    stored: StoredAdapter,
    shape: BaseShape,
    dtype: torch.dtype,
    *,
    base: BaseWeights | None = None,
    pause: Callable[[], None] = lambda: None,
) -> PackedAdapter:
    """Read and pack an adapter. base: needed where `spec.depends_on_base`. pause: called after each site, for a caller
    that spreads the work over time.

    Raises AdapterUnavailable if the file is damaged, does not fit the base, or overflows `dtype`.
    """
    layout = layout_of(stored.spec, shape, dtype, base)
    weights = torch.empty(layout.elements, dtype=dtype)  # not zeros, which would take all of the memory at once
    try:
        with safe_open(stored.weights_path, framework="pt") as file:
            packer = _Packer(weights, stored.spec, shape, WeightsFile(file), base)
            packer.check_copies()
            if layout.vocabulary is not None:
                packer.pack_vocabulary(layout.vocabulary, layout.sites[0].a_offset)
            for site in layout.sites:
                packer.pack_site(site)
                pause()
    except (SafetensorError, OSError) as error:
        raise AdapterUnavailable("the weights file of this adapter version is damaged; upload it again") from error
    # not isfinite(weights).all(): in bf16 and fp16 that takes fifty times as long. A NaN is both extremes.
    if weights.numel() and not all(torch.isfinite(extreme) for extreme in weights.aminmax()):
        raise AdapterUnavailable(f"the weights of this adapter overflow {dtype}; serve the base model in bfloat16")
    return PackedAdapter(weights, layout.table(), layout.vocabulary)


def layout_of(spec: AdapterSpec, shape: BaseShape, dtype: torch.dtype, base: BaseWeights | None) -> AdapterLayout:
    assert base is not None or not spec.depends_on_base
    ties = base is not None and spec.depends_on_base and base.ties_embeddings
    return plan_layout(spec, shape, ALIGN_BYTES // dtype.itemsize, ties_embeddings=ties)


class _Packer:
    """Fills one adapter's tensor."""

    def __init__(
        self, weights: Tensor, spec: AdapterSpec, shape: BaseShape, file: WeightsFile, base: BaseWeights | None
    ) -> None:
        self._weights = weights
        self._spec = spec
        self._shape = shape
        self._file = file
        self._base = base

    def check_copies(self) -> None:
        """PEFT saves the matrix below a LoRA of the embedding or the head too. Computing with the base's own is right
        only if it is the same."""
        for module in self._spec.copies:
            assert self._base is not None
            tensors = ModuleWeights(self._file, module)
            own = self._base.stored(f"{module}.weight")
            for end in MATRIX_ENDS:
                if end in tensors and (own is None or not self._is_copy(tensors[end], own)):
                    raise AdapterUnavailable(
                        f"the file's {module}.{end} differs from this base's: the adapter was trained on another base; "
                        "if it was not, save it again, with save_embedding_layers=False if it adds no tokens"
                    )

    def pack_vocabulary(self, layout: VocabularyLayout, end: int) -> None:
        """end: where the sites begin."""
        ends = [*(block.offset for block in layout.blocks()), end][1:]
        for block, next_offset in zip(layout.blocks(), ends, strict=True):
            self._weights[block.end : next_offset] = 0
        if layout.embedding is not None:
            self._put(layout.embedding, self._rows(EMBEDDING, layout.embedding))
        if layout.head is not None and layout.head is not layout.embedding:
            self._put(layout.head, self._rows(HEAD, layout.head))
        if layout.embedding_a is not None and layout.embedding_b is not None:
            tensors, spec = ModuleWeights(self._file, EMBEDDING), self._spec.modules[EMBEDDING]
            effect = embedding_effect(tensors, spec, self._shape.vocab_size, self._shape.hidden_size, self._base)
            self._put(layout.embedding_a, effect.a.T)
            self._put(layout.embedding_b, effect.b.T)
            if layout.gain is not None and effect.gain is not None:
                self._put(layout.gain, effect.gain)

    def pack_site(self, layout: SiteLayout) -> None:
        a_start, b_start, column = layout.a_offset, layout.b_offset, 0
        if layout.end > layout.b_end:
            self._weights[layout.b_end : layout.end] = 0  # of slices that have no gain or shift beside those that have
        for (module, spec), part in zip(layout.slices, layout.site.slices, strict=True):
            effect = self._effect(module, spec, layout.site.in_features, part.out_features)
            if effect.a is not None and effect.b is not None:
                self._put(Block(a_start, tuple(effect.a.shape)), effect.a)
                self._put(Block(b_start, (effect.b.shape[1], effect.b.shape[0])), effect.b.T)
                a_start += effect.a.numel()
                b_start += effect.b.numel()
            for offset, vector in ((layout.gain_offset, effect.gain), (layout.shift_offset, effect.shift)):
                if vector is not None:
                    self._put(Block(offset + column, (part.out_features,)), vector)
            column += part.out_features
        # the gaps that alignment leaves: no kernel reads them, but they must not hold what was there before
        self._weights[a_start : layout.b_offset] = 0
        self._weights[b_start : layout.b_end] = 0

    def _effect(self, module: str, spec: ModuleSpec | None, inputs: int, outputs: int) -> Effect:
        effect = Effect(None, None)
        if spec is not None and spec.form != "ia3_in":
            effect = effect_of(ModuleWeights(self._file, module), spec, inputs, outputs, self._base)
        if (fed := factor_of(module, self._spec.modules)) is None:
            return effect
        factor = input_factor(ModuleWeights(self._file, fed), outputs)
        gain = factor - 1 if effect.gain is None else (1 + effect.gain) * factor - 1
        return Effect(effect.a, effect.b, gain, effect.shift)

    def _rows(self, module: str, block: Block) -> Tensor:
        tensors = ModuleWeights(self._file, module)
        if block.tokens is None:
            rows = tensors["weight"]
        else:
            trained = self._spec.token_rows.get(module, ())
            parts = [_first(tensors, ROW_ENDS)] if trained else []
            known, tokens = self._shape.vocab_size, list(trained)
            if self._spec.vocab_size and self._spec.vocab_size > known:
                parts.append(_first(tensors, MATRIX_ENDS)[known:])
                tokens.extend(range(known, self._spec.vocab_size))
            place = {token: row for row, token in reversed(list(enumerate(tokens)))}  # what was trained comes first
            rows = torch.cat(parts)[[place[token] for token in block.tokens]]
        if rows.shape != block.shape:
            raise AdapterUnavailable(f"this adapter was checked for another base: {module} is {list(rows.shape)}")
        return rows

    def _is_copy(self, tensor: Tensor, own: Tensor) -> bool:
        """Whether one is the other, perhaps rounded to a shorter type on its way; of other sizes, what both have."""
        if self._spec.vocab_size is not None:
            rows = min(self._spec.vocab_size, self._shape.vocab_size)
            tensor, own = tensor[:rows], own[:rows]
        shorter = (torch.bfloat16, torch.float16)
        return tensor.shape == own.shape and any(torch.equal(tensor.to(dtype), own.to(dtype)) for dtype in shorter)

    def _put(self, block: Block, values: Tensor) -> None:
        block.view(self._weights).copy_(values)


def _first(tensors: ModuleWeights, ends: Sequence[str]) -> Tensor:
    """Of these the one that is there."""
    return tensors[next((end for end in ends if end in tensors), ends[0])]

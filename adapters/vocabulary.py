"""What an adapter has of its own at the two ends of the model: where it lies in its memory, and views of it there.

LoRA of the head is not among it: that is a site. Knows offsets, in elements; knows no file and no numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from loraplex.adapters.errors import AdapterUnavailable
from loraplex.adapters.types import EMBEDDING, HEAD, AdapterSpec, BaseShape


@dataclass(frozen=True, slots=True)
class OwnRows:
    """Rows of the embedding or the head that are the adapter's own.

    rows    [len(tokens) or vocab, hidden]
    tokens  [rows] int64, rising; None: every token's
    """

    rows: Tensor
    tokens: Tensor | None


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Views of the adapter's memory.

    size         how many tokens it knows, if not as many as the base. Those beyond the base's have rows in `embedding`
                 and `head`.
    embedding_a  [vocab, rank]    embedding_b  [rank, hidden], scaling folded in: LoRA of the embedding
    gain         [hidden]: what a row of the embedding is multiplied with, less one
    """

    embedding: OwnRows | None
    head: OwnRows | None
    embedding_a: Tensor | None
    embedding_b: Tensor | None
    gain: Tensor | None
    size: int | None = None

    @property
    def changes_head(self) -> bool:
        return self.head is not None or self.size is not None

    @property
    def changes_embedding(self) -> bool:
        return self.embedding is not None or self.embedding_a is not None

    @property
    def is_additive(self) -> bool:
        return self.embedding is None and not self.changes_head and self.gain is None


@dataclass(frozen=True, slots=True)
class Block:
    """A matrix, or a vector, at an offset. tokens: of rows, those whose they are, in rising order; None: all."""

    offset: int
    shape: tuple[int, ...]
    tokens: tuple[int, ...] | None = None

    @property
    def end(self) -> int:
        return self.offset + math.prod(self.shape)

    def view(self, weights: Tensor) -> Tensor:
        return weights[self.offset : self.end].view(self.shape)

    def own_rows(self, weights: Tensor) -> OwnRows:
        tokens = None if self.tokens is None else torch.tensor(self.tokens, device=weights.device)
        return OwnRows(self.view(weights), tokens)


@dataclass(frozen=True, slots=True)
class VocabularyLayout:
    """Where each part of a `Vocabulary` lies. head: the embedding's block where the two are one matrix in the base."""

    embedding: Block | None = None
    head: Block | None = None
    embedding_a: Block | None = None
    embedding_b: Block | None = None
    gain: Block | None = None
    size: int | None = None

    def blocks(self) -> Iterator[Block]:
        """In the order in which they lie, each once."""
        head = None if self.head is self.embedding else self.head
        for block in (self.embedding, head, self.embedding_a, self.embedding_b, self.gain):
            if block is not None:
                yield block

    def views(self, weights: Tensor) -> Vocabulary:
        """weights: the adapter's, wherever they are."""

        def matrix(block: Block | None) -> Tensor | None:
            return None if block is None else block.view(weights)

        def rows(block: Block | None) -> OwnRows | None:
            return None if block is None else block.own_rows(weights)

        return Vocabulary(
            rows(self.embedding),
            rows(self.head),
            matrix(self.embedding_a),
            matrix(self.embedding_b),
            matrix(self.gain),
            self.size,
        )


class _Planner:
    """Hands out blocks one after the other."""

    def __init__(self, align: int) -> None:
        self.end = 0
        self._align = align

    def block(self, shape: tuple[int, ...], tokens: tuple[int, ...] | None = None) -> Block:
        block = Block(self.end, shape, tokens)
        self.end = -(-block.end // self._align) * self._align
        return block


def plan_vocabulary(
    spec: AdapterSpec, shape: BaseShape, align: int, *, ties_embeddings: bool
) -> tuple[VocabularyLayout | None, int]:
    """The layout, None if there is nothing to lay out, and how many elements it takes."""
    if not spec.has_vocabulary:
        return None, 0
    planner = _Planner(align)
    size = spec.vocab_size or shape.vocab_size

    def rows_of(module: str) -> Block | None:
        if module in spec.replaced:
            return planner.block((size, shape.hidden_size))
        tokens = tuple(sorted({*spec.token_rows.get(module, ()), *range(shape.vocab_size, size)}))
        return planner.block((len(tokens), shape.hidden_size), tokens) if tokens else None

    embedding = rows_of(EMBEDDING)
    head = embedding if ties_embeddings and _shares_rows(spec) else rows_of(HEAD)
    lora = spec.modules.get(EMBEDDING)
    if lora is None:
        return VocabularyLayout(embedding, head, size=spec.vocab_size), planner.end
    a = planner.block((shape.vocab_size, lora.rank))
    b = planner.block((lora.rank, shape.hidden_size))
    gain = planner.block((shape.hidden_size,)) if "magnitude" in lora.parts else None
    return VocabularyLayout(embedding, head, a, b, gain), planner.end


def _shares_rows(spec: AdapterSpec) -> bool:
    """Of an adapter to a base that has one matrix for both ends: with rows of the embedding those of the head change,
    unless the head has others."""
    if spec.vocab_size and not spec.token_rows:
        return not spec.replaced
    rows = spec.token_rows.get(EMBEDDING)
    shares = rows is not None and spec.token_rows.get(HEAD, rows) == rows
    if shares and (HEAD in spec.modules or HEAD in spec.replaced):
        raise AdapterUnavailable("on a base with tied embeddings PEFT cannot train tokens beside lm_head; choose one")
    return shares

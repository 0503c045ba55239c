"""What adapters have of their own at the ends of the model: rows of the embedding and of the head.

Few adapters have any, so this is plain torch, one adapter after the other. Knows tensors; knows no sequences.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from loraplex.adapters.vocabulary import OwnRows
from loraplex.engine.end_uses import VocabularyUse


def change_embedded(embedded: Tensor, token_ids: Tensor, uses: Iterable[VocabularyUse]) -> None:
    """embedded [tokens, hidden]: the base's rows of token_ids, changed in place to what each use makes of its own."""
    for use in uses:
        own = use.vocabulary
        rows, tokens = embedded[use.first : use.end], token_ids[use.first : use.end]
        if own.embedding is not None:
            _blend(rows, _looked_up(own.embedding, tokens, rows), use.scale)
        if own.embedding_a is not None and own.embedding_b is not None:
            added = own.embedding_a[tokens].float() @ own.embedding_b.float()
            if own.gain is not None:
                added += rows.float() * own.gain.float()
            rows += (use.scale * added).to(rows.dtype)


def change_logits(logits: Tensor, x: Tensor, uses: Iterable[VocabularyUse]) -> None:
    """logits [rows, vocab] of x [rows, hidden], changed in place where a head has rows of its own."""
    for use in uses:
        head = use.vocabulary.head
        assert head is not None
        own = functional.linear(x[use.first : use.end], head.rows)
        rows = logits[use.first : use.end]
        if head.tokens is None:
            _blend(rows, own, use.scale)
        else:
            columns = rows[:, head.tokens]
            _blend(columns, own, use.scale)
            rows[:, head.tokens] = columns


def _looked_up(own: OwnRows, tokens: Tensor, default: Tensor) -> Tensor:
    """The adapter's row of every token, or the default's where it has none."""
    if own.tokens is None:
        return own.rows[tokens]
    place = torch.searchsorted(own.tokens, tokens).clamp(max=len(own.tokens) - 1)
    return torch.where((own.tokens[place] == tokens).unsqueeze(1), own.rows[place], default)


def _blend(base: Tensor, own: Tensor, scale: float) -> None:
    """base + scale (own - base), in place; at scale 1 exactly own."""
    base.copy_(own if scale == 1 else torch.lerp(base.float(), own.float(), scale))

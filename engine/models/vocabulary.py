"""What adapters have of their own at the ends of the model: rows of the embedding and of the head.

Few adapters have any, so this is plain torch, one adapter after the other. Knows tensors; knows no sequences.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from loraplex.adapters.vocabulary import OwnRows
from loraplex.engine.end_uses import VocabularyUse


def change_embedded(embedded: Tensor, token_ids: Tensor, uses: Iterable[VocabularyUse], vocab: int) -> None:
    """embedded [tokens, hidden]: the base's rows of token_ids, changed in place to what each use makes of its own.

    Tokens from `vocab` on, which the base does not know, have whatever row.
    """
    for use in uses:
        own = use.vocabulary
        rows, tokens = embedded[use.first : use.end], token_ids[use.first : use.end]
        if own.embedding is not None:
            _blend(rows, _looked_up(own.embedding, tokens, rows), use.scale, (tokens >= vocab).unsqueeze(1))
        if own.embedding_a is not None and own.embedding_b is not None:
            added = own.embedding_a[tokens].float() @ own.embedding_b.float()
            if own.gain is not None:
                added += rows.float() * own.gain.float()
            rows += (use.scale * added).to(rows.dtype)


def change_logits(logits: Tensor, x: Tensor, uses: Sequence[VocabularyUse]) -> Tensor:
    """logits [rows, vocab] of x [rows, hidden], changed in place where a head has rows of its own.

    Where a use knows more tokens than the base the result is wider, and -inf for rows that do not know them.
    """
    vocab = logits.shape[1]
    width = max((use.vocabulary.size or vocab for use in uses), default=vocab)
    if width > vocab:
        logits = functional.pad(logits, (0, width - vocab), value=-torch.inf)
    for use in uses:
        rows, head, size = logits[use.first : use.end], use.vocabulary.head, use.vocabulary.size
        if head is not None:
            own = functional.linear(x[use.first : use.end], head.rows)
            tokens = torch.arange(own.shape[1], device=own.device) if head.tokens is None else head.tokens
            columns = rows[:, tokens]
            _blend(columns, own, use.scale, tokens >= vocab)
            rows[:, tokens] = columns
        if size is not None:
            rows[:, size:] = -torch.inf
    return logits


def _looked_up(own: OwnRows, tokens: Tensor, default: Tensor) -> Tensor:
    """The adapter's row of every token, or the default's where it has none."""
    if own.tokens is None:
        return own.rows[tokens]
    place = torch.searchsorted(own.tokens, tokens).clamp(max=len(own.tokens) - 1)
    return torch.where((own.tokens[place] == tokens).unsqueeze(1), own.rows[place], default)


def _blend(base: Tensor, own: Tensor, scale: float, is_new: Tensor) -> None:
    """base + scale (own - base), in place; exactly own at scale 1, and where the base has nothing to begin from."""
    if scale != 1:
        own = torch.where(is_new, own, torch.lerp(base.float(), own.float(), scale).to(own.dtype))
    base.copy_(own)

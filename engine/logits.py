"""Rows of logits as the rules of their sequences change them, and how likely they make a token.

Knows tensors and the edits of a row; knows no sequences.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from loraplex.engine.events import TokenScore
from loraplex.engine.logit_edits import Array, RowEdit


def edited(logits: Tensor, rows: Tensor, edits: Sequence[RowEdit]) -> Tensor:
    """Rows of logits [all rows, vocab] as their edits change them: new ones, at least fp32. rows [edits] int64.

    Tokens beyond the vocabulary of the step have no logit to change: others in a later step may have brought them.
    """
    result = logits[rows].to(torch.promote_types(logits.dtype, torch.float32))
    flat, vocab, device = result.view(-1), result.shape[1], result.device
    places, known = _places([edit.tokens for edit in edits], vocab, device)
    if len(places):
        numbers = np.concatenate([edit.numbers for edit in edits])[known]
        bias, repetition, penalty = torch.from_numpy(numbers).to(device).unbind(1)
        values = flat[places] + bias
        flat[places] = torch.where(values > 0, values / repetition, values * repetition) - penalty
    places, _ = _places([edit.banned for edit in edits], vocab, device)
    flat[places] = -torch.inf
    allowed = [(row, edit.allowed[:vocab]) for row, edit in enumerate(edits) if edit.allowed is not None]
    if allowed:
        excluded = np.ones((len(allowed), vocab), dtype=bool)
        for place, (_, mask) in enumerate(allowed):
            np.logical_not(mask, out=excluded[place, : len(mask)])
        limited = torch.tensor([row for row, _ in allowed], device=device)
        result[limited] = result[limited].masked_fill(torch.from_numpy(excluded).to(device), -torch.inf)
    return result


def scores(logits: Tensor, tokens: Tensor, most: Sequence[int]) -> list[TokenScore]:
    """How likely the logits [rows, vocab] make each row's token.

    tokens [rows] int64. most: of each row, how many of the most likely tokens are told beside its own; not empty.
    """
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    chosen = logprobs.gather(1, tokens.unsqueeze(1))
    ranks = (logprobs > chosen).sum(1) + 1
    tops: list[list[tuple[int, float]]] = [[] for _ in most]
    if largest := min(max(most), logits.shape[1]):
        best = logprobs.topk(largest)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        tops = [list(zip(ids, values, strict=True))[:count] for (ids, values), count in zip(pairs, most, strict=True)]
    rows = zip(tokens.tolist(), chosen.flatten().tolist(), ranks.tolist(), tops, strict=True)
    return [TokenScore(*row) for row in rows]


def _places(tokens: Sequence[Array], vocab: int, device: torch.device) -> tuple[Tensor, Array]:
    """Where each row's tokens lie in the flattened logits; and which of all the tokens have a logit there."""
    every = np.concatenate(tokens)
    rows = np.repeat(np.arange(len(tokens)), [len(row) for row in tokens])
    known = every < vocab
    return torch.from_numpy((rows * vocab + every)[known]).to(device), known

"""What one sequence's rules do to its next logits, kept up token by token. Knows numbers; knows no tensors or batch.

With l the model's logit of a token, c how often the token stands in the output, and s whether in prompt or output:

    1. l = l + bias
    2. l = l / repetition_penalty where l > 0, else l * repetition_penalty, if s
    3. l = l - frequency_penalty * c - presence_penalty * (c > 0)
    4. l = -inf where it is not allowed, would complete a bad word, or would end the sequence too early

The formulas and their order are vLLM's; 2 is also Transformers'.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from loraplex.engine.events import LogitRules

Array = np.ndarray

_BIAS, _REPETITION, _PENALTY = range(3)
_ROOM = 64


class RowEdit(NamedTuple):
    """What is done to one row of logits. It may change with the sequence's next token.

    tokens, numbers  [n] int64, no token twice, and [n, 3] fp32: bias, repetition penalty, and what is subtracted
    banned           [m] int64: tokens that become -inf
    allowed          [k] bool, of the tokens below k: all others become -inf; None: all are allowed
    """

    tokens: Array
    numbers: Array
    banned: Array
    allowed: Array | None


class LogitEdits:
    """Steps 1 to 3 are one entry for every token that they touch; a new token of the output changes one entry."""

    def __init__(self, rules: LogitRules, prompt: Sequence[int], ends: Iterable[int]) -> None:
        """ends: tokens that end the sequence."""
        self._rules = rules
        self._prompt_tokens = self._followed = len(prompt)
        self._repeats = rules.repetition_penalty != 1
        self._follows = bool(self._repeats or rules.presence_penalty or rules.frequency_penalty)
        self._counts: dict[int, int] = {}
        self._tokens = np.unique(np.array([*(prompt if self._repeats else ()), *rules.logit_bias], dtype=np.int64))
        self._numbers = np.zeros((len(self._tokens), 3), dtype=np.float32)
        self._numbers[:, _REPETITION] = 1
        self._place_of = {token: place for place, token in enumerate(self._tokens.tolist())}
        if self._repeats:
            self._numbers[np.searchsorted(self._tokens, prompt), _REPETITION] = rules.repetition_penalty
        for token, bias in rules.logit_bias.items():
            self._numbers[self._place_of[token], _BIAS] = bias
        self._ends = frozenset(ends)
        self._last_of = _last_tokens(rules.bad_words)
        self._allowed = None if rules.allowed_token_ids is None else _mask(rules.allowed_token_ids)

    def after(self, tokens: Sequence[int]) -> RowEdit:
        """For the logits that follow prompt and output; the output has only grown since the last call."""
        if self._follows:
            for place in range(self._followed, len(tokens)):
                self._follow(tokens[place])
        self._followed = len(tokens)
        size = len(self._place_of)
        return RowEdit(self._tokens[:size], self._numbers[:size], self._banned(tokens), self._allowed)

    def _follow(self, token: int) -> None:
        place = self._place_of.setdefault(token, len(self._place_of))
        if place == len(self._tokens):
            room = _ROOM + place
            self._tokens = np.concatenate([self._tokens, np.zeros(room, dtype=np.int64)])
            self._numbers = np.concatenate([self._numbers, np.zeros((room, 3), dtype=np.float32)])
        count = self._counts[token] = self._counts.get(token, 0) + 1
        self._tokens[place] = token
        self._numbers[place, _REPETITION] = self._rules.repetition_penalty
        self._numbers[place, _PENALTY] = self._rules.presence_penalty + self._rules.frequency_penalty * count

    def _banned(self, tokens: Sequence[int]) -> Array:
        """By step 4, beside what is not allowed. None where it would be all that is allowed: one of these is chosen
        whatever else is asked."""
        generated = len(tokens) - self._prompt_tokens
        banned = set(self._ends) if generated < self._rules.min_tokens else set()
        for length, last_of in self._last_of.items():
            if length <= generated:
                banned |= last_of.get(tuple(tokens[len(tokens) - length :]), frozenset())
        if banned and (allowed := self._rules.allowed_token_ids) is not None and banned.issuperset(allowed):
            banned = set()
        return np.array(list(banned), dtype=np.int64)


def _mask(tokens: Sequence[int]) -> Array:
    mask = np.zeros(max(tokens) + 1, dtype=bool)
    mask[list(tokens)] = True
    return mask


def _last_tokens(bad_words: Iterable[tuple[int, ...]]) -> dict[int, dict[tuple[int, ...], frozenset[int]]]:
    """Length of all but the last token -> these tokens -> the last tokens that complete a bad word after them."""
    words: dict[int, dict[tuple[int, ...], frozenset[int]]] = {}
    for *first, last in bad_words:
        after = words.setdefault(len(first), {})
        after[tuple(first)] = after.get(tuple(first), frozenset()) | {last}
    return words

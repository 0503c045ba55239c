"""What may come next in a text that repeats itself: what came next where its last tokens stood before.

Knows token ids; knows no sequences, steps or costs. The idea is prompt lookup decoding (Saxena, 2023).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

MATCH = 3
"""Tokens that have to stand together a second time."""

MAX_PLACES = 1 << 16
"""Places that an index remembers, 4 bytes each; of a longer text it forgets what shares a place with newer tokens."""

MEMORY = 8
"""Predictions over which the hit rate forgets."""

FIRST_HIT_RATE = 0.3

_FACTORS = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)


class PromptLookup:
    """An index over one text that only grows, kept up token by token.

    hit_rate: how often the next token was the one that was expected, lately; it is learned whether or not anybody asks
    for drafts, so a text that begins to repeat itself is noticed without a single draft.
    """

    def __init__(self, most_tokens: int) -> None:
        """most_tokens: that the text may have at its end."""
        places = min(1 << (2 * most_tokens - 1).bit_length(), MAX_PLACES)
        self.hit_rate = FIRST_HIT_RATE
        self._places = array("i", bytes(4 * places))  # hash of MATCH tokens -> where the token after them last stood
        self._mask = places - 1
        self._known = 0
        self._expected = 0  # where the token stands that is expected next; 0: none is

    def follow(self, tokens: Sequence[int]) -> None:
        """Take in what the text has grown by since the last call."""
        if self._known == 0:
            self._index_all(tokens)
        for place in range(self._known, len(tokens)):
            if self._expected:
                hit = tokens[self._expected] == tokens[place]
                self.hit_rate += (hit - self.hit_rate) / MEMORY
                self._expected = self._expected + 1 if hit else 0
            self._remember(tokens, place + 1)
        self._known = len(tokens)

    def drafts(self, tokens: Sequence[int], count: int) -> list[int]:
        """So many tokens that may come next, or none. `tokens` are those that it has followed."""
        if not self._expected:
            return []
        found = list(tokens[self._expected : self._expected + count])
        period = len(found)
        while len(found) < count:  # the text repeats what it is just saying
            found.append(found[-period])
        return found

    @property
    def expects(self) -> bool:
        return self._expected > 0

    def _remember(self, tokens: Sequence[int], end: int) -> None:
        """The last tokens before `end` were seen; unless a longer match goes on, expect what followed them before."""
        if end < MATCH:
            return
        a, b, c = tokens[end - MATCH : end]
        key = (a * _FACTORS[0] + b * _FACTORS[1] + c * _FACTORS[2]) >> 7 & self._mask
        before = self._places[key]
        if not self._expected and before and tokens[before - MATCH : before] == tokens[end - MATCH : end]:
            self._expected = before
        self._places[key] = end

    def _index_all(self, tokens: Sequence[int]) -> None:
        """All but the last tokens at once, the same as one after the other but for the hit rate."""
        known = len(tokens) - 1
        if known < MATCH:
            return
        ids = np.array(tokens[:known], dtype=np.uint64)
        keys = sum(ids[at : known - MATCH + 1 + at] * np.uint64(factor) for at, factor in enumerate(_FACTORS))
        places = np.frombuffer(self._places, dtype=np.int32)
        places[(keys >> np.uint64(7)) & np.uint64(self._mask)] = np.arange(MATCH, known + 1)
        self._known = known

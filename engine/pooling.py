"""The embedding of a prompt: the mean of its hidden states, of length 1.

Hidden states are those that the head reads: of the last layer, after the final norm. Knows numbers; knows no model.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


class Pooling:
    """The running sum of a prompt's hidden states over the chunks in which it is computed."""

    def __init__(self) -> None:
        self._sum: NDArray[np.float64] = np.zeros(0)

    def add(self, start: int, hidden_sum: NDArray[np.float32]) -> None:
        """hidden_sum: [hidden], over the tokens from position `start` on.

        Position 0 begins anew: a sequence that gave its pages back is computed again.
        """
        self._sum = hidden_sum.astype(np.float64) if start == 0 else self._sum + hidden_sum

    def embedding(self) -> bytes | None:
        """fp32, little-endian; None when there is none, since the hidden states are not finite or add up to nothing.

        A mean is a sum divided by a number, which a vector of length 1 does not show.
        """
        length = math.sqrt(float(self._sum @ self._sum))
        if length == 0 or not math.isfinite(length):
            return None
        return (self._sum / length).astype("<f4").tobytes()

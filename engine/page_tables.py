"""Page tables as rows of one array that is kept between steps, since a decode step changes little of it.

Knows lists of page numbers; knows no sequences.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


class PageTables:
    """[max_rows, max_pages] int32, 0 where a row has no page.

    Relies on how sequences hold pages: a list that only grows, and is replaced by another when it is given up.
    """

    def __init__(self, max_rows: int, max_pages: int) -> None:
        self._table = np.zeros((max_rows, max_pages), dtype=np.int32)
        self._lists: list[list[int]] = [[] for _ in range(max_rows)]
        self._lengths = [0] * max_rows

    def update(self, lists: Iterable[list[int]]) -> np.ndarray:
        """The table whose row i holds the i-th list; rows beyond are undefined. Valid until the next update."""
        for row, pages in enumerate(lists):
            known = self._lengths[row]
            if self._lists[row] is not pages:
                self._table[row, :known] = 0
                self._lists[row] = pages
                known = 0
            if len(pages) > known:
                self._table[row, known : len(pages)] = pages[known:]
            self._lengths[row] = len(pages)
        return self._table

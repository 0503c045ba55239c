"""Which adapters were asked for most lately. Knows digests only."""

from __future__ import annotations

HALVING_INTERVAL = 1024
"""Requests between two halvings. On Zipf(1.0) traffic over 1,000 adapters and a pool of 64, intervals from 512 up keep
three of five requests from loading; least recently used keeps every second (benchmarks/LOG.md)."""


class Popularity:
    """Counts of requests that are halved at intervals, so that what was popular once does not stay so for ever.

    Holds at most 2 * HALVING_INTERVAL digests: a count of one is forgotten at the next halving.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._recorded = 0

    def record(self, digest: str) -> None:
        self._counts[digest] = self._counts.get(digest, 0) + 1
        self._recorded += 1
        if self._recorded % HALVING_INTERVAL == 0:
            self._counts = {name: count // 2 for name, count in self._counts.items() if count > 1}

    def of(self, digest: str) -> int:
        return self._counts.get(digest, 0)

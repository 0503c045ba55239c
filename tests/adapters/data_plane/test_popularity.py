"""What is asked for often counts for more, what was asked for long ago for less."""

from __future__ import annotations

import random
from collections import OrderedDict

from loraplex.adapters.popularity import HALVING_INTERVAL, Popularity


def test_counts_fade_and_are_forgotten():
    """An adapter that is no longer asked for falls behind a new one, and in the end out of memory."""
    popularity = Popularity()
    for _ in range(HALVING_INTERVAL):
        popularity.record("old")
    assert popularity.of("old") == HALVING_INTERVAL // 2
    for _ in range(HALVING_INTERVAL):
        popularity.record("new")
    assert popularity.of("new") > popularity.of("old") > 0
    for number in range(20 * HALVING_INTERVAL):
        popularity.record(str(number))
    assert popularity.of("old") == popularity.of("new") == 0


def test_popular_adapters_stay_better_than_recent_ones():
    """On Zipf(1.0) traffic over 1,000 adapters with room for 64, fewer requests have to load than with LRU."""
    draws = random.Random(0).choices(range(1000), [1 / rank for rank in range(1, 1001)], k=8000)
    popularity = Popularity()
    misses = {}
    for name, worth in (("lru", lambda digest: 0), ("popularity", lambda digest: popularity.of(str(digest)))):
        resident: OrderedDict[int, None] = OrderedDict()
        misses[name] = 0
        for digest in draws:
            popularity.record(str(digest))
            if digest not in resident:
                misses[name] += 1
                if len(resident) == 64:
                    del resident[min(resident, key=worth)]
            resident[digest] = None
            resident.move_to_end(digest)
    assert misses["popularity"] < 0.85 * misses["lru"]

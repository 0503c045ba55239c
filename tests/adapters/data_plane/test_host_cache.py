"""The host cache keeps what was used last, within its bytes."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from loraplex.adapters.host_cache import HostCache
from loraplex.adapters.weights import PackedAdapter


def packed(size_bytes: int) -> PackedAdapter:
    return PackedAdapter(torch.zeros(size_bytes, dtype=torch.uint8), torch.zeros(2, 7, dtype=torch.int64))


def test_the_least_recently_used_goes_first():
    """A get counts as use."""
    cache = HostCache(100)
    first = packed(50)
    cache.put("a", first)
    cache.put("b", packed(50))
    assert cache.get("a") is first

    cache.put("c", packed(30))

    assert cache.get("b") is None
    assert cache.residents() == {"a": 50, "c": 30}
    assert cache.used_bytes == 80


def test_what_is_larger_than_the_cache_is_not_kept():
    """It does not push the others out either."""
    cache = HostCache(100)
    cache.put("a", packed(100))
    cache.put("b", packed(101))
    assert cache.residents() == {"a": 100}


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 60), st.sampled_from(["put", "get", "evict"]))))
def test_bytes_are_counted_right(operations):
    """After any operations the count is the sum, and within the capacity."""
    cache = HostCache(100)
    for digest, size_bytes, operation in operations:
        if operation == "put":
            cache.put(digest, packed(size_bytes))
            assert cache.get(digest) is not None
        elif operation == "get":
            cache.get(digest)
        else:
            cache.evict(digest)
            assert cache.get(digest) is None
        assert cache.used_bytes == sum(cache.residents().values()) <= 100

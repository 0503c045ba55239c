"""Names are remembered until their adapter changes."""

from __future__ import annotations

from loraplex.adapters.changes import names_of
from loraplex.platform.name_cache import MAX_SELECTORS, NameCache


def test_a_change_of_one_adapter_forgets_its_names_alone():
    """With every selector of it; None forgets everything."""
    cache = NameCache()
    for adapter in ("bot", "cat"):
        for selector in (None, "prod", "7"):
            cache.put("t", adapter, selector, (adapter, selector))
    assert cache.get("t", "bot", "prod") == ("bot", "prod")
    assert cache.get("t", "bot", "canary") is None
    assert cache.get("other", "bot", "prod") is None

    cache.forget(frozenset({names_of("t", "bot"), "keys"}))
    assert [cache.get("t", "bot", selector) for selector in (None, "prod", "7")] == [None] * 3
    assert cache.get("t", "cat", None) == ("cat", None)
    cache.forget(None)
    assert cache.get("t", "cat", None) is None
    assert cache.generation == 2


def test_the_cache_is_bounded():
    """By names, those of the least recently used adapter going first, and by the selectors of each adapter."""
    cache = NameCache(max_names=2)
    for adapter in ("a", "b"):
        cache.put("t", adapter, None, ())
    cache.get("t", "a", None)
    cache.put("t", "c", None, ())
    assert [cache.get("t", adapter, None) for adapter in "abc"] == [(), None, ()]
    for number in range(MAX_SELECTORS + 1):
        cache.put("t", "a", str(number), ())
    assert cache.get("t", "a", "0") is None
    assert cache.get("t", "a", str(MAX_SELECTORS)) == ()
    assert cache.get("t", "c", None) is None


def test_names_that_were_forgotten_make_room():
    """What a change forgot does not count any more, and a name that is put again counts once."""
    cache = NameCache(max_names=2)
    for _ in range(3):
        for adapter in ("a", "b"):
            cache.put("t", adapter, None, ())
        cache.forget(frozenset({names_of("t", "a"), names_of("t", "absent")}))
    cache.put("t", "c", None, ())
    cache.put("t", "c", None, ())

    assert [cache.get("t", adapter, None) for adapter in "abc"] == [None, (), ()]

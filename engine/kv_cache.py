"""Which pages of the KV cache belong to whom, and which hold a prefix that can be used again.

Knows page numbers and hashes; knows no tensors and no requests.

A page is in one of three states: in use (references > 0), cached (no references, its content has a hash and can be
found again; evicted in least-recently-used order) or free.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, KeysView, Sequence

from loraplex.engine.events import AdapterUse


def root_hash(model_digest: str, salt: bytes) -> bytes:
    """Where the hash chain of a sequence's pages begins. Each field is tagged with its name and length, so no two
    combinations of model and tenant salt can collide."""
    state = hashlib.sha256(b"loraplex kv 2")
    for name, data in (("model", model_digest.encode()), ("salt", salt)):
        state.update(f"|{name}:{len(data)}:".encode() + data)
    return state.digest()


def page_hash(parent: bytes, tokens: Sequence[int], first: int, adapters: Iterable[AdapterUse]) -> bytes:
    """The name of a full page that begins at position `first`: its tokens, the adapters that work on it, each from
    which token on, and all that came before. Before an adapter's start a page is the base's, and shared with it."""
    end = first + len(tokens)
    active = [f"{use.digest}*{use.scale!r}@{max(use.start - first, 0)}" for use in adapters if use.start < end]
    return hashlib.sha256(parent + array("q", tokens).tobytes() + "+".join(active).encode()).digest()


class PagePool:
    """Hands out pages, and finds cached ones by hash."""

    def __init__(self, num_pages: int, page_tokens: int, *, prefix_cache: bool = True) -> None:
        self.num_pages = num_pages
        self.page_tokens = page_tokens
        self._prefix_cache = prefix_cache
        self._free = list(range(num_pages - 1, -1, -1))
        self._references = [0] * num_pages
        self._hash_of: dict[int, bytes] = {}
        self._page_of: dict[bytes, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first

    @property
    def num_available(self) -> int:
        return len(self._free) + len(self._cached)

    @property
    def num_used(self) -> int:
        return self.num_pages - self.num_available

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def cached(self) -> KeysView[int]:
        return self._cached.keys()

    def shareable(self, tokens: int) -> int:
        """How many pages of a prompt another sequence can take over: full ones, and one token at least must run, for
        its logits."""
        return (tokens - 1) // self.page_tokens if self._prefix_cache else 0

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_tokens)

    def find_prefix(self, hashes: Iterable[bytes]) -> list[int]:
        """The longest run of known pages from the start, each with one more reference."""
        found: list[int] = []
        for name in hashes:
            page = self._page_of.get(name)
            if page is None:
                break
            self._references[page] += 1
            self._cached.pop(page, None)
            found.append(page)
        return found

    def allocate(self, count: int) -> list[int] | None:
        """Pages with one reference each and no defined content, or None when there are not enough."""
        if count > self.num_available:
            return None
        pages = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        for page in pages:
            self._references[page] = 1
        return pages

    def release(self, pages: Sequence[int]) -> None:
        """Give back one reference of each page. Later pages of a prefix are evicted before earlier ones."""
        for page in reversed(pages):
            self._references[page] -= 1
            if self._references[page] == 0:
                if page in self._hash_of:
                    self._cached[page] = None
                else:
                    self._free.append(page)

    def register(self, page: int, name: bytes) -> None:
        """The page is full and computed: from now on it can be found. The first page of a name keeps it."""
        if self._prefix_cache and name not in self._page_of:
            self._page_of[name] = page
            self._hash_of[page] = name

    def check_integrity(self) -> None:
        """Raises AssertionError when a page is in two states or in none."""
        used = {page for page, count in enumerate(self._references) if count > 0}
        free, cached = set(self._free), set(self._cached)
        assert len(free) == len(self._free), "a page is free twice"
        assert len(used | free | cached) == self.num_pages, "a page is in no state"
        assert len(used) + len(free) + len(cached) == self.num_pages, "a page is in two states"
        assert all(self._page_of[name] == page for page, name in self._hash_of.items()), "a hash names another page"
        assert len(self._page_of) == len(self._hash_of)
        assert cached <= self._hash_of.keys()

    def _evict(self) -> int:
        page, _ = self._cached.popitem(last=False)
        del self._page_of[self._hash_of.pop(page)]
        return page

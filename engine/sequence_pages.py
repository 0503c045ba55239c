"""The pages of sequences: taken over from others with the same prefix, new ones as they grow, all back when they end.

Knows sequences and page numbers; knows no queue and no tensors.
"""

from __future__ import annotations

from loraplex.engine.kv_cache import PagePool, page_hash, root_hash
from loraplex.engine.sequence import Sequence


class SequencePages:
    """Hands the pages of a pool to sequences, and makes those that they fill findable."""

    def __init__(self, pool: PagePool, model_digest: str) -> None:
        self.pool = pool
        self.prompt_tokens = 0
        self.cached_prompt_tokens = 0
        self._model_digest = model_digest

    def claim(self, sequence: Sequence) -> bool:
        """Cached pages of its prefix and new ones for the rest of its tokens, or none at all."""
        sequence.pages = self._cached_prefix(sequence)
        cached = len(sequence.pages) * self.pool.page_tokens
        if not self.grow(sequence, len(sequence.tokens)):
            self.free(sequence)
            return False
        sequence.computed = cached
        if not sequence.generated:
            sequence.cached_tokens = cached
            self.prompt_tokens += len(sequence.prompt)
            self.cached_prompt_tokens += cached
        return True

    def grow(self, sequence: Sequence, tokens: int) -> bool:
        """Pages for this many tokens; False if there are not enough."""
        missing = self.pool.pages_for(tokens) - len(sequence.pages)
        if missing <= 0:
            return True
        pages = self.pool.allocate(missing)
        if pages is None:
            return False
        sequence.pages.extend(pages)
        return True

    def register(self, sequence: Sequence) -> None:
        """Pages that are full and computed by now can be found from now on."""
        full = sequence.computed // self.pool.page_tokens
        if full > len(sequence.page_hashes):
            self._extend_hashes(sequence)
        if full > sequence.registered:
            for index in range(sequence.registered, full):
                self.pool.register(sequence.pages[index], sequence.page_hashes[index])
            sequence.registered = full

    def free(self, sequence: Sequence) -> None:
        self.pool.release(sequence.pages)
        sequence.pages = []
        sequence.computed = 0
        sequence.registered = 0

    def _cached_prefix(self, sequence: Sequence) -> list[int]:
        """None for a prompt that is to be embedded: pages hold no hidden states. Its own are not to be found either,
        since prompts that are embedded are seldom continued."""
        if sequence.pooling is not None:
            return []
        if not sequence.page_hashes:
            if sequence.after is not None:
                sequence.page_hashes = sequence.after.page_hashes[: len(sequence.prompt) // self.pool.page_tokens]
            self._extend_hashes(sequence)
        reusable = self.pool.shareable(len(sequence.tokens))
        if sequence.awaits_scores:  # which come with the hidden states, and these are in no page
            reusable = len(sequence.prompt_scores) // self.pool.page_tokens
        return self.pool.find_prefix(sequence.page_hashes[:reusable])

    def _extend_hashes(self, sequence: Sequence) -> None:
        """Hash every page of tokens that is full and has no hash yet."""
        size = self.pool.page_tokens
        parent = sequence.page_hashes[-1] if sequence.page_hashes else root_hash(self._model_digest, sequence.salt)
        for index in range(len(sequence.page_hashes), len(sequence.tokens) // size):
            tokens = sequence.tokens[index * size : (index + 1) * size]
            parent = page_hash(parent, tokens, index * size, sequence.adapters)
            sequence.page_hashes.append(parent)

"""Which sequences try tokens ahead in a step, and how many: as long as a row more is likely to be worth its time.

A draft is a row of its own, at the place that it would have. Each row samples with the draw of its own index, so what
is sampled after drafts that prove right is what would have been sampled without them, and the rest is dropped. Knows
sequences and steps; knows no tensors.

A step takes the time of `free rows + rows` rows, the free ones being what it takes however few there are, and gives as
many tokens as can be expected of its rows. A draft that is right with a higher chance than tokens over time raises that
ratio, any other lowers it. The chance of a sequence's i-th draft is its hit rate to the power of i.
"""

from __future__ import annotations

from dataclasses import dataclass

from loraplex.engine.prompt_lookup import PromptLookup
from loraplex.engine.sequence import Sequence
from loraplex.engine.sequence_pages import SequencePages
from loraplex.engine.step_plan import Chunk

FREE_ROWS_ON_CPU = 16
FREE_ROWS_ON_GPU = 64
"""What a decode step takes whatever its rows, in rows: it reads all weights. On the low side, so that drafts are rather
left out than dear: SmolLM2 on two cores has 21 (9.4 ms alone, 22.7 for 32), and GPUs compute more while they read."""

MARGIN = 1.25
"""How much more than the step as it is a draft has to promise."""

BEST_HIT_RATE = 0.9
"""Where a draft would have to be more certain than this, no text is even followed."""


@dataclass(frozen=True, slots=True)
class DraftLimits:
    """max_drafts: of one sequence in a step; 0: none at all. max_rows: of a step, drafts among them. free_rows: see
    FREE_ROWS_ON_CPU."""

    max_drafts: int
    max_rows: int
    free_rows: int


NO_DRAFTS = DraftLimits(0, 0, 0)


@dataclass(slots=True)
class _Drafter:
    """A sequence that may try tokens ahead; chance: that all that it has so far are right."""

    sequence: Sequence
    lookup: PromptLookup
    most: int
    count: int = 0
    chance: float = 1.0


class Drafting:
    """Adds drafts to steps. drafted, accepted: how many it added, and how many of them the scheduler found right."""

    def __init__(self, limits: DraftLimits, max_model_len: int, pages: SequencePages) -> None:
        """max_model_len: the scheduler's."""
        self.drafted = 0
        self.accepted = 0
        self._limits = limits
        self._max_model_len = max_model_len
        self._pages = pages

    def extended(self, chunks: list[Chunk]) -> list[Chunk]:
        """The chunks of a step, each followed by drafts of its sequence. Steps that read prompts are long as they are
        and get none."""
        if not self._may_pay(len(chunks)):
            return chunks
        if not all(chunk.samples and chunk.count == 1 and chunk.index > 0 for chunk in chunks):
            return chunks
        drafters = [drafter for chunk in chunks if (drafter := self._drafter(chunk.sequence)) is not None]
        if not drafters:
            return chunks
        self._share_rows(drafters, len(chunks))
        drafts = {id(drafter.sequence): self._drafts(drafter, len(chunks)) for drafter in drafters if drafter.count}
        self.drafted += sum(map(len, drafts.values()))
        return [row for chunk in chunks for row in (chunk, *drafts.get(id(chunk.sequence), ()))]

    def _may_pay(self, rows: int) -> bool:
        limits = self._limits
        return bool(limits.max_drafts and rows) and BEST_HIT_RATE * (limits.free_rows + rows) > MARGIN * rows

    def _drafter(self, sequence: Sequence) -> _Drafter | None:
        """None for one that expects nothing, can use nothing, or follows rules or a grammar: these change with every
        token, and are known for its last one only."""
        new_tokens = sequence.most_new_tokens(self._max_model_len)
        if new_tokens < 2 or sequence.edits is not None or sequence.matcher is not None:
            return None
        if sequence.lookup is None:
            sequence.lookup = PromptLookup(len(sequence.tokens) + new_tokens)
        sequence.lookup.follow(sequence.tokens)
        if not sequence.lookup.expects:
            return None
        return _Drafter(sequence, sequence.lookup, min(self._limits.max_drafts, new_tokens - 1))

    def _share_rows(self, drafters: list[_Drafter], rows: int) -> None:
        """First drafts before second ones, as long as each raises what the step gives for its time."""
        expected = float(rows)
        while drafters:
            extended = []
            for drafter in drafters:
                chance = drafter.chance * drafter.lookup.hit_rate
                pays = chance * (self._limits.free_rows + rows) > MARGIN * expected
                if pays and rows < self._limits.max_rows and drafter.count < drafter.most:
                    drafter.count, drafter.chance = drafter.count + 1, chance
                    rows, expected = rows + 1, expected + chance
                    extended.append(drafter)
            drafters = extended

    def _drafts(self, drafter: _Drafter, running: int) -> list[Chunk]:
        """None where their pages would be those that running sequences may need for their next tokens."""
        sequence, pool = drafter.sequence, self._pages.pool
        first, end = len(sequence.tokens), len(sequence.tokens) + drafter.count
        missing = pool.pages_for(end) - len(sequence.pages)
        if missing > 0 and pool.num_available < missing + running:
            return []
        self._pages.grow(sequence, end)
        tokens = drafter.lookup.drafts(sequence.tokens, drafter.count)
        return [Chunk(sequence, place, 1, samples=True, draft=token) for place, token in enumerate(tokens, first)]

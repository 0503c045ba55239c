"""Which tokens of a step are to be scored: those of prompts whose log-probabilities are asked for.

The hidden state of a token scores the next one. Knows chunks and rows; knows no tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from loraplex.engine.lora_work import Span
from loraplex.engine.sequence import Sequence as EngineSequence
from loraplex.engine.step_plan import Chunk

MAX_ROWS = 128
"""Most rows of logits at a time: a vocabulary of 150,000 takes 77 MB of fp32 for so many."""


class ScoredTokens(NamedTuple):
    """The tokens at positions start .. start + size - 1 of a prompt, which are the step's tokens from `row` on."""

    sequence: EngineSequence
    start: int
    size: int
    row: int

    @property
    def next_tokens(self) -> list[int]:
        return self.sequence.prompt[self.start + 1 : self.start + 1 + self.size]


def scored_tokens(chunks: Iterable[Chunk], starts: Sequence[int]) -> Iterator[list[ScoredTokens]]:
    """In portions of at most MAX_ROWS tokens. starts: the first of the step's tokens of each chunk."""
    portion: list[ScoredTokens] = []
    room = MAX_ROWS
    for chunk, row in zip(chunks, starts, strict=False):
        at, end = _unscored(chunk)
        while at < end:
            size = min(end - at, room)
            portion.append(ScoredTokens(chunk.sequence, at, size, row + at - chunk.start))
            at += size
            room -= size
            if room == 0:
                yield portion
                portion, room = [], MAX_ROWS
    if portion:
        yield portion


def scored_spans(portion: Iterable[ScoredTokens]) -> list[Span]:
    """Of a portion's rows of logits."""
    spans = []
    first = 0
    for scored in portion:
        if scored.sequence.leases:
            spans.append((scored.sequence, scored.start, first, first + scored.size))
        first += scored.size
    return spans


def _unscored(chunk: Chunk) -> tuple[int, int]:
    """Positions of a chunk whose next token is to be scored and was not, before the sequence was preempted."""
    sequence = chunk.sequence
    if sequence.sampling.prompt_logprobs is None:
        return 0, 0
    first = max(chunk.start, len(sequence.prompt_scores))
    return first, min(chunk.start + chunk.count, len(sequence.prompt) - 1)

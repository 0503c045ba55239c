"""What runs in one step, as the scheduler tells the runner. Knows sequences; knows no queues and no tensors."""

from __future__ import annotations

from dataclasses import dataclass

from loraplex.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens [start, start + count) of a sequence run in this step; `samples`: the last of them gives a new token. A
    prompt that is to be embedded has no chunk that samples.

    draft: a token that the sequence does not have yet but may get in this very step; the chunk runs it at `start`, as
    if it had. Such chunks follow the sequence's last token in order.
    """

    sequence: Sequence
    start: int
    count: int
    samples: bool
    draft: int | None = None

    @property
    def tokens(self) -> list[int]:
        if self.draft is not None:
            return [self.draft]
        return self.sequence.tokens[self.start : self.start + self.count]

    @property
    def index(self) -> int:
        """Of the token that it samples, among those that are generated."""
        return self.start + self.count - len(self.sequence.prompt)

    @property
    def holds(self) -> bool:
        """When the results of the chunks before it are taken in: whether the sequence has come to its tokens."""
        if self.draft is None:
            return True
        return not self.sequence.has_ended and self.sequence.tokens[self.start :] == [self.draft]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Made by the scheduler, read by the runner. Chunks of one adapter stand together, those of the base first."""

    chunks: tuple[Chunk, ...]

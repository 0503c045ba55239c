"""What an answer says, part by part: thoughts, text, and calls of tools. Knows no format and no wire."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Said:
    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """The next call, of the function `name`. index: from 0 on."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsGrown:
    """More of the arguments of a call that has begun, as the model writes them: JSON, if it makes no mistake."""

    index: int
    text: str


Part = Said | Thought | CallBegun | ArgumentsGrown


class PartReader(Protocol):
    """Reads parts out of text in pieces. What it reads depends on the text alone, not on how it is cut."""

    def push(self, text: str) -> list[Part]:
        """Parts that this text makes certain."""

    def finish(self) -> list[Part]:
        """What was held back, now that no more text comes."""


class Chain:
    """What the first reader takes for text, the second reads on."""

    def __init__(self, first: PartReader, second: PartReader) -> None:
        self._first = first
        self._second = second

    def push(self, text: str) -> list[Part]:
        return self._on(self._first.push(text))

    def finish(self) -> list[Part]:
        return self._on(self._first.finish()) + self._second.finish()

    def _on(self, parts: list[Part]) -> list[Part]:
        return [read for part in parts for read in (self._second.push(part.text) if isinstance(part, Said) else [part])]


def joined(parts: list[Part]) -> list[Part]:
    """Neighbours that are more of the same, as one."""
    return [part for (kind, index), group in groupby(parts, _identity) for part in _merged(kind, index, list(group))]


def _identity(part: Part) -> tuple[type[Part], int]:
    return type(part), part.index if isinstance(part, CallBegun | ArgumentsGrown) else 0


def _merged(kind: type[Part], index: int, parts: list[Part]) -> list[Part]:
    text = "".join(part.text for part in parts if not isinstance(part, CallBegun))
    if kind is CallBegun:
        return parts
    return [ArgumentsGrown(index, text) if kind is ArgumentsGrown else Said(text) if kind is Said else Thought(text)]


def held_back(text: str, *tags: str) -> int:
    """Length of the longest end of `text` that is the beginning of a tag, and not all of it."""
    longest = min(max(map(len, tags), default=1) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if any(tag.startswith(text[-n:]) for tag in tags)), 0)

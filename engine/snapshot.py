"""What the engine has in hand between two steps, as whoever watches it is told. Plain data, no tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from loraplex.adapters.whereabouts import Movement, Whereabouts
from loraplex.engine.events import AdapterUse, Status

FREE, CACHED = 0, 1
"""Cells of the page map. A cell that sequences hold is 2 + 2 * lane, and one more where several hold it; then the lane
is the first that does."""


class Lane(NamedTuple):
    """A running sequence. Of its tokens, `computed` have keys and values, `cached` of these from the prefix cache;
    `stepped` were in the last step. `pages`: that it holds. `age_seconds`: since it came."""

    request_id: str
    owner: str
    adapters: list[AdapterUse]
    prompt: int
    cached: int
    computed: int
    generated: int
    stepped: int
    pages: int
    age_seconds: float


class Queue(NamedTuple):
    """Sequences that wait: of one owner, for the same adapters. `adapters`: digests. `counter`: what the owner was
    charged over its weight, above the least of those that are told; None while a grammar is compiled."""

    owner: str
    adapters: list[str]
    waiting: int
    oldest_seconds: float
    counter: float | None = None


class StepFigures(NamedTuple):
    """A StepRecord without names. `adapters`: how many different ones; `decodes` holds `drafted`."""

    step: int
    at: float
    schedule_seconds: float
    execute_seconds: float
    commit_seconds: float
    sequences: int
    prefill: int
    decodes: int
    adapters: int
    pages_used: int
    preemptions: int
    drafted: int
    accepted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """lanes: adapter by adapter, as a step has them. cells: the page map as runs, [cell, how many, ...]; each stands
    for so many pages. adapters: in memory, those used last; and how many there are.
    steps, movements: since those that whoever asks knows, as far as they are remembered; oldest first."""

    status: Status
    lanes: list[Lane]
    queues: list[Queue]
    cells: list[int]
    pages_per_cell: int
    adapters: list[Whereabouts]
    on_device: int
    in_host: int
    steps: list[StepFigures]
    movements: list[Movement]

"""Look at the scheduler's state for whoever watches: bounded, cheap, between two steps, without a word to the device.

Knows sequences and pages; changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence as Many
from itertools import islice

import numpy as np

from loraplex.engine.events import StepRecord
from loraplex.engine.kv_cache import PagePool
from loraplex.engine.sequence import Sequence
from loraplex.engine.snapshot import CACHED, Lane, Queue, StepFigures
from loraplex.engine.step_plan import StepPlan

MAX_CELLS = 4096
"""Of the page map. A larger cache is told by every n-th page of each sequence, so that looking costs the same."""

MAX_QUEUES = 64
"""Groups of those that wait that are told; of the rest only their number is known, from the status."""

MAX_STEPS = 256
MAX_ADAPTERS_SHOWN = 160


def lanes(running: Many[Sequence], last_plan: StepPlan, now: float) -> list[Lane]:
    stepped: Counter[str] = Counter()
    for chunk in last_plan.chunks:
        stepped[chunk.sequence.request_id] += chunk.count
    return [
        Lane(
            request_id=sequence.request_id,
            owner=sequence.share.owner,
            adapters=list(sequence.adapters),
            prompt=len(sequence.prompt),
            cached=sequence.cached_tokens,
            computed=sequence.computed,
            generated=sequence.generated,
            stepped=stepped[sequence.request_id],
            pages=len(sequence.pages),
            age_seconds=now - sequence.arrived_at,
        )
        for sequence in running
    ]


def queues(waiting: Iterable[Sequence], now: float) -> list[Queue]:
    """By owner and adapters, the longest waiting first."""
    groups: dict[tuple[str, str], Queue] = {}
    for sequence in waiting:
        # One whose grammar is being compiled has neither arrived nor a place in the queue.
        age, counter = (now - sequence.arrived_at, sequence.flow.owner.counter) if sequence.arrived_at else (0.0, None)
        key = owner, _ = sequence.share.owner, sequence.group
        known = groups.get(key) or Queue(owner, [use.digest for use in sequence.adapters], 0, 0.0, counter)
        groups[key] = known._replace(waiting=known.waiting + 1, oldest_seconds=max(known.oldest_seconds, age))
    least = min((queue.counter for queue in groups.values() if queue.counter is not None), default=0.0)
    told = [q if q.counter is None else q._replace(counter=q.counter - least) for q in groups.values()]
    return sorted(told, key=lambda queue: -queue.oldest_seconds)[:MAX_QUEUES]


def page_cells(running: Many[Sequence], pool: PagePool) -> tuple[list[int], int]:
    """The page map as runs, [cell, how many, cell, how many, ...], and how many pages a cell stands for: with more than
    one it is about right. What the cells mean: engine.snapshot."""
    each = -(-pool.num_pages // MAX_CELLS)
    cells = np.zeros(-(-pool.num_pages // each), dtype=np.int32)
    cells[np.fromiter(islice(pool.cached, 0, None, each), dtype=np.int64) // each] = CACHED
    for lane, sequence in enumerate(running):
        places = np.array(sequence.pages[::each], dtype=np.int64) // each
        held = cells[places]
        is_shared = (held > CACHED) & (each == 1)
        cells[places] = np.where(is_shared, held | 1, 2 + 2 * lane)
    starts = np.flatnonzero(np.diff(cells, prepend=-1))
    lengths = np.diff(starts, append=len(cells))
    runs: list[int] = np.stack([cells[starts], lengths], axis=1).ravel().tolist()
    return runs, each


def figures(records: Iterable[StepRecord], after_step: int) -> list[StepFigures]:
    """Of the newest steps after that one, oldest first."""
    newest = [record for record in records if record.step > after_step][-MAX_STEPS:]
    return [
        StepFigures(
            step=record.step,
            at=record.at,
            schedule_seconds=record.schedule_seconds,
            execute_seconds=record.execute_seconds,
            commit_seconds=record.seconds - record.execute_seconds,
            sequences=record.sequences,
            prefill=record.prefill_tokens,
            decodes=record.decode_tokens,
            adapters=len(record.adapters),
            pages_used=record.pages_used,
            preemptions=record.preemptions,
            drafted=record.drafted_tokens,
            accepted=record.accepted_tokens,
        )
        for record in newest
    ]

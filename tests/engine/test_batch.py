"""What lies under a step: one buffer, page tables and adapter tables that are kept from step to step."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from loraplex.adapters.device_adapter import DeviceAdapter
from loraplex.engine.adapter_table import AdapterTable
from loraplex.engine.batch import BatchBuilder, StepLimits
from loraplex.engine.events import SamplingParams, only
from loraplex.engine.page_tables import PageTables
from loraplex.engine.sequence import Sequence
from loraplex.engine.step_buffer import ALIGN_BYTES, StepBuffer
from loraplex.engine.step_plan import Chunk, StepPlan
from loraplex.kernels.ops import LONG_WORK_TOKENS, WORK_TOKENS

CPU = torch.device("cpu")


def adapter(number: int, rank: int = 8) -> DeviceAdapter:
    return DeviceAdapter(str(number), torch.full((2, 7), number, dtype=torch.int64), rank, 1)


def test_arrays_of_the_buffer_are_aligned_and_apart():
    """Whatever is laid out, every tensor is aligned, holds what was written, and shares nothing."""
    shapes = (("int32", (3,)), ("int64", (5,)), ("float32", (1,)), ("int64", (0,)), ("int32", (3, 7)), ("int64", (2,)))
    buffer = StepBuffer(StepBuffer.bytes_for(*shapes), CPU)
    for _ in range(2):
        buffer.clear()
        taken = [buffer.take(dtype, *shape) for dtype, shape in shapes]
        for number, (array, _) in enumerate(taken):
            array[...] = number
        buffer.copy()
        for number, ((dtype, shape), (_, tensor)) in enumerate(zip(shapes, taken, strict=True)):
            assert tensor.dtype == getattr(torch, dtype)
            assert tensor.shape == shape
            assert tensor.data_ptr() % ALIGN_BYTES == 0
            assert (tensor == number).all()
    assert buffer.copies == 0


def test_a_step_beyond_its_limits_is_refused():
    """The buffer never lets a tensor reach past its end."""
    buffer = StepBuffer(64, CPU)
    buffer.take("int64", 8)
    with pytest.raises(AssertionError):
        buffer.take("int32", 1)


def test_page_tables_follow_lists_that_grow_and_change_places():
    """After any steps, every row holds its list and 0 behind it."""
    choose = random.Random(0)
    tables = PageTables(6, 9)
    lists = [[choose.randrange(1, 99) for _ in range(choose.randrange(4))] for _ in range(6)]
    for _ in range(200):
        for row in range(6):
            if choose.random() < 0.2:
                lists[row] = [choose.randrange(1, 99)]  # another sequence
            elif len(lists[row]) < 9:
                lists[row].extend(choose.randrange(1, 99) for _ in range(choose.randrange(2)))
        if choose.random() < 0.3:
            choose.shuffle(lists)
        rows = lists[: choose.randrange(1, 7)]
        table = tables.update(rows)
        for row, pages in enumerate(rows):
            np.testing.assert_array_equal(table[row], pages + [0] * (9 - len(pages)))


def test_adapters_share_rows_over_time_but_not_in_a_step():
    """More adapters than rows: in every step each adapter's row holds its own table."""
    choose = random.Random(0)
    table = AdapterTable(4, 2, 7, CPU)
    adapters = [adapter(number) for number in range(9)]
    buffer = StepBuffer(4 * 2 * 7 * 8 + 64, CPU)
    for _ in range(100):
        buffer.clear()
        step = choose.sample(adapters, choose.randrange(1, 5))
        rows = [table.row_of(one) for one in step]
        table.store(table.stage(buffer))
        assert len(set(rows)) == len(step)
        for one, row in zip(step, rows, strict=True):
            assert torch.equal(table.tensor[row], one.table)


def test_an_adapter_that_was_loaded_again_gets_its_new_place():
    """The same digest at another offset is another adapter to the table."""
    table = AdapterTable(4, 2, 7, CPU)
    buffer = StepBuffer(1024, CPU)
    before, after = adapter(1), DeviceAdapter("1", torch.full((2, 7), 77, dtype=torch.int64), 8, 1)
    for one in (before, after):
        buffer.clear()
        row = table.row_of(one)
        table.store(table.stage(buffer))
        assert torch.equal(table.tensor[row], one.table)


def test_long_runs_of_an_adapter_stand_in_both_work_lists():
    """Runs of LONG_WORK_TOKENS and more are the end of `work`, and `long_work` covers the same tokens."""
    counts = ((None, 5), (0, 3), (1, LONG_WORK_TOKENS), (2, LONG_WORK_TOKENS - 1), (3, 2 * LONG_WORK_TOKENS + 9))
    leases = [adapter(number) for number in range(4)]
    chunks = []
    for owner, count in counts:
        adapters = () if owner is None else only(str(owner))
        sequence = Sequence(str(owner), [3] * count, SamplingParams(max_tokens=1), adapters, b"", 0)
        sequence.pages = list(range(-(-count // 16)))
        sequence.leases = () if owner is None else (leases[owner],)
        chunks.append(Chunk(sequence, 0, count, samples=True))
    builder = BatchBuilder(CPU, 16, 99, torch.zeros(8), 2, StepLimits(8, 1024, 20))

    (lora,) = builder.build(StepPlan(tuple(chunks))).lora

    short, rest = lora.work[: lora.num_short], lora.work[lora.num_short :]
    starts = np.cumsum([0, *(count for _, count in counts)])
    assert covered(short) == covered_by(counts, starts, (0, 2))
    assert covered(rest) == covered(lora.long_work) == covered_by(counts, starts, (1, 3))
    assert lora.work[:, 2].max() <= WORK_TOKENS
    assert lora.long_work[:, 2].max() == LONG_WORK_TOKENS


def covered(entries: torch.Tensor) -> dict[int, int]:
    """The adapter, by its table's number, of every token in a work list."""
    tokens = [(first + step, row) for row, first, count, _ in entries.tolist() for step in range(count)]
    assert len(dict(tokens)) == len(tokens), "entries overlap"
    return dict(tokens)


def covered_by(counts, starts, owners) -> dict[int, int]:
    """Rows are given in the order of adapters, which are numbered alike."""
    return {
        token: owner
        for (owner, count), start in zip(counts, starts, strict=False)
        if owner in owners
        for token in range(start, start + count)
    }

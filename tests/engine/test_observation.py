"""What whoever watches is told of the engine is what the engine has, at every moment and within bounds."""

from __future__ import annotations

from itertools import groupby

import pytest
from engine_running import collect, greedy, start_engine, store_adapter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loraplex.engine.events import AdapterUse, Share, only
from loraplex.engine.kv_cache import PagePool
from loraplex.engine.observation import MAX_CELLS, page_cells
from loraplex.engine.sequence import Sequence
from loraplex.engine.snapshot import CACHED, FREE, Snapshot

PROMPTS = [[3 + j for j in range(40)], [3 + j for j in range(70)], [9] * 5]
PAGE = 2 * 2 * 2 * 16 * 16 * 4  # bytes of one page of the tiny model in fp32
ACTIONS = st.one_of(
    st.tuples(st.just("submit"), st.integers(0, 2), st.integers(0, 3)),
    st.tuples(st.just("abort"), st.integers(0, 30), st.just(0)),
    st.tuples(st.just("step"), st.just(0), st.just(0)),
)


@pytest.fixture(scope="module")
def running(tiny_model_dir, make_adapter, tmp_path_factory):
    """An engine with little room, and three adapters."""
    folder = tmp_path_factory.mktemp("adapters")
    paths = [make_adapter(folder / str(seed), seed=seed) for seed in (1, 2, 3)]
    built = start_engine(
        tiny_model_dir, folder / "blobs", kv_cache_bytes=14 * PAGE, max_num_seqs=4, max_step_tokens=24, max_model_len=96
    )
    yield built.engine, [store_adapter(folder / "blobs", path, built.shape) for path in paths]
    built.engine.close()


def cells_of(snapshot: Snapshot) -> list[int]:
    runs = iter(snapshot.cells)
    return [cell for cell, count in zip(runs, runs, strict=True) for _ in range(count)]


def check(snapshot: Snapshot) -> None:
    status, cells = snapshot.status, cells_of(snapshot)
    assert len(cells) == status.pages_total
    assert cells.count(CACHED) == status.pages_cached
    assert cells.count(FREE) == status.pages_total - status.pages_used - status.pages_cached
    assert len(snapshot.lanes) == status.running
    assert sum(queue.waiting for queue in snapshot.queues) == status.waiting
    for index, lane in enumerate(snapshot.lanes):
        alone, first = cells.count(2 + 2 * index), cells.count(3 + 2 * index)
        assert alone + first <= lane.pages
        shared_with_earlier = lane.pages - alone - first
        assert shared_with_earlier <= sum(cell > CACHED and cell % 2 and cell // 2 - 1 < index for cell in cells)
        assert lane.computed <= lane.prompt + lane.generated
        assert lane.owner == lane.request_id.partition("-")[0]
    groups = [tuple(lane.adapters) for lane in snapshot.lanes]
    assert len(list(groupby(groups))) == len(set(groups)), "lanes of one adapter stand together"


@given(st.lists(ACTIONS, max_size=30))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_snapshot_is_the_engines_state(running, actions):
    """Whatever is asked, aborted and preempted: each page is told with those that hold it, and all sums are those of
    the status."""
    engine, digests = running
    uses = [(), only(digests[0]), only(digests[1]), (AdapterUse(digests[0], 0.5), AdapterUse(digests[1]))]
    ids: list[str] = []
    try:
        act(engine, actions, uses, ids)
    finally:
        for request_id in ids:
            engine.abort(request_id)
    check(engine.look(0, 0))


def act(engine, actions, uses, ids):
    for action, first, second in actions:
        if action == "submit":
            owner = f"tenant{second % 2}"
            ids.append(f"{owner}-{len(ids)}")
            engine.submit(ids[-1], PROMPTS[first], greedy(12), adapters=uses[second], salt=b"s", share=Share(owner))
        elif action == "abort" and ids:
            engine.abort(ids[first % len(ids)])
        elif not engine.step().ran:
            engine.wait(0.01)
        check(engine.look(0, 0))


def test_steps_and_movements_are_told_once(running):
    """Each is told with its times; whoever knows the last hears nothing of it again."""
    engine, (_, _, fresh) = running
    before = engine.look(0, 0).status
    known = before.adapter_loads + before.adapter_evictions
    engine.submit("one", PROMPTS[1], greedy(6), adapters=only(fresh))
    collect(engine, ["one"])
    seen = engine.look(before.steps, known)
    assert [step.step for step in seen.steps] == list(range(before.steps + 1, seen.status.steps + 1))
    assert sum(step.prefill for step in seen.steps) + sum(step.decodes for step in seen.steps) == len(PROMPTS[1]) + 5
    assert all(step.execute_seconds > 0 and step.adapters == 1 and step.pages_used for step in seen.steps)
    [load] = seen.movements
    assert (load.kind, load.digest) == ("load", fresh)
    assert load.load is not None
    assert load.load.total >= load.load.copy
    assert (seen.adapters[0].digest, seen.on_device) == (fresh, len(engine.device_adapters()))
    again = engine.look(seen.status.steps, seen.movements[-1].number)
    assert (again.steps, again.movements) == ([], [])


def test_a_large_cache_is_told_by_some_of_its_pages():
    """The map has a bounded number of cells, whatever the cache's size, and about the right part of them is held."""
    pool = PagePool(10 * MAX_CELLS + 1, 16)
    sequence = Sequence("r", [1], greedy(1), (), b"", 0)
    sequence.pages = pool.allocate(pool.num_pages // 2)
    runs, pages_per_cell = page_cells([sequence], pool)
    held = sum(count for cell, count in zip(runs[::2], runs[1::2], strict=True) if cell > CACHED)
    assert (sum(runs[1::2]), pages_per_cell) == (-(-pool.num_pages // 11), 11)
    assert held == pytest.approx(sum(runs[1::2]) / 2, rel=0.01)

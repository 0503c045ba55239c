"""Admission where adapters compete for device memory: the queue's adapters come ahead, what has gone claims nothing."""

from __future__ import annotations

import pytest
from engine_running import Outcome, collect, greedy, start_engine, store_adapter, take

from loraplex.engine.events import only
from loraplex.engine.sequence import MAX_OVERTAKEN

PROMPT = list(range(3, 20))


@pytest.fixture(scope="module")
def stored(tiny_model_dir, make_adapter, tmp_path_factory):
    """(blob folder, small adapter, large adapter, bytes of the large one on the device)"""
    folder = tmp_path_factory.mktemp("adapters")
    built = start_engine(tiny_model_dir, folder / "blobs")
    small, large = (
        store_adapter(folder / "blobs", make_adapter(folder / str(rank), rank=rank), built.shape) for rank in (2, 16)
    )
    built.engine.submit("large", PROMPT, greedy(1), adapters=only(large))
    collect(built.engine, ["large"])
    (resident,) = built.engine.device_adapters()
    built.engine.close()
    return folder / "blobs", small, large, resident.size_bytes


@pytest.fixture
def start(tiny_model_dir, stored):
    engines = []

    def start_one(**options):
        engines.append(start_engine(tiny_model_dir, stored[0], adapter_device_bytes=stored[3], **options).engine)
        return engines[-1]

    yield start_one
    for engine in engines:
        engine.close()


def test_the_adapter_of_a_waiting_request_is_loaded_before_its_turn(start, stored):
    """While the batch is full, what the next in the queue needs is brought to the device."""
    _, small, _, _ = stored
    engine = start(max_num_seqs=1)
    for number in range(8):  # one after the other, which is longer than a load takes on the busiest machine
        engine.submit(f"running {number}", PROMPT, greedy(480, ignore_eos=True))
    engine.submit("waiting", PROMPT, greedy(1), adapters=only(small))
    outcomes: dict[str, Outcome] = {}
    while not engine.device_adapters():
        take(engine, outcomes)

    assert "running 7" not in outcomes or not outcomes["running 7"].ended
    assert "waiting" not in outcomes


def test_an_aborted_request_holds_nobody_up(start, stored):
    """One that waited for room and went away leaves the others as they were."""
    _, small, large, _ = stored
    engine = start(max_num_seqs=2)
    engine.submit("before", PROMPT, greedy(1), adapters=only(large))
    engine.submit("first", PROMPT, greedy(30, ignore_eos=True), adapters=only(small))
    outcomes: dict[str, Outcome] = {}
    while "first" not in outcomes:
        take(engine, outcomes)
    engine.submit("gone", PROMPT, greedy(1), adapters=only(large))
    take(engine, outcomes)
    engine.abort("gone")
    names = [str(number) for number in range(MAX_OVERTAKEN + 8)]
    for name in names:
        engine.submit(name, PROMPT, greedy(1), adapters=only(small))
    collect(engine, names, outcomes)

    assert small in [adapter.digest for adapter in engine.device_adapters()]
    assert engine.status().waiting == 0

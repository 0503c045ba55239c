"""What a request waited for: the load of its adapter, and everything else, told once and before its first token."""

from __future__ import annotations

import time

import pytest
from engine_running import greedy, start_engine, store_adapter

from loraplex.engine.events import AdapterUse, Started, only

PROMPT = list(range(3, 20))


@pytest.fixture(scope="module")
def stored(tiny_model_dir, make_adapter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    built = start_engine(tiny_model_dir, folder / "blobs")
    digests = [
        store_adapter(folder / "blobs", make_adapter(folder / str(rank), rank=rank), built.shape) for rank in (2, 4)
    ]
    built.engine.close()
    return folder / "blobs", digests


def run(engine, *names: str) -> dict[str, Started]:
    """Until these requests have ended; none may be told to have started twice, or after its first token."""
    started, ended = {}, set()
    while not ended >= set(names):
        result = engine.step()
        for told in result.started:
            assert told.request_id not in started
            started[told.request_id] = told
        assert all(chunk.request_id in started for chunk in result.chunks if chunk.request_id in names)
        ended |= {chunk.request_id for chunk in result.chunks if chunk.finish_reason}
        if not result.ran:
            engine.wait(0.1)
    return started


def test_the_first_request_is_cold_and_the_next_one_warm(tiny_model_dir, stored):
    """The base waits for no adapter; of several adapters those that were missing are named."""
    blobs, (small, large) = stored
    engine = start_engine(tiny_model_dir, blobs).engine
    told = {}
    uses = {
        "base": (),
        "cold": only(small),
        "warm": only(small),
        "both": (AdapterUse(small), AdapterUse(large)),
    }
    for name, adapters in uses.items():
        engine.submit(name, PROMPT, greedy(2, ignore_eos=True), adapters=adapters)
        told |= run(engine, name)
    (where,) = engine.locate([small])
    engine.close()

    assert {name: set(started.loads) for name, started in told.items()} == {
        "base": set(),
        "cold": {small},
        "warm": set(),
        "both": {large},
    }
    cold = told["cold"].loads[small]
    assert 0 < cold.read + cold.copy <= cold.total <= told["cold"].load_seconds
    assert (told["base"].load_seconds, told["warm"].load_seconds) == (0, 0)
    assert all(started.queue_seconds >= 0 for started in told.values())
    assert (where.loads, where.last_load, where.leases) == (1, cold, 0)
    assert where.last_used_at is not None


def test_a_wait_for_a_place_in_the_batch_is_no_load(tiny_model_dir, stored):
    """An adapter that came while its request had to queue counts for as long as it was on its way."""
    blobs, (small, _) = stored
    engine = start_engine(tiny_model_dir, blobs, max_num_seqs=1).engine
    for number in range(8):  # one after the other, which is longer than a load takes on the busiest machine
        engine.submit(f"running {number}", PROMPT, greedy(480, ignore_eos=True))
    asked_at = time.monotonic()
    engine.submit("waiting", PROMPT, greedy(1), adapters=only(small))
    while not engine.locate([small])[0].device_bytes:
        assert "waiting" not in [started.request_id for started in engine.step().started]
    there_at = time.monotonic()
    waiting = run(engine, "waiting")["waiting"]
    engine.close()

    assert 0 < waiting.load_seconds <= there_at - asked_at
    assert set(waiting.loads) == {small}

"""One adapter that fills the server, and two hundred that one request each asks for: nobody waits without a bound.

Waiting is counted in admissions, as `scheduler.MAX_OVERTAKEN` promises it.
"""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest
from engine_running import Outcome, collect, greedy, start_engine, store_adapter, take

from loraplex.adapters.blobs import CONFIG_FILE, WEIGHTS_FILE, BlobStore
from loraplex.engine.events import only
from loraplex.engine.scheduler import MAX_OVERTAKEN

PROMPT = list(range(3, 20))
COLD = 200
LARGE_ONE_IN = 8
HOT_PER_COLD = 8
HOT_WAITING = 16
PLACES = 3  # of the pool, for small adapters; fewer than loads.MAX_LOADS, so that no load waits for another


@pytest.fixture(scope="module")
def adapters(tiny_model_dir, make_adapter, tmp_path_factory):
    """(blob folder, bytes of a small adapter on the device, the hot one, cold ones): all small, but every eighth cold
    one, which takes the whole pool."""
    folder = tmp_path_factory.mktemp("adapters")
    built = start_engine(tiny_model_dir, folder / "blobs")
    ranks = {rank: make_adapter(folder / str(rank), rank=rank) for rank in (2, 2 * PLACES)}
    hot, *small = copies(folder / "blobs", ranks[2], built.shape, COLD + 1)
    large = copies(folder / "blobs", ranks[2 * PLACES], built.shape, COLD // LARGE_ONE_IN)
    for digest in (hot, large[0]):
        built.engine.submit(digest, PROMPT, greedy(1), adapters=only(digest))
    collect(built.engine, [hot, large[0]])
    sizes = {resident.digest: resident.size_bytes for resident in built.engine.device_adapters()}
    built.engine.close()
    assert sizes[large[0]] == PLACES * sizes[hot]
    cold = [large[i // LARGE_ONE_IN] if i % LARGE_ONE_IN == 0 else small[i] for i in range(COLD)]
    return folder / "blobs", sizes[hot], hot, cold


def copies(blobs, folder, shape, count: int) -> list[str]:
    """Digests of adapters that differ from a PEFT folder's in one number."""
    store = BlobStore(blobs)
    spec = store.open(store_adapter(blobs, folder, shape)).spec
    weights = bytearray((folder / WEIGHTS_FILE).read_bytes())
    digests = []
    for number in range(count):
        weights[-4:-2] = number.to_bytes(2, "little")  # the low half of the last fp32
        with store.stage() as staging:
            staging.path(CONFIG_FILE).write_bytes((folder / CONFIG_FILE).read_bytes())
            staging.path(WEIGHTS_FILE).write_bytes(weights)
            digests.append(store.commit(staging, spec, hashlib.sha256(weights).hexdigest()))
    return digests


@pytest.fixture
def engine(tiny_model_dir, adapters):
    """Room for three small adapters and eight sequences. Every cold adapter is in the host cache: that reading a file
    takes time is no part of the promise."""
    blobs, small_bytes, _, cold = adapters
    engine = start_engine(tiny_model_dir, blobs, adapter_device_bytes=PLACES * small_bytes, max_num_seqs=8).engine
    for digest in cold:
        engine.submit(digest, PROMPT, greedy(1), adapters=only(digest))
    collect(engine, cold)
    yield engine
    engine.close()


def test_no_cold_adapter_waits_beyond_the_bound_while_a_hot_one_fills_the_server(engine, adapters):
    """Of 200 cold requests, each of which comes with eight hot ones, none that finds no room is overtaken by more than
    MAX_OVERTAKEN, be it one that fits beside the hot adapter or one that needs all of its room."""
    _, _, hot, cold = adapters
    outcomes: dict[str, Outcome] = {}
    waiting: dict[str, str] = {}  # requests by number, in the order in which they came -> digest
    overtaken: Counter[str] = Counter()
    numbers = iter(range(1_000_000))

    def submit(digest: str) -> None:
        count = next(numbers)
        waiting[f"{count:06}"] = digest
        # answers of unlike lengths, so that at every moment some of the hot adapter's run
        engine.submit(f"{count:06}", PROMPT, greedy(2 + count % 3, ignore_eos=True), adapters=only(digest))

    def step() -> None:
        take(engine, outcomes)
        admitted = [number for number in waiting if number in outcomes]
        for number in admitted:
            del waiting[number]
        on_device = {resident.digest for resident in engine.device_adapters()}  # or on its way there
        for number, digest in waiting.items():
            if digest not in on_device:
                overtaken[number] += sum(other > number for other in admitted)
                assert overtaken[number] <= MAX_OVERTAKEN

    coming = iter(cold)
    while (digest := next(coming, None)) or set(waiting.values()) - {hot}:
        for next_digest in (digest, *[hot] * HOT_PER_COLD):
            if next_digest is not None:
                submit(next_digest)
        while len(waiting) > HOT_WAITING:
            step()

    assert max(overtaken.values()) == MAX_OVERTAKEN
    assert all(outcome.failure is None for outcome in outcomes.values())

"""One adapter that fills the server, and two hundred requests for others and for sums: nobody waits without a bound.

Waiting is counted in admissions, as `sequence.MAX_OVERTAKEN` promises it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable

import pytest
from engine_running import Outcome, collect, greedy, start_engine, store_adapter, take

from loraplex.adapters.blobs import CONFIG_FILE, WEIGHTS_FILE, BlobStore
from loraplex.engine.events import AdapterUse, only
from loraplex.engine.sequence import MAX_OVERTAKEN

PROMPT = list(range(3, 20))
COLD = 200
LARGE_ONE_IN = SUM_ONE_IN = 8
HOT_PER_COLD = 8
HOT_WAITING = 16
MAX_NUM_SEQS = 8
PLACES = 3  # of the pool, for small adapters; fewer than loads.MAX_LOADS, so that no load waits for another


@pytest.fixture(scope="module")
def adapters(tiny_model_dir, make_adapter, tmp_path_factory):
    """(blob folder, bytes of a small adapter on the device, the hot one, what each cold request uses): one small
    adapter, but every eighth a large one and every eighth a sum of small ones, which take the whole pool."""
    folder = tmp_path_factory.mktemp("adapters")
    built = start_engine(tiny_model_dir, folder / "blobs")
    ranks = {rank: make_adapter(folder / str(rank), rank=rank) for rank in (2, 2 * PLACES)}
    hot, *small = copies(folder / "blobs", ranks[2], built.shape, COLD + PLACES)
    large = copies(folder / "blobs", ranks[2 * PLACES], built.shape, COLD // LARGE_ONE_IN)
    for digest in (hot, large[0]):
        built.engine.submit(digest, PROMPT, greedy(1), adapters=only(digest))
    collect(built.engine, [hot, large[0]])
    sizes = {resident.digest: resident.size_bytes for resident in built.engine.device_adapters()}
    built.engine.close()
    assert sizes[large[0]] == PLACES * sizes[hot]
    cold = [(small[i],) for i in range(COLD)]
    cold[::LARGE_ONE_IN] = [(digest,) for digest in large]
    for i in range(SUM_ONE_IN // 2, COLD, SUM_ONE_IN):
        cold[i] = tuple(small[i : i + PLACES])
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
    engine = start_engine(
        tiny_model_dir, blobs, adapter_device_bytes=PLACES * small_bytes, max_num_seqs=MAX_NUM_SEQS
    ).engine
    digests = dict.fromkeys(digest for uses in cold for digest in uses)
    for digest in digests:
        engine.submit(digest, PROMPT, greedy(1), adapters=only(digest))
    collect(engine, digests)
    yield engine
    engine.close()


def uses_of(digests: Iterable[str]) -> tuple[AdapterUse, ...]:
    return tuple(AdapterUse(digest) for digest in digests)


def test_no_cold_adapter_waits_beyond_the_bound_while_a_hot_one_fills_the_server(engine, adapters):
    """Of 200 cold requests, each of which comes with eight hot ones, none that finds no room is overtaken by more than
    MAX_OVERTAKEN, be it one that fits beside the hot adapter, one that needs all of its room, or a sum that does."""
    _, _, hot, cold = adapters
    outcomes: dict[str, Outcome] = {}
    waiting: dict[str, tuple[str, ...]] = {}  # requests by number, in the order in which they came -> digests
    overtaken: Counter[str] = Counter()
    arrived: Counter[str] = Counter()  # adapters that were on the device at the last look: one that came was loaded
    numbers = iter(range(1_000_000))

    def submit(digests: tuple[str, ...]) -> None:
        count = next(numbers)
        waiting[f"{count:06}"] = digests
        # answers of unlike lengths, so that at every moment some of the hot adapter's run
        engine.submit(f"{count:06}", PROMPT, greedy(2 + count % 3, ignore_eos=True), adapters=uses_of(digests))

    def step() -> None:
        take(engine, outcomes)
        admitted = [number for number in waiting if number in outcomes]
        for number in admitted:
            del waiting[number]
        for number, digests in waiting.items():
            found = engine.locate(digests)
            there = sum(where.device_bytes > 0 for where in found)
            is_served = there == len(digests) or there > arrived[number] or any(where.is_loading for where in found)
            arrived[number] = there
            if not is_served:
                overtaken[number] += sum(other > number for other in admitted)
                assert overtaken[number] <= MAX_OVERTAKEN

    coming = iter(cold)
    while (digests := next(coming, None)) or set(waiting.values()) - {(hot,)}:
        for next_digests in (digests, *[(hot,)] * HOT_PER_COLD):
            if next_digests is not None:
                submit(next_digests)
        while len(waiting) > HOT_WAITING:
            step()

    assert max(overtaken.values()) > MAX_OVERTAKEN - MAX_NUM_SEQS, "the bound, to a step, was what held"
    assert all(outcome.failure is None for outcome in outcomes.values())


def test_what_a_younger_request_has_gathered_makes_way(engine, adapters):
    """One that is owed the whole room gets it, though another holds a part of it and waits for the rest."""
    _, _, hot, cold = adapters
    large, gathered = cold[0], cold[SUM_ONE_IN // 2]
    outcomes: dict[str, Outcome] = {}
    names = []

    def submit(name: str, digests: tuple[str, ...], tokens: int) -> None:
        names.append(name)
        engine.submit(name, PROMPT, greedy(tokens, ignore_eos=True), adapters=uses_of(digests))

    submit("running 0", (hot,), 400)
    while "running 0" not in outcomes:
        take(engine, outcomes)
    submit("owed", large, 1)
    submit("gathers", gathered, 1)
    running = 0
    while sum(where.leases for where in engine.locate(gathered)) < PLACES - 1:
        newest = outcomes.get(f"running {running}")
        if newest is not None and len(newest.tokens) > 200:  # another before this one ends, however long a load takes
            running += 1
            submit(f"running {running}", (hot,), 400)
        take(engine, outcomes)
    for number in range(MAX_OVERTAKEN + 8):
        submit(f"hot {number}", (hot,), 1)
    collect(engine, names, outcomes)

    assert all(outcomes[name].failure is None for name in names)

"""The engine process behind its client: tokens come, crashes heal, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import msgspec
import psutil
import pytest
from engine_running import greedy, start_engine, store_adapter

from loraplex.engine.client import EngineClient, EngineStartFailed, EngineUnavailable, Generation, GenerationFailed
from loraplex.engine.messages import Embed, EngineSettings, Generate, only

pytestmark = pytest.mark.anyio
DEADLINE_SECONDS = 60


@pytest.fixture(scope="module")
def blobs(tmp_path_factory):
    return tmp_path_factory.mktemp("blobs")


@pytest.fixture(scope="module")
def settings(tiny_model_dir, blobs):
    return EngineSettings(
        model_path=str(tiny_model_dir),
        adapter_blobs=str(blobs),
        kv_cache_bytes=8 << 20,
        adapter_device_bytes=8 << 20,
        kernels="reference",
    )


@pytest.fixture
async def client(settings):
    """Whose engine process is the test's to kill."""
    running = await EngineClient.start(settings)
    yield running
    await running.stop()


@pytest.fixture(scope="module")
async def shared(settings):
    """One client for all tests that leave its process alive."""
    running = await EngineClient.start(settings, max_pending=4)
    yield running
    await running.stop()


def request(name: str, max_tokens: int = 8, adapter: str | None = None) -> Generate:
    return Generate(
        request_id=name, prompt=[5, 6, 7], sampling=greedy(max_tokens, ignore_eos=True), adapters=only(adapter)
    )


async def tokens_of(generation: Generation) -> list[int]:
    async with asyncio.timeout(DEADLINE_SECONDS):
        return [token async for chunk in generation for token in chunk.token_ids]


async def until(condition) -> None:
    """Poll; the deadline is the test's failure."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not await condition():  # noqa: ASYNC110 - what is polled lives in another process
            await asyncio.sleep(0.02)


async def test_tokens_arrive_as_from_the_engine_itself(shared, tiny_model_dir, blobs):
    """What crosses the process border is what the engine says, and the model is described truly."""
    answer = await tokens_of(shared.generate(request("a")))
    built = start_engine(tiny_model_dir, blobs, kernels="reference")
    built.engine.submit("a", [5, 6, 7], greedy(8, ignore_eos=True))
    expected = [token for _ in range(9) for chunk in built.engine.step().chunks for token in chunk.token_ids]
    built.engine.close()

    assert answer == expected
    assert shared.ready.vocab_size == 288
    assert shared.ready.model_digest == built.model_digest
    assert shared.pending == 0


async def test_abort_frees_the_pages(shared):
    """A request that nobody wants any more leaves the engine."""
    generation = shared.generate(request("long", max_tokens=400))
    await anext(generation)
    generation.abort()
    generation.abort()

    async def is_idle() -> bool:
        status = (await shared.inspect()).status
        return status.running == 0 and status.pages_used == 0

    await until(is_idle)
    assert shared.pending == 0


async def test_an_inspection_that_nobody_waits_for_harms_nothing(shared):
    """A caller that goes away while it waits leaves the client as it was."""
    waiting = asyncio.create_task(shared.inspect())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert (await shared.inspect()).status.running == 0
    assert shared.is_alive


async def test_too_many_requests_are_refused_at_once(shared):
    """The bound on requests in hand holds, and says when to come back."""
    generations = [shared.generate(request(f"r{i}", max_tokens=300)) for i in range(4)]

    with pytest.raises(EngineUnavailable) as refusal:
        shared.generate(request("one more"))
    assert refusal.value.retry_after_seconds >= 1
    for generation in generations:
        generation.abort()


async def test_a_killed_engine_comes_back(client):
    """A request with output ends with `engine_restarted`; the next is served by a new process."""
    generation = client.generate(request("victim", max_tokens=400))
    await anext(generation)
    first_pid = client.pid
    os.kill(first_pid, signal.SIGKILL)

    with pytest.raises(GenerationFailed) as failure:
        await tokens_of(generation)
    assert failure.value.code == "engine_restarted"
    assert len(await tokens_of(client.generate(request("after")))) == 8
    assert client.pid != first_pid


async def test_a_request_without_output_is_sent_again(client):
    """What had not emitted a token when the engine died is answered all the same, and what waited for it."""
    os.kill(client.pid, signal.SIGSTOP)
    prompt = list(range(3, 53))
    patient = msgspec.structs.replace(request("patient"), prompt=prompt)
    sibling = msgspec.structs.replace(request("sibling"), prompt=prompt, after="patient")
    generations = client.generate(patient), client.generate(sibling)
    embedding = client.generate(Embed(request_id="embedding", prompt=[5, 6, 7]))
    os.kill(client.pid, signal.SIGKILL)

    assert [len(await tokens_of(generation)) for generation in generations] == [8, 8]
    [chunk] = [chunk async for chunk in embedding]
    assert len(chunk.embedding) == 4 * client.ready.hidden_size


async def test_a_warmed_adapter_is_on_the_device_unasked(shared, tiny_model_dir, make_adapter, tmp_path, blobs):
    """One that cannot be loaded harms nothing; both are done without a request."""
    built = start_engine(tiny_model_dir, blobs, kernels="reference")
    digest = store_adapter(blobs, make_adapter(tmp_path / "peft"), built.shape)
    built.engine.close()
    shared.warm("0" * 64)
    shared.warm(digest)

    async def is_warm() -> bool:
        return [adapter.digest for adapter in (await shared.inspect()).device] == [digest]

    await until(is_warm)
    assert len(await tokens_of(shared.generate(request("a", adapter=digest)))) == 8
    assert (await shared.inspect()).status.adapter_loads == 1


async def test_pins_outlive_the_engine(client, tiny_model_dir, make_adapter, tmp_path, blobs):
    """The next process is asked for them anew; those that were ended are not, and a refusal is told."""
    built = start_engine(tiny_model_dir, blobs, kernels="reference")
    folders = [make_adapter(tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    kept, ended = (store_adapter(blobs, folder, built.shape) for folder in folders)
    built.engine.close()
    end = time.time() + 600
    for digest in (kept, ended):
        assert (await client.pin(digest, "acme", end)).refusal is None
    missing = await client.pin("0" * 64, "acme", end)
    assert missing.refusal.code == "adapter_load_failed"
    client.unpin(ended, "acme")
    assert client.pins == {(kept, "acme"): end}
    assert (await client.evict(kept)).code == "adapter_pinned"
    assert await client.evict(ended) is None

    first_pid = client.pid
    os.kill(first_pid, signal.SIGKILL)

    async def is_pinned_again() -> bool:
        try:
            located = await client.locate([kept, ended])
        except EngineUnavailable:
            return False
        return [(found.pins, found.device_bytes > 0) for found in located] == [(1, True), (0, False)]

    await until(is_pinned_again)
    assert client.pid != first_pid


async def test_a_pin_that_was_asked_for_anew_outlives_the_answer_to_the_first(
    client, tiny_model_dir, make_adapter, tmp_path, blobs
):
    """That it was taken back before it was decided says nothing of the next wish for it."""
    built = start_engine(tiny_model_dir, blobs, kernels="reference")
    digest = store_adapter(blobs, make_adapter(tmp_path / "peft", seed=3), built.shape)
    built.engine.close()
    end = time.time() + 600
    first = client.pin(digest, "acme", end)
    client.unpin(digest, "acme")
    second = client.pin(digest, "acme", end + 1)

    assert [(await first).refusal.code, (await second).refusal] == ["pin_ended", None]
    assert client.pins == {(digest, "acme"): end + 1}
    client.unpin(digest, "acme")


async def test_an_adapter_in_use_at_two_crashes_is_quarantined(client, tiny_model_dir, make_adapter, tmp_path, blobs):
    """The third request for it is refused and its digest told, while the base goes on; until it is forgiven."""
    built = start_engine(tiny_model_dir, blobs, kernels="reference")
    digest = store_adapter(blobs, make_adapter(tmp_path / "peft"), built.shape)
    built.engine.close()
    for attempt in range(2):
        generation = client.generate(request(f"poison {attempt}", max_tokens=400, adapter=digest))
        await anext(generation)
        os.kill(client.pid, signal.SIGKILL)
        with pytest.raises(GenerationFailed):
            await tokens_of(generation)
        assert len(await tokens_of(client.generate(request(f"base {attempt}")))) == 8

    with pytest.raises(GenerationFailed) as failure:
        client.generate(request("poison again", adapter=digest))
    assert failure.value.code == "adapter_quarantined"
    assert [client.quarantined.get_nowait(), client.quarantined.qsize()] == [digest, 0]
    client.forgive(digest)
    assert len(await tokens_of(client.generate(request("forgiven", adapter=digest)))) == 8


async def test_an_engine_that_keeps_dying_is_given_up(client):
    """After three crashes the client says so, instead of restarting for ever."""
    for attempt in range(3):
        generation = client.generate(request(f"r{attempt}", max_tokens=400))
        await anext(generation)
        os.kill(client.pid, signal.SIGKILL)
        with pytest.raises(GenerationFailed):
            await tokens_of(generation)
    async with asyncio.timeout(DEADLINE_SECONDS):
        await client.given_up.wait()

    with pytest.raises(EngineUnavailable):
        client.generate(request("too late"))


async def test_a_model_that_cannot_load_says_why(settings, tmp_path):
    """The engine's own words reach whoever started it."""
    with pytest.raises(EngineStartFailed, match=r"config\.json"):
        await EngineClient.start(
            EngineSettings(model_path=str(tmp_path / "nowhere"), adapter_blobs=settings.adapter_blobs)
        )


async def test_stopping_leaves_no_process(settings):
    """After stop() the engine process is gone; who had a request or a question pending has been told."""
    client = await EngineClient.start(settings)
    generation = client.generate(request("cut off", max_tokens=400))
    question = client.pin("0" * 64, "acme", time.time() + 600)
    pid = client.pid
    await client.stop()

    with pytest.raises(GenerationFailed) as failure:
        await tokens_of(generation)
    assert failure.value.code == "engine_stopped"
    with pytest.raises(EngineUnavailable):
        await asyncio.wait_for(question, DEADLINE_SECONDS)
    assert not psutil.pid_exists(pid)


async def test_a_request_ends_when_its_time_is_up(shared):
    """Wherever it is: it fails with a code of its own and leaves the engine, and one that is done in time does not."""
    late = shared.generate(msgspec.structs.replace(request("late", max_tokens=400), timeout_seconds=0.02))
    done = shared.generate(msgspec.structs.replace(request("done"), timeout_seconds=DEADLINE_SECONDS))

    with pytest.raises(GenerationFailed) as failure:
        await tokens_of(late)

    assert failure.value.code == "deadline_exceeded"
    assert len(await tokens_of(done)) == 8
    assert done.expires.cancelled()
    assert shared.pending == 0

    async def is_idle():
        return not (await shared.inspect()).running

    await until(is_idle)

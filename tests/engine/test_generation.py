"""One request as its reader sees it: nothing lost, nothing reordered, however late the reader comes."""

from __future__ import annotations

import asyncio

import pytest
from engine_running import greedy

from loraplex.engine.generation import Generation, GenerationFailed
from loraplex.engine.messages import Generate, TokenChunk

pytestmark = pytest.mark.anyio


@pytest.fixture
def aborted():
    return []


@pytest.fixture
def generation(aborted):
    return Generation(Generate(request_id="r", prompt=[1], sampling=greedy(8)), on_abort=aborted.append)


def chunk(token, **fields):
    return TokenChunk("r", [] if token is None else [token], cached_tokens=3, **fields)


async def test_a_late_reader_gets_all_that_came_in_one_chunk(generation):
    """Tokens and their log-probabilities in order, with the finish reason of the last, which has no token."""
    generation.deliver(chunk(5, logprobs=[-0.5]))
    generation.deliver(chunk(6, logprobs=[-0.6]))
    generation.deliver(chunk(None, finish_reason="stop"))

    assert [item async for item in generation] == [TokenChunk("r", [5, 6], [-0.5, -0.6], "stop", 3)]


async def test_a_waiting_reader_gets_each_chunk_as_it_comes(generation):
    """One by one when it keeps up."""
    reading = asyncio.ensure_future(anext(generation))
    await asyncio.sleep(0)
    generation.deliver(chunk(5))

    assert (await reading).token_ids == [5]
    generation.deliver(chunk(6, finish_reason="length"))
    assert [item.token_ids async for item in generation] == [[6]]


async def test_what_came_before_a_failure_is_handed_out_first(generation):
    """The failure is raised after the tokens, and the end follows it."""
    generation.deliver(chunk(5))
    generation.deliver(chunk(6))
    generation.fail(GenerationFailed("engine_restarted", "again"))

    assert (await anext(generation)).token_ids == [5, 6]
    with pytest.raises(GenerationFailed):
        await anext(generation)
    with pytest.raises(StopAsyncIteration):
        await anext(generation)


async def test_a_reader_that_is_cancelled_loses_nothing(generation):
    """The next one waits anew and gets the chunk."""
    reading = asyncio.ensure_future(anext(generation))
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait([reading])
    generation.deliver(chunk(5))

    assert (await anext(generation)).token_ids == [5]


async def test_abort_ends_a_waiting_reader_and_is_told_once(generation, aborted):
    """Whoever waits sees the end."""
    reading = asyncio.ensure_future(anext(generation, "ended"))
    await asyncio.sleep(0)
    generation.abort()
    generation.abort()

    assert await reading == "ended"
    assert aborted == ["r"]

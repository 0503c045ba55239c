"""What a stream writes and when, and what becomes of work whose client has gone."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex.platform.openai.connection import ClientGone, while_connected
from loraplex.platform.openai.sse import PING, PING_SECONDS, EventStream, TextFrame, frame

DISCONNECT = {"type": "http.disconnect"}


class Payload(msgspec.Struct):
    name: str
    text: str


class Client:
    """An ASGI client that stays until it is told to leave."""

    def __init__(self):
        self.leaves = asyncio.Event()
        self.sent = []

    async def receive(self):
        await self.leaves.wait()
        return DISCONNECT

    async def send(self, message):
        self.sent.append(message)


@given(name=st.text(min_size=2), text=st.text())
def test_a_text_frame_is_the_frame_of_its_payload(name, text):
    """To the byte, whatever stands in and around the text, line separators of Unicode included."""
    whole = frame(Payload(name, text))

    assert TextFrame(lambda text: Payload(name, text)).of(text) == whole
    assert len(whole.decode().splitlines()) == 2


@pytest.mark.anyio
async def test_work_has_its_result_while_the_client_stays():
    """And nothing is left running."""
    client, before = Client(), asyncio.all_tasks()

    assert await while_connected(client.receive, asyncio.sleep(0, "done")) == "done"
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


@pytest.mark.anyio
async def test_work_ends_when_the_client_leaves():
    """It is cancelled where it waits, and the caller, who is not cancelled, learns why."""
    client, ended = Client(), []

    async def work():
        client.leaves.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    with pytest.raises(ClientGone):
        await while_connected(client.receive, work())
    assert ended
    await asyncio.sleep(0)


@pytest.mark.anyio
async def test_a_callers_own_cancellation_is_not_taken_for_a_client_that_left():
    """It passes through."""
    client = Client()
    running = asyncio.ensure_future(while_connected(client.receive, asyncio.Event().wait()))
    await asyncio.sleep(0)
    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running


@pytest.mark.anyio
async def test_frames_that_are_due_together_are_written_together():
    """One message for each call of `write`, the last of which ends the response; then `on_close` has run."""
    client, closed = Client(), []

    async def produce(write):
        await write(b"first, second", more=True)
        assert not closed
        await write(b"last", more=False)

    await respond(client, EventStream(produce, on_close=lambda: closed.append(True), headers={"x-a": "b"}))

    start, *bodies = client.sent
    assert {(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-a", b"b")} <= set(start["headers"])
    assert [(body["body"], body["more_body"]) for body in bodies] == [(b"first, second", True), (b"last", False)]
    assert closed == [True]


@pytest.mark.anyio
async def test_a_stream_whose_client_leaves_is_closed():
    """Without an error, and without another byte."""
    client, closed = Client(), []

    async def produce(write):
        await write(frame({"n": 1}), more=True)
        client.leaves.set()
        await asyncio.Event().wait()

    await respond(client, EventStream(produce, on_close=lambda: closed.append(True), headers={}))

    assert [json.loads(body["body"].removeprefix(b"data: ")) for body in client.sent[1:]] == [{"n": 1}]
    assert closed == [True]


@pytest.mark.anyio
async def test_a_silent_stream_says_that_it_lives():
    """Comments come in between while nothing else does, none inside of a frame and none after the end."""
    client, pinged = Client(), asyncio.Event()

    async def send(message):
        client.sent.append(message)
        if [message.get("body") for message in client.sent].count(PING) == 2:
            pinged.set()
        if message.get("more_body") is False:  # a slow client, for longer than a stream may be silent
            await asyncio.sleep(0.005)

    async def produce(write):
        await write(b"data: 1\n\n", more=True)
        await pinged.wait()
        await write(b"data: 2\n\n", more=False)

    client.send = send
    before = asyncio.all_tasks()
    await respond(client, EventStream(produce, on_close=lambda: None, headers={}), ping_seconds=0.001)

    _, first, *pings, last = [message.get("body") for message in client.sent]
    assert (first, last) == (b"data: 1\n\n", b"data: 2\n\n")
    assert len(pings) >= 2
    assert set(pings) == {PING} == {b": ping\n\n"}
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def respond(client, stream, ping_seconds=60.0):
    request = SimpleNamespace(app=SimpleNamespace(state={PING_SECONDS: ping_seconds}))
    response = stream.to_asgi_response(None, request)
    await response({"type": "http"}, client.receive, client.send)

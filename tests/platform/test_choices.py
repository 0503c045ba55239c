"""Several choices at once: whatever comes when, each gets its own, and none runs on when the request has ended."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from types import SimpleNamespace

import msgspec
import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scripted_engine import ACME, SeenLedger

from loraplex.engine.batch import uniform
from loraplex.engine.events import SamplingParams
from loraplex.engine.generation import Generation, GenerationFailed
from loraplex.engine.messages import Generate, TokenChunk
from loraplex.platform.catalog import ResolvedModel
from loraplex.platform.ledger.meter import Meter
from loraplex.platform.limits.admission import UNLIMITED
from loraplex.platform.metrics import Metrics
from loraplex.platform.observability.tracing import NoTracing
from loraplex.platform.openai.answer import Answer
from loraplex.platform.openai.choices import Choices, sequences_of
from loraplex.platform.openai.generation_types import Reading
from loraplex.platform.openai.response import respond
from loraplex.platform.openai.sse import DONE, TextFrame, error_body, frame
from loraplex.platform.use_log import UseLog

PROMPT = Generate(request_id="r", prompt=[1, 2], sampling=SamplingParams(max_tokens=100, seed=3))


class Letters:
    """A detokenizer in which a token is a character."""

    def push(self, token_ids):
        return "".join(map(chr, token_ids))

    def flush(self):
        return ""


class Engine:
    """Delivers what the test says, when it says so."""

    def __init__(self):
        self.generations = []
        self.aborted = []

    def generate(self, request):
        self.generations.append(Generation(request, self.aborted.append))
        return self.generations[-1]

    def deliver(self, index, text, finish_reason=None):
        generation = self.generations[index]
        if not generation._ended:
            request_id = generation.request.request_id
            generation.deliver(TokenChunk(request_id, [ord(letter) for letter in text], None, finish_reason, 0))


class Shape:
    """Chunks as lists: what it is, and of which choice."""

    def whole(self, choices, usage):
        raise AssertionError("this is a stream")

    def opening(self):
        return b""

    def frames(self, index):
        return TextFrame(partial(Piece, index))

    def finish(self, index, answer):
        return frame(Finish(index, answer.finish_reason))

    def closing(self, usage):
        return frame(usage) + DONE

    def failure(self, error):
        return frame(error_body(error)) + DONE


class Piece(msgspec.Struct):
    index: int
    text: str


class Finish(msgspec.Struct):
    index: int
    finish_reason: str


def open_choices(count):
    engine = Engine()
    services = SimpleNamespace(engine=engine, metrics=Metrics(), tracing=NoTracing(), uses=UseLog())
    text = SimpleNamespace(detokenizer=lambda **_: Letters())
    choices = Choices(
        sequences_of([PROMPT], count),
        lambda asked: Answer(services, "chat", asked, Reading(stops=("stop",)), ACME, ResolvedModel("base"), text),
        per_prompt=count,
        kept=count,
        admission=UNLIMITED,
        meter=Meter(SeenLedger(), SimpleNamespace(), "chat", {}),
    )
    return engine, choices


async def streamed(count, steps, *, leaves=False):
    """The frames of a stream to which each of `steps` delivers all at once; then the client leaves or all end."""
    engine, choices = open_choices(count)
    gone, sent = asyncio.Event(), []

    async def receive():
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message.get("body", b""))

    async def answer():
        model = SimpleNamespace(adapters=())
        response = await respond(receive, choices, Shape(), stream=True, model=model)
        await response.to_asgi_response(None, SimpleNamespace(app=SimpleNamespace(state={})))(
            {"type": "http"}, receive, send
        )

    engine.deliver(0, "")
    answering = asyncio.ensure_future(answer())
    for step in steps:
        for index, text in step:
            engine.deliver(index % count, text)
        for _ in range(len(text)):  # now more than one step is taken at once, now a step is taken before the next
            await asyncio.sleep(0)
    if leaves:
        gone.set()
    else:
        for index in range(count):
            engine.deliver(index, "", "length")
    await asyncio.wait_for(answering, 10)
    return engine, b"".join(sent).decode().split("\n\n")


STEPS = st.lists(
    st.lists(st.tuples(st.integers(0, 4), st.text("stop", max_size=5)), min_size=1, max_size=4), max_size=8
)


@given(count=st.integers(1, 5), steps=STEPS)
def test_each_choice_is_told_its_own_text_however_they_interleave(count, steps):
    """Up to its stop string, then its reason to end and no more; one [DONE] after the last."""
    engine, frames = asyncio.run(streamed(count, steps))

    *chunks, usage, done, rest = frames
    assert (done, rest) == ("data: [DONE]", "")
    assert "total_tokens" in usage
    told = [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]
    for index in range(count):
        said = "".join(text for step in steps for to, text in step if to % count == index)
        *pieces, finish = [chunk for chunk in told if chunk["index"] == index]
        assert "".join(piece["text"] for piece in pieces) == said.split("stop")[0]
        assert finish["finish_reason"] == ("stop" if "stop" in said else "length")
    assert set(engine.aborted) <= {generation.request.request_id for generation in engine.generations}


@given(count=st.integers(1, 5), steps=STEPS)
def test_a_client_that_leaves_aborts_all_that_run(count, steps):
    """Whatever has come until then."""
    engine, frames = asyncio.run(streamed(count, steps, leaves=True))

    assert set(engine.aborted) == {generation.request.request_id for generation in engine.generations}
    assert "data: [DONE]" not in frames or all(generation._ended for generation in engine.generations)


def test_a_stream_does_not_begin_before_its_first_choice():
    """Its headers tell what that one waited for. A failure of any choice until then is raised."""

    async def begin(first, second):
        engine, choices = open_choices(2)
        beginning = asyncio.ensure_future(choices.begin())
        await asyncio.sleep(0)
        second(engine.generations[1])
        await asyncio.sleep(0)
        assert not beginning.done() or beginning.exception()
        first(engine.generations[0])
        try:
            await beginning
        finally:
            choices.close()

    def works(generation):
        generation.deliver(TokenChunk("r", [65]))

    def fails(generation):
        generation.fail(GenerationFailed("engine_stopped", "the server is shutting down"))

    asyncio.run(begin(works, works))
    for order in ((works, fails), (fails, works)):
        try:
            asyncio.run(begin(*order))
        except GenerationFailed:
            continue
        raise AssertionError("no failure was raised")


def test_the_first_choice_is_aborted_last():
    """What waits for its prompt must not go on to compute it."""
    engine, choices = open_choices(3)
    choices.close()
    assert engine.aborted == ["r-2", "r-1", "r"]


def test_choices_are_independent():
    """What one choice draws says nothing of what another one does: chi-square of pairs of draws over 4,000 seeds."""
    table = np.zeros((4, 4))
    for seed in range(4000):
        asked = msgspec.structs.replace(PROMPT, sampling=SamplingParams(max_tokens=1, seed=seed))
        first, second = (uniform(sequence.sampling.seed, 0) for sequence in sequences_of([asked], 2))
        table[int(first * 4), int(second * 4)] += 1

    mean = table.sum() / table.size
    statistic, freedom = ((table - mean) ** 2 / mean).sum(), table.size - 1
    assert torch.special.gammaincc(torch.tensor(freedom / 2), torch.tensor(statistic / 2)) > 1e-3


def test_choices_of_one_seed_draw_on_their_own():
    """Each has a seed of its own that follows from the request's; a prompt in a list has those that it has alone."""
    asked = msgspec.structs.replace(PROMPT, sampling=SamplingParams(max_tokens=1, seed=7))
    alone = [sequence.sampling.seed for sequence in sequences_of([asked], 3)]
    among_others = [sequence.sampling.seed for sequence in sequences_of([asked, asked], 3)]

    assert alone[0] == 7
    assert len(set(alone)) == 3
    assert all(0 <= seed < 1 << 63 for seed in alone)
    assert among_others == alone * 2

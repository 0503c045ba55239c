"""The load client, against servers that answer what a server may answer, cut where a network may cut it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import asynccontextmanager

import pytest
from http_load import Load, Outcome, percentile, request_bytes, run_load

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
PIECES = [{"choices": [{"text": text, "index": 0}]} for text in ("Some", " text", "")]
USAGE = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}}


def events(*bodies: object) -> bytes:
    return b"".join(f"data: {json.dumps(body)}\n\n".encode() for body in bodies)


ANSWER = HEAD + events(*PIECES, USAGE) + b"data: [DONE]\n\n"


@asynccontextmanager
async def serving(answers: Sequence[bytes], *, piece: int = 1 << 20, hang: bool = False):
    """Connection n is answered with answers[n], `piece` bytes at a time; its request is read whole first."""
    remaining, requests = iter(answers), []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        requests.append((head.decode(), json.loads(await reader.readexactly(length))))
        data = next(remaining)
        for start in range(0, len(data), piece):
            writer.write(data[start : start + piece])
            await writer.drain()
        if hang:
            await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", requests


def load(answers: Sequence[bytes], *, piece: int = 1 << 20, hang: bool = False, **options) -> tuple[Outcome, list]:
    async def run() -> tuple[Outcome, list]:
        async with serving(answers, piece=piece, hang=hang) as (url, requests):
            sizes = {"requests": len(answers), "concurrency": 2, "prompt_len": 5, "output_len": 2}
            return await run_load(Load(url, ["a", "b"], **sizes | options)), requests

    return asyncio.run(run())


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_tokens_are_the_servers_usage_however_the_stream_is_cut(piece: int) -> None:
    outcome, _ = load([ANSWER] * 3, piece=piece)

    assert outcome.failures == []
    assert (outcome.prompt_tokens, outcome.output_tokens) == (15, 6)


def test_a_request_has_one_ttft_one_tpot_and_a_gap_between_each_two_texts() -> None:
    outcome, _ = load([ANSWER] * 3)

    assert [len(times) for times in (outcome.ttft, outcome.tpot, outcome.itl)] == [3, 3, 3]


def test_chunked_bodies_are_read() -> None:
    body = ANSWER.removeprefix(HEAD)
    chunked = HEAD.replace(b"connection: close", b"transfer-encoding: chunked")
    for start in range(0, len(body), 10):
        part = body[start : start + 10]
        chunked += f"{len(part):x}\r\n".encode() + part + b"\r\n"
    outcome, _ = load([chunked + b"0\r\n\r\n"])

    assert (outcome.failures, outcome.output_tokens) == ([], 2)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 7\r\n\r\nno such", "status 404: no such"),
        (HEAD + events(*PIECES), "closed before"),
        (HEAD + events(PIECES[0], {"error": {"message": "gone"}}), "gone"),
        (HEAD + events(USAGE) + b"data: [DONE]\n\n", "no text"),
        (HEAD + b"data: {nonsense\n\n", "cannot be read"),
        (b"nonsense\r\n\r\n", "cannot be read"),
    ],
)
def test_an_answer_that_is_not_whole_counts_as_failed_and_not_as_tokens(answer: bytes, reason: str) -> None:
    outcome, _ = load([answer, ANSWER])

    assert len(outcome.failures) == 1
    assert reason in outcome.failures[0]
    assert outcome.output_tokens == 2


def test_the_run_ends_by_itself_and_what_is_missing_has_failed() -> None:
    outcome, _ = load([HEAD] * 3, hang=True, max_seconds=0.2)

    assert outcome.failures == ["not answered within 0.2 seconds"] * 3


def test_a_server_that_is_not_there_fails_every_request() -> None:
    outcome = asyncio.run(run_load(Load("http://127.0.0.1:1", ["a"], 2, 1, 5, 2)))

    assert len(outcome.failures) == 2
    assert "cannot connect" in outcome.failures[0]


def test_requests_ask_the_models_in_turn_with_prompts_of_the_length_and_the_key() -> None:
    _, requests = load([ANSWER] * 4, concurrency=1, api_key="secret")

    assert [body["model"] for _, body in requests] == ["a", "b", "a", "b"]
    assert {len(body["prompt"]) for _, body in requests} == {5}
    assert all(body["ignore_eos"] and body["max_tokens"] == 2 for _, body in requests)
    assert all("authorization: Bearer secret" in head for head, _ in requests)


def test_prompts_depend_on_the_seed_and_the_number_alone() -> None:
    one = Load("http://host", ["a"], 4, 2, 8, 8)

    assert request_bytes(one, 0) == request_bytes(one, 0)
    assert request_bytes(one, 0) != request_bytes(one, 1)


def test_percentiles_lie_between_neighbours() -> None:
    assert percentile([1.0, 2.0, 3.0], 50) == 2.0
    assert percentile([1.0, 2.0], 90) == pytest.approx(1.9)
    assert percentile([4.0], 99) == 4.0

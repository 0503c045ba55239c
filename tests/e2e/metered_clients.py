"""Clients that count what they receive, to the last byte that their connection holds, and leave when they like.

One that leaves says so by ending its half of the connection, and then reads on: what was handed to the connection
before the server saw it still arrives, and is received.
"""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass
from typing import Any, Literal

import httpx

Fate = Literal["whole", "left", "cut", "failed", "refused"]
"""whole: all was received; left: the client went; cut: the server ended the connection; failed: an error came in the
stream; refused: an error came instead of an answer."""


@dataclass
class Received:
    """By one request. tokens: of the completion, as the server told them with every event. prompt_tokens: None: they
    were not told."""

    request_id: str
    fate: Fate = "cut"
    status: int | None = None
    tokens: int = 0
    prompt_tokens: int | None = None


def body_of(draw: random.Random) -> tuple[str, dict[str, Any]]:
    """A path and a request: chat or completion, one choice or two, streamed or whole, of up to 40 tokens."""
    fields: dict[str, Any] = {"model": draw.choice(["tiny", "bot"]), "max_tokens": draw.randint(1, 40)}
    fields |= {"n": draw.choice([1, 1, 2]), "temperature": 1, "ignore_eos": True}
    if draw.random() < 0.75:
        fields |= {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    text = "x" * draw.randint(1, 60)
    if draw.random() < 0.5:
        return "/v1/completions", fields | {"prompt": text}
    return "/v1/chat/completions", fields | {"messages": [{"role": "user", "content": text}]}


async def send(url: httpx.URL, key: str, received: Received, draw: random.Random) -> None:
    """One request on a connection of its own; three of ten leave early. Raises OSError where no server listens."""
    path, fields = body_of(draw)
    body = json.dumps(fields).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {url.host}\r\nauthorization: Bearer {key}\r\n"
        f"x-request-id: {received.request_id}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(url.host, url.port)
    leaves_after = draw.randint(0, 12) if draw.random() < 0.3 else None
    try:
        writer.write(head.encode() + body)
        await _receive(reader, writer, received, leaves_after)
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def _receive(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, received: Received, leaves_after: int | None
) -> None:
    """leaves_after: so many events; of an answer in one piece it waits so many milliseconds."""
    leaving = None
    if leaves_after is not None:
        loop = asyncio.get_running_loop()
        leaving = loop.call_later(leaves_after / 100, _leave, writer, received)
    try:
        headers = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        received.status = int(headers.split(" ", 2)[1])
        if "text/event-stream" in headers:
            await _receive_events(reader, writer, received, leaves_after)
            return
        length = int(headers.split("content-length: ")[1].split("\r\n")[0])
        answer = json.loads(await reader.readexactly(length))
        if received.status == 200:
            received.tokens, received.prompt_tokens = _usage(answer)
        if received.fate != "left":
            received.fate = "whole" if received.status == 200 else "refused"
    finally:
        if leaving is not None:
            leaving.cancel()


async def _receive_events(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, received: Received, leaves_after: int | None
) -> None:
    told: dict[int, int] = {}
    events = 0
    while size := int(await reader.readuntil(b"\r\n"), 16):
        data = await reader.readexactly(size + 2)
        for line in data.split(b"\n"):
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                received.fate = "failed"
                return
            for choice in event["choices"]:
                told[choice["index"]], received.prompt_tokens = _usage(event)
            received.tokens = sum(told.values())
            events += 1
        if events == leaves_after:
            _leave(writer, received)
    if received.fate != "left":
        received.fate = "whole"


def _usage(answer: dict[str, Any]) -> tuple[int, int]:
    return answer["usage"]["completion_tokens"], answer["usage"]["prompt_tokens"]


def _leave(writer: asyncio.StreamWriter, received: Received) -> None:
    received.fate = "left"
    if not writer.is_closing():
        writer.write_eof()

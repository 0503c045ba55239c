"""Load any OpenAI-compatible server with streamed completions in a closed loop, and time what comes back.

Prompts are random token ids (`"prompt": [17, 4711, ...]`, which Loraplex and vLLM both take), so that every server gets
exactly the same lengths and nobody's tokenizer plays a part; outputs have a fixed length (`ignore_eos`), greedy.
Tokens are counted by the server's own usage. The client shares the cores with the server: one asyncio loop, a
connection per request, HTTP parsed by httptools, events decoded by msgspec; no client library in between.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import click
from http_stream import Stream
from machine import machine
from report import open_console, print_table, write_json

VOCABULARY = range(100, 32_000)
"""Ids that prompts are drawn from: in every tokenizer of the last years, and none of its special tokens."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent where. `models` are asked in turn. Lengths in tokens."""

    url: str
    models: Sequence[str]
    requests: int
    concurrency: int
    prompt_len: int
    output_len: int
    api_key: str = "none"
    max_seconds: float = 300.0
    seed: int = 0


@dataclass(slots=True)
class Outcome:
    """What came back. Times in seconds; of every request that succeeded one TTFT, and one TPOT if it had two tokens."""

    seconds: float = 0.0
    client_cpu_seconds: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    ttft: list[float] = field(default_factory=list)
    tpot: list[float] = field(default_factory=list)
    itl: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, stream: Stream) -> None:
        if stream.failure is None and not stream.arrivals:
            stream.failure = "the answer had no text"
        if stream.failure is not None:
            self.failures.append(stream.failure)
            return
        assert stream.usage is not None
        self.prompt_tokens += stream.usage.prompt_tokens
        self.output_tokens += stream.usage.completion_tokens
        arrivals = stream.arrivals
        self.ttft.append(arrivals[0] - stream.started)
        self.itl += [after - before for before, after in pairwise(arrivals)]
        if stream.usage.completion_tokens > 1:
            self.tpot.append((arrivals[-1] - arrivals[0]) / (stream.usage.completion_tokens - 1))

    def figures(self) -> dict[str, float]:
        """Rates per second, times in milliseconds; what was never seen is left out."""
        found = {
            "output_tok_s": self.output_tokens / self.seconds,
            "total_tok_s": (self.prompt_tokens + self.output_tokens) / self.seconds,
            "requests_ok": float(len(self.ttft)),
            "requests_failed": float(len(self.failures)),
            "seconds": self.seconds,
            "client_cpu_share": self.client_cpu_seconds / self.seconds,
        }
        for name, times in (("ttft", self.ttft), ("tpot", self.tpot), ("itl", self.itl)):
            for percent in (50, 90, 99):
                if times:
                    found[f"{name}_ms_p{percent}"] = percentile(times, percent) * 1e3
        return found


def percentile(values: Sequence[float], percent: int) -> float:
    """The value below which `percent` of the values lie, between neighbours linearly."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


async def run_load(load: Load) -> Outcome:
    """Keep `load.concurrency` requests in flight until all are answered or `load.max_seconds` are over.

    Requests that are cut off then, or never sent, count as failures.
    """
    outcome = Outcome()
    numbers = iter(range(load.requests))
    started, cpu_started = time.perf_counter(), time.process_time()

    async def place() -> None:
        for number in numbers:
            outcome.add(await _ask(load, number))

    try:
        async with asyncio.timeout(load.max_seconds):
            await asyncio.gather(*(place() for _ in range(min(load.concurrency, load.requests))))
    except TimeoutError:
        answered = len(outcome.ttft) + len(outcome.failures)
        outcome.failures += [f"not answered within {load.max_seconds:g} seconds"] * (load.requests - answered)
    outcome.seconds = time.perf_counter() - started
    outcome.client_cpu_seconds = time.process_time() - cpu_started
    return outcome


async def _ask(load: Load, number: int) -> Stream:
    loop = asyncio.get_running_loop()
    stream = Stream(request_bytes(load, number), loop.create_future())
    server = urlsplit(load.url)
    stream.started = time.perf_counter()
    try:
        await loop.create_connection(lambda: stream, server.hostname, server.port or 80)
        await stream.done
    except OSError as error:
        stream.failure = f"cannot connect to {load.url}: {error}"
    finally:
        stream.close()
    return stream


def request_bytes(load: Load, number: int) -> bytes:
    """The whole HTTP request; prompts depend on the seed and the number alone."""
    rng = random.Random(f"{load.seed}/{number}")
    body = json.dumps(
        {
            "model": load.models[number % len(load.models)],
            "prompt": [rng.choice(VOCABULARY) for _ in range(load.prompt_len)],
            "max_tokens": load.output_len,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    server = urlsplit(load.url)
    head = (
        f"POST {server.path.rstrip('/')}/v1/completions HTTP/1.1\r\nhost: {server.netloc}\r\n"
        f"authorization: Bearer {load.api_key}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--url", default="http://127.0.0.1:8000", help="The server, without /v1.")
@click.option("--model", "models", multiple=True, required=True, help="Name to ask for; several are asked in turn.")
@click.option("--api-key", envvar="OPENAI_API_KEY", default="none", show_envvar=True)
@click.option("--requests", default=64)
@click.option("--concurrency", default=32, help="Requests in flight.")
@click.option("--prompt-len", default=64, help="Tokens.")
@click.option("--output-len", default=64, help="Tokens.")
@click.option("--warmup", default=4, help="Requests that are sent before, at most as many at once, and not counted.")
@click.option("--max-seconds", default=300.0, help="Stop then; what was not answered counts as failed.")
@click.option("--seed", default=0)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures to this file too.")
def main(
    url: str,
    models: tuple[str, ...],
    api_key: str,
    requests: int,
    concurrency: int,
    prompt_len: int,
    output_len: int,
    warmup: int,
    max_seconds: float,
    seed: int,
    json_path: Path | None,
) -> None:
    load = Load(url, models, requests, concurrency, prompt_len, output_len, api_key, max_seconds, seed)
    if warmup:
        asyncio.run(run_load(Load(url, models, warmup, warmup, prompt_len, output_len, api_key, max_seconds, seed + 1)))
    outcome = asyncio.run(run_load(load))
    figures = outcome.figures()
    console = open_console()
    title = f"{concurrency} in flight, {prompt_len} in / {output_len} out, {len(models)} model(s)"
    print_table(console, title, ("figure", "value"), [(key, f"{value:.4g}") for key, value in figures.items()])
    for failure in dict.fromkeys(outcome.failures):
        console.print(f"failed {outcome.failures.count(failure)} times: {failure}", markup=False)
    if json_path:
        write_json(json_path, machine(), figures, failures=outcome.failures)
    if outcome.failures:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

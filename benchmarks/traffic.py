"""Drive an engine inside this process: requests of fixed lengths, a closed loop, and what happened to each request."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice, pairwise

from loraplex.engine.events import SamplingParams, only
from loraplex.engine.loop import Engine


@dataclass(frozen=True, slots=True)
class Request:
    """Random tokens of this number, an answer of that number. adapter: a digest, None for the base."""

    adapter: str | None
    prompt_len: int
    output_len: int


@dataclass(slots=True)
class Traffic:
    """What one closed loop showed.

    seconds       wall time from the first step to the last
    token_times   seconds from a request's submission to each of its tokens
    lengths       of the running sequences in tokens, step by step
    decode_steps  seconds of the steps in which every place in flight got its next token and no prompt was read
    """

    concurrency: int
    prompt_tokens: int
    seconds: float = 0.0
    token_times: dict[str, list[float]] = field(default_factory=dict)
    lengths: list[list[int]] = field(default_factory=list)
    decode_steps: list[float] = field(default_factory=list)

    @property
    def output_tokens_per_second(self) -> float:
        return sum(len(times) for times in self.token_times.values()) / self.seconds

    @property
    def prompt_tokens_per_second(self) -> float:
        return self.prompt_tokens / self.seconds

    @property
    def decode_tokens_per_second(self) -> float:
        """By the median decode step; 0 when there was none."""
        return self.concurrency / statistics.median(self.decode_steps) if self.decode_steps else 0.0

    def inter_token_seconds(self) -> list[float]:
        return [b - a for times in self.token_times.values() for a, b in pairwise(times)]

    def kv_waste(self, page_tokens: int = 16) -> float:
        """One minus used over allocated KV tokens, the mean over the steps."""
        pages = [[-(-length // page_tokens) for length in step] for step in self.lengths if step]
        used = [sum(step) for step in self.lengths if step]
        return statistics.mean(1 - u / (sum(p) * page_tokens) for u, p in zip(used, pages, strict=True))


def in_turn(adapters: Iterable[str | None], count: int, prompt_len: int, output_len: int) -> list[Request]:
    """Requests of one size, adapters assigned in turn."""
    return [Request(adapter, prompt_len, output_len) for adapter in islice(cycle(adapters), count)]


def drive(
    engine: Engine,
    requests: Sequence[Request],
    concurrency: int | None = None,
    *,
    before_step: Callable[[int], None] = lambda step: None,
) -> Traffic:
    """Keep `concurrency` requests in flight, None: all of them, until all are done. Greedy, to their full lengths.

    Raises RuntimeError when a request fails. before_step: called with the number of the step.
    """
    concurrency = len(requests) if concurrency is None else concurrency
    rng = random.Random(0)
    prompts = [[rng.randrange(100, 32_000) for _ in range(request.prompt_len)] for request in requests]
    traffic = Traffic(concurrency, sum(map(len, prompts)))
    submitted: list[float] = []
    finished = steps = 0
    started = time.perf_counter()
    while finished < len(requests):
        for number in range(len(submitted), min(finished + concurrency, len(requests))):
            params = SamplingParams(max_tokens=requests[number].output_len, temperature=0.0, ignore_eos=True)
            submitted.append(time.perf_counter())
            engine.submit(str(number), prompts[number], params, adapters=only(requests[number].adapter))
        before_step(steps)
        before = time.perf_counter()
        result = engine.step()
        now = time.perf_counter()
        steps += 1
        if result.failures:
            raise RuntimeError(f"{result.failures[0].code}: {result.failures[0].message}")
        if not result.ran:
            engine.wait(1.0)
        elif _is_decode(engine, concurrency):
            traffic.decode_steps.append(now - before)
        for chunk in result.chunks:
            times = traffic.token_times.setdefault(chunk.request_id, [])
            times.extend([now - submitted[int(chunk.request_id)]] * len(chunk.token_ids))
            finished += chunk.finish_reason is not None
        traffic.lengths.append([s.prompt_tokens + s.generated_tokens for s in engine.running()])
    traffic.seconds = time.perf_counter() - started
    return traffic


def _is_decode(engine: Engine, concurrency: int) -> bool:
    step = engine.recent_steps[-1]
    return step.prefill_tokens == 0 and step.decode_tokens == concurrency

"""Requests for many adapters, one each, beside a popular adapter whose requests fill the server: how long they wait.

What is promised of it is `MAX_OVERTAKEN` in engine/sequence.py, in admissions; here it is in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

from http_load import percentile
from traffic import Request, drive

from loraplex.engine.loop import Engine

HOT_PER_COLD = 8
PROMPT_TOKENS = 64
OUTPUT_TOKENS = range(12, 21)
"""In turn: were all answers of one length, they would end together, and the hot adapter be free by itself."""


def waits(engine: Engine, hot: str, cold: Sequence[str], places: int) -> dict[str, float]:
    """Milliseconds to the first token, of the hot adapter's requests and of the cold ones': p50, p99 and the longest.

    A closed loop of twice as many requests as there are places in a step, so that as many wait as run. The hot adapter
    is on the device before, the cold ones are in no memory.
    """
    drive(engine, [Request(hot, PROMPT_TOKENS, 2)] * places)
    asked = [adapter for digest in cold for adapter in (*[hot] * HOT_PER_COLD, digest)]
    requests = [
        Request(adapter, PROMPT_TOKENS, length) for adapter, length in zip(asked, cycle(OUTPUT_TOKENS), strict=False)
    ]
    run = drive(engine, requests, 2 * places)
    figures = {}
    for who, is_hot in (("hot", True), ("cold", False)):
        ttft = [run.token_times[str(n)][0] * 1e3 for n, adapter in enumerate(asked) if (adapter == hot) == is_hot]
        figures |= {f"{who}_ttft_p{percent}_ms": percentile(ttft, percent) for percent in (50, 99)}
        figures[f"{who}_ttft_max_ms"] = max(ttft)
    return figures

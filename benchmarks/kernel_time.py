"""How much of an engine's time is spent inside kernels: the same kernels, with a stopwatch around every operation.

Right on a CPU, where an operation has ended when it returns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from unittest import mock

from loraplex.engine import build
from loraplex.engine.build import BuiltEngine
from loraplex.engine.settings import EngineSettings

OPERATIONS = (
    "rms_norm",
    "add_rms_norm",
    "rotary",
    "write_kv",
    "paged_attention",
    "silu_and_mul",
    "add_lora",
    "sample",
)


class Stopwatch:
    """Seconds spent inside what it has wrapped, by operation, since the last `reset`."""

    def __init__(self) -> None:
        self.by_operation: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        return sum(self.by_operation.values())

    def reset(self) -> None:
        self.by_operation.clear()

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = call(*args, **kwargs)
            taken = time.perf_counter() - started
            self.by_operation[name] = self.by_operation.get(name, 0.0) + taken
            return result

        return timed


def build_timed_engine(settings: EngineSettings) -> tuple[BuiltEngine, Stopwatch]:
    """An engine whose kernels, products included, run under the stopwatch. The stopwatch itself costs about a third of
    a microsecond per operation, which counts as time outside."""
    stopwatch = Stopwatch()
    choose = build.choose_kernels

    def choose_timed(*args: Any, **kwargs: Any) -> Any:
        kernels, reason = choose(*args, **kwargs)
        for name in OPERATIONS:
            setattr(kernels, name, stopwatch.wrap(name, getattr(kernels, name)))
        prepare = kernels.linear
        kernels.linear = lambda weight, bias: stopwatch.wrap("products", prepare(weight, bias))
        return kernels, reason

    with mock.patch.object(build, "choose_kernels", choose_timed):  # products are prepared while the engine is built
        return build.build_engine(settings), stopwatch

"""The engine's own numbers, as its last heartbeat told them, and whether there is one. Read at the scrape."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from loraplex.engine.client import EngineClient
from loraplex.engine.events import STEP_SECONDS, Status

GAUGES = (
    ("running", "running_sequences", "Sequences in the batch."),
    ("waiting", "waiting_sequences", "Sequences that wait for room."),
    ("pages_total", "kv_pages", "KV pages there are."),
    ("pages_used", "kv_pages_used", "KV pages that sequences hold."),
    ("pages_cached", "kv_pages_cached", "Free KV pages that hold reusable prefixes."),
    ("adapter_device_bytes_used", "adapter_device_bytes_used", "Adapter memory in use on the device."),
    ("adapter_pinned_bytes", "adapter_pinned_bytes", "Adapter memory on the device that pins keep."),
    ("adapter_host_bytes_used", "adapter_host_bytes_used", "Adapter memory in use in the host cache."),
)
COUNTERS = (
    ("steps", "steps", "Steps run."),
    ("preemptions", "preemptions", "Sequences that gave their pages back to be recomputed."),
    ("prompt_tokens", "engine_prompt_tokens", "Prompt tokens, cached ones included."),
    ("cached_prompt_tokens", "engine_cached_prompt_tokens", "Prompt tokens found in the prefix cache."),
    ("generated_tokens", "engine_generated_tokens", "Tokens sampled."),
    ("drafted_tokens", "engine_drafted_tokens", "Tokens tried ahead by prompt lookup."),
    ("accepted_tokens", "engine_accepted_tokens", "Tokens tried ahead that were right."),
    ("adapter_loads", "adapter_loads", "Adapters brought to the device."),
    ("adapter_evictions", "adapter_evictions", "Adapters evicted from the device."),
)


class EngineMetrics(Collector):
    """While the engine is down only that is told: what it last said of itself is no longer so."""

    def __init__(self, engine: EngineClient, adapter_host_bytes: int) -> None:
        """adapter_host_bytes: what adapters may take of the host's memory."""
        self._engine = engine
        self._adapter_host_bytes = adapter_host_bytes

    def describe(self) -> Iterator[Metric]:
        """Nothing beforehand: what there is depends on the engine being up."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        engine = self._engine
        yield GaugeMetricFamily("loraplex_engine_up", "Whether the engine process serves.", value=engine.is_alive)
        yield CounterMetricFamily("loraplex_engine_restarts", "Times it was started again.", value=engine.restarts)
        silence = engine.seconds_since_progress()
        yield GaugeMetricFamily("loraplex_engine_silent_seconds", "Since its step loop showed itself.", value=silence)
        ready = engine.ready
        told = {"device": ready.device, "dtype": ready.dtype, "architecture": ready.architecture}
        yield InfoMetricFamily("loraplex_engine", "What the engine runs on.", value=told)
        yield GaugeMetricFamily(
            "loraplex_adapter_device_bytes", "Adapter memory there is on the device.", value=ready.adapter_device_bytes
        )
        yield GaugeMetricFamily(
            "loraplex_adapter_host_bytes", "Adapter memory there may be in the host cache.", self._adapter_host_bytes
        )
        if engine.is_alive and engine.status is not None:
            yield from _of(engine.status)


def _of(status: Status) -> Iterator[Metric]:
    for field, name, text in GAUGES:
        yield GaugeMetricFamily(f"loraplex_{name}", text, value=getattr(status, field))
    for field, name, text in COUNTERS:
        yield CounterMetricFamily(f"loraplex_{name}", text, value=getattr(status, field))
    bounds = [*(str(float(seconds)) for seconds in STEP_SECONDS), "+Inf"]
    buckets = list(zip(bounds, accumulate(status.steps_by_seconds), strict=True))
    yield HistogramMetricFamily(
        "loraplex_step_seconds", "Steps: one forward pass of the batch.", buckets=buckets, sum_value=status.step_seconds
    )

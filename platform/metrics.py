"""Numbers for Prometheus: requests as they end, and the engine's own counters as they stand at the scrape.

No label holds a tenant, adapter or key: `/metrics` is public, and those names are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from loraplex.engine.messages import Status

LATENCY_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
LOAD_SECONDS = (0, *LATENCY_SECONDS)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Owns its registry, so that a process may hold several."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._http_requests = Counter(
            "loraplex_http_requests",
            "HTTP responses begun, by route template.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._requests = Counter(
            "loraplex_requests",
            "Inference requests ended, each choice of them, by reason.",
            ("endpoint", "finish_reason"),
            registry=self.registry,
        )
        self._tokens = Counter(
            "loraplex_tokens",
            "Tokens of ended requests; prompt tokens include cached ones.",
            ("kind",),
            registry=self.registry,
        )
        self._first_token = self._histogram("time_to_first_token", "Until the first token.", LATENCY_SECONDS)
        self._next_token = self._histogram("time_per_output_token", "Between tokens, mean of a request.", TOKEN_SECONDS)
        self._duration = self._histogram("request_duration", "Whole inference request.", LATENCY_SECONDS)
        self._queue = self._histogram("queue", "Until the first step, without loads.", LATENCY_SECONDS)
        self._load = self._histogram("adapter_load", "Requests' waits for their adapters, 0 where warm.", LOAD_SECONDS)

    def watch_engine(self, read: Callable[[], Status | None]) -> None:
        """Export the engine's counters, as `read` gives them at each scrape."""
        self.registry.register(_EngineCollector(read))

    def watch_ledger(self, waiting_bytes: Callable[[], float], records: Callable[[], float]) -> None:
        """Export how far the usage ledger is, as these tell it at each scrape."""
        self.registry.register(_LedgerCollector(waiting_bytes, records))

    def http_response(self, method: str, route: str, status: int) -> None:
        """`route` is a template such as /api/v1/adapters/{name}, never a path: paths have no end."""
        self._http_requests.labels(method, route, str(status)).inc()

    def request_started(self, queue_seconds: float, load_seconds: float | None) -> None:
        """An inference request is in a step for the first time. `load_seconds` None: it has no adapter."""
        self._queue.observe(queue_seconds)
        if load_seconds is not None:
            self._load.observe(load_seconds)

    def request_finished(
        self,
        endpoint: str,
        finish_reason: str,
        prompt_tokens: int,
        cached_tokens: int,
        completion_tokens: int,
        ttft_seconds: float | None,
        total_seconds: float,
    ) -> None:
        """Count one choice of an inference request, however it ended. `ttft_seconds` None: there was no token."""
        self._requests.labels(endpoint, finish_reason).inc()
        self._tokens.labels("prompt").inc(prompt_tokens)
        self._tokens.labels("cached").inc(cached_tokens)
        self._tokens.labels("completion").inc(completion_tokens)
        self._duration.observe(total_seconds)
        if ttft_seconds is None:
            return
        self._first_token.observe(ttft_seconds)
        if completion_tokens > 1:
            self._next_token.observe((total_seconds - ttft_seconds) / (completion_tokens - 1))

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"loraplex_{name}_seconds", text, buckets=buckets, registry=self.registry)


class _LedgerCollector(Collector):
    def __init__(self, waiting_bytes: Callable[[], float], records: Callable[[], float]) -> None:
        self._waiting_bytes = waiting_bytes
        self._records = records

    def collect(self) -> Iterator[Metric]:
        text = "Usage that the database does not have yet."
        yield GaugeMetricFamily("loraplex_ledger_waiting_bytes", text, value=self._waiting_bytes())
        text = "Requests that were written into the usage ledger."
        yield CounterMetricFamily("loraplex_ledger_records", text, value=self._records())


class _EngineCollector(Collector):
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

    def __init__(self, read: Callable[[], Status | None]) -> None:
        self._read = read

    def describe(self) -> Iterator[Metric]:
        """Nothing beforehand: what there is depends on the engine being up."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        status = self._read()
        if status is None:
            return
        for field, name, text in self.GAUGES:
            yield GaugeMetricFamily(f"loraplex_{name}", text, value=getattr(status, field))
        for field, name, text in self.COUNTERS:
            yield CounterMetricFamily(f"loraplex_{name}", text, value=getattr(status, field))

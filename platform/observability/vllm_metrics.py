"""vLLM's names for the same facts: what routers of Kubernetes' Gateway API, dashboards and autoscalers look for.

Read at the scrape from our own metrics, so they cost requests nothing; where we do not have vLLM's fact, the name is
left out. Buckets are ours. Counters of the engine start anew with its process.
"""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Callable, Iterator

from prometheus_client import Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from loraplex.engine.client import EngineClient
from loraplex.engine.events import Status
from loraplex.platform.metrics import Metrics

MAX_ADAPTERS = 256
"""In the label of those that run, and of those that wait."""

FINISHED = {"stop": "stop", "length": "length", "client_closed": "abort", "error": "error"}
"""vLLM's word for our reasons to end."""

Told = tuple[str, str, Callable[[Status], float]]
"""A name, what it is, and what of the engine's status it is."""

GAUGES: tuple[Told, ...] = (
    ("num_requests_running", "Sequences in the batch.", lambda status: status.running),
    ("num_requests_waiting", "Sequences that wait for room.", lambda status: status.waiting),
    ("kv_cache_usage_perc", "Part of the KV pages in use.", lambda status: status.pages_used / status.pages_total),
)
COUNTERS: tuple[Told, ...] = (
    ("num_preemptions", "Sequences that gave their pages back to be recomputed.", lambda status: status.preemptions),
    ("prompt_tokens", "Prompt tokens, cached ones included.", lambda status: status.prompt_tokens),
    ("generation_tokens", "Tokens sampled.", lambda status: status.generated_tokens),
    ("prefix_cache_queries", "Prompt tokens looked for in the prefix cache.", lambda status: status.prompt_tokens),
    ("prefix_cache_hits", "Prompt tokens found in it.", lambda status: status.cached_prompt_tokens),
)


class VllmMetrics(Collector):
    """For one base model and one engine."""

    def __init__(self, metrics: Metrics, engine: EngineClient, model_name: str, max_num_seqs: int) -> None:
        """max_num_seqs: sequences in one step, which may have as many adapters."""
        self._metrics = metrics
        self._engine = engine
        self._labels = {"model_name": model_name, "engine": "0"}
        self._max_lora = max_num_seqs
        self._histograms = (
            (metrics.first_token, "time_to_first_token_seconds"),
            (metrics.duration, "e2e_request_latency_seconds"),
            (metrics.queue, "request_queue_time_seconds"),
            (metrics.next_token, "request_time_per_output_token_seconds"),
        )

    def describe(self) -> Iterator[Metric]:
        """Nothing beforehand: what there is depends on the engine being up."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        if self._engine.is_alive and (status := self._engine.status) is not None:
            yield from self._of(status)
        yield self._cache_config()
        yield self._lora_requests()
        yield self._successes()
        for histogram, name in self._histograms:
            yield self._renamed(histogram, f"vllm:{name}")

    def _of(self, status: Status) -> Iterator[Metric]:
        for name, text, value in GAUGES:
            yield _gauge(name, text, self._labels, value(status))
        for name, text, value in COUNTERS:
            counter = CounterMetricFamily(f"vllm:{name}", text, labels=tuple(self._labels))
            counter.add_metric(tuple(self._labels.values()), value(status))
            yield counter

    def _cache_config(self) -> Metric:
        ready = self._engine.ready
        config = {"block_size": str(ready.page_tokens), "num_gpu_blocks": str(ready.num_pages), "engine": "0"}
        return _gauge("cache_config_info", "Tokens of a KV page, and pages.", config, 1)

    def _lora_requests(self) -> Metric:
        """One sample, whose value is the time: a router takes the newest there is."""
        in_hand = self._metrics.in_hand
        told = {
            "max_lora": str(self._max_lora),
            "running_lora_adapters": ",".join(in_hand.adapters(running=True)[:MAX_ADAPTERS]),
            "waiting_lora_adapters": ",".join(in_hand.adapters(running=False)[:MAX_ADAPTERS]),
        }
        text = "Adapters of requests that run and that wait; the value is the time."
        return _gauge("lora_requests_info", text, told, time.time())

    def _successes(self) -> Metric:
        """Each reason from the start, so that the first one of a kind is an increase."""
        tally = Tally[str](dict.fromkeys(FINISHED.values(), 0))
        for metric in self._metrics.requests.collect():
            for sample in metric.samples:
                if sample.name.endswith("_total"):
                    tally[FINISHED.get(reason := sample.labels["finish_reason"], reason)] += int(sample.value)
        successes = CounterMetricFamily(
            "vllm:request_success", "Requests ended, by reason.", labels=(*self._labels, "finished_reason")
        )
        for reason, count in tally.items():
            successes.add_metric((*self._labels.values(), reason), count)
        return successes

    def _renamed(self, histogram: Histogram, name: str) -> Metric:
        (ours,) = histogram.collect()
        renamed = Metric(name, ours.documentation, ours.type)
        for sample in ours.samples:
            if not sample.name.endswith("_created"):
                labels = {**self._labels, **sample.labels}
                renamed.samples.append(Sample(sample.name.replace(ours.name, name), labels, sample.value))
        return renamed


def _gauge(name: str, text: str, labels: dict[str, str], value: float) -> Metric:
    gauge = GaugeMetricFamily(f"vllm:{name}", text, labels=tuple(labels))
    gauge.add_metric(tuple(labels.values()), value)
    return gauge

"""Inference requests that the engine has and has not answered: how many wait, since when, and with which adapters.

Knows requests of this server; knows nothing of what ends them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from loraplex.engine.generation import Generation
from loraplex.platform.observability.owners import Owner


@dataclass(frozen=True, slots=True, eq=False)
class InHand:
    """One sequence, from when the engine was asked."""

    owner: Owner
    generation: Generation
    begun_at: float

    @property
    def is_running(self) -> bool:
        """It has been in a step."""
        return self.generation.started is not None


class RequestsInHand(Collector):
    """For the tasks of one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._requests: dict[InHand, None] = {}  # in order of arrival

    def add(self, owner: Owner, generation: Generation) -> InHand:
        request = InHand(owner, generation, self._clock())
        self._requests[request] = None
        return request

    def remove(self, request: InHand) -> None:
        del self._requests[request]

    def adapters(self, *, running: bool) -> list[str]:
        """Labels of the adapters of those that run, or of those that wait, each once."""
        wanted = (request.owner.adapters for request in self._requests if request.is_running == running)
        return list(dict.fromkeys(adapter for adapters in wanted for adapter in adapters))

    def describe(self) -> Iterator[Metric]:
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        waiting = [request for request in self._requests if not request.is_running]
        states = GaugeMetricFamily(
            "loraplex_requests_in_hand", "Inference requests that the engine has, by state.", labels=("state",)
        )
        states.add_metric(("waiting",), len(waiting))
        states.add_metric(("running",), len(self._requests) - len(waiting))
        yield states
        age = self._clock() - waiting[0].begun_at if waiting else 0.0
        yield GaugeMetricFamily(
            "loraplex_oldest_waiting_seconds", "How long the oldest request waits that was in no step.", value=age
        )

"""Series of the tenants and adapters that use most, the others together as `other`: their number is bounded, whatever
tenants do.

A counter may only rise. So a tenant's series counts from when it got one, and `other` all that was used without: the
rates of all series together are right at any time. Knows labels; knows no tenant from another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from loraplex.platform.catalog import ResolvedModel
from loraplex.platform.tenants import Principal

Labels = Literal["ids", "names"]
Key = tuple[str, ...]

REVIEW_SECONDS = 60.0
"""Between two looks at who has series. What counts for it is halved at each."""
MAX_REMEMBERED = 4096
"""Of those without series, whose use is remembered."""
OTHER = "other"


class Owner(NamedTuple):
    """Whose a request is, in labels: its tenant, and its adapters, none for the base."""

    tenant: str
    adapters: tuple[str, ...]

    @classmethod
    def of(cls, principal: Principal, model: ResolvedModel, labels: Labels) -> Owner:
        versions = [adapter.version for adapter in model.adapters]
        if labels == "ids":
            return cls(principal.tenant_id or "", tuple([version.adapter_id for version in versions]))
        return cls(principal.tenant or "", tuple([f"{version.tenant}/{version.name}" for version in versions]))


class Used(NamedTuple):
    """Prompt tokens include cached ones."""

    requests: int = 0
    prompt: int = 0
    cached: int = 0
    completion: int = 0

    @property
    def weight(self) -> int:
        """One number, by which to compare."""
        return self.requests + self.prompt + self.completion

    def plus(self, more: Used) -> Used:
        return Used(
            self.requests + more.requests,
            self.prompt + more.prompt,
            self.cached + more.cached,
            self.completion + more.completion,
        )


@dataclass(slots=True)
class _Use:
    """lately: the weight of what was used, older halved again and again. told: since it has series; None: it has
    none."""

    lately: float = 0.0
    told: Used | None = None


class TopUsers:
    """Counts for everybody, and has series for `most` of them."""

    def __init__(self, most: int, num_labels: int, clock: Callable[[], float]) -> None:
        self._most = most
        self._clock = clock
        self._uses: dict[Key, _Use] = {}
        self._num_told = 0
        self._other_key = (OTHER,) * num_labels
        self._other = Used()
        self._review_at = clock() + REVIEW_SECONDS

    def count(self, key: Key, used: Used) -> None:
        use = self._uses.get(key)
        if use is None and len(self._uses) < MAX_REMEMBERED + self._most:
            use = self._uses[key] = _Use()
            if self._num_told < self._most:
                use.told = Used()
                self._num_told += 1
        if use is None:
            self._other = self._other.plus(used)
            return
        use.lately += used.weight
        if use.told is None:
            self._other = self._other.plus(used)
        else:
            use.told = use.told.plus(used)

    def series(self) -> list[tuple[Key, Used]]:
        """What is to be told now, `other` last. What loses its series is told once more, so that nothing is lost."""
        told = [(key, use.told) for key, use in self._uses.items() if use.told is not None]
        if self._clock() >= self._review_at:
            self._review_at = self._clock() + REVIEW_SECONDS
            self._review()
        return [*told, (self._other_key, self._other)]

    def _review(self) -> None:
        """Who uses twice as much as one with series gets these; so they do not change hands for little."""
        told = sorted((use for use in self._uses.values() if use.told is not None), key=lambda use: use.lately)
        others = sorted((use for use in self._uses.values() if use.told is None), key=lambda use: -use.lately)
        for least, most in zip(told, others, strict=False):
            if most.lately <= 2 * least.lately:
                break
            least.told, most.told = None, Used()
        for use in self._uses.values():
            use.lately /= 2
        self._uses = {key: use for key, use in self._uses.items() if use.told is not None or use.lately >= 1}


class OwnerMetrics(Collector):
    """By tenant, and by tenant and adapter. A request with several adapters counts for each of them."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        """most: tenants, and adapters, with series of their own; 0: nothing is counted."""
        self._most = most
        self._tenants = TopUsers(most, 1, clock)
        self._adapters = TopUsers(most, 2, clock)

    def count(self, owner: Owner, used: Used) -> None:
        if not self._most:
            return
        self._tenants.count((owner.tenant,), used)
        for adapter in owner.adapters:
            self._adapters.count((owner.tenant, adapter), used)

    def describe(self) -> Iterator[Metric]:
        return iter(_families("tenant", ("tenant",), ()))

    def collect(self) -> Iterator[Metric]:
        yield from _families("tenant", ("tenant",), self._tenants.series())
        yield from _families("adapter", ("tenant", "adapter"), self._adapters.series())


def _families(what: str, labels: Key, series: Iterable[tuple[Key, Used]]) -> list[Metric]:
    requests = CounterMetricFamily(f"loraplex_{what}_requests", f"Inference requests ended, by {what}.", labels=labels)
    tokens = CounterMetricFamily(f"loraplex_{what}_tokens", f"Their tokens, by {what}.", labels=(*labels, "kind"))
    for key, used in series:
        requests.add_metric(key, used.requests)
        for kind in ("prompt", "cached", "completion"):
            tokens.add_metric((*key, kind), getattr(used, kind))
    return [requests, tokens]

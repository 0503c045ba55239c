"""Sums of the ledger as pages show them: those of several currencies as one, rates, and bars over time.

Knows no HTTP.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from loraplex.platform.ledger.queries import Asked, Step, UsageQueries, UsageSum
from loraplex.platform.web.usage_ranges import span

STEPS: dict[Step, timedelta] = {"hour": timedelta(hours=1), "day": timedelta(days=1)}
MOST_CURRENCIES = 100
_ADDED = ("requests", "errors", "answered", "prompt_tokens", "cached_tokens", "completion_tokens", "ttft_ms")


@dataclass(slots=True)
class UsageTotal:
    """Of one group of requests. `name`: the sum that says which one. `costs`: millionths, by currency."""

    name: UsageSum | None = None
    requests: int = 0
    errors: int = 0
    answered: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    ttft_ms: int = 0
    costs: dict[str, int] = field(default_factory=dict)

    def add(self, usage: UsageSum) -> None:
        self.name = self.name or usage
        for column in _ADDED:
            setattr(self, column, getattr(self, column) + getattr(usage, column))
        if usage.currency:
            self.costs[usage.currency] = self.costs.get(usage.currency, 0) + usage.cost_micros

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def parts(self) -> tuple[int, int, int]:
        """Tokens of prompts that were computed, those that the cache had, and those that were written."""
        return self.prompt_tokens - self.cached_tokens, self.cached_tokens, self.completion_tokens

    @property
    def cached_share(self) -> float | None:
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else None

    @property
    def error_share(self) -> float | None:
        return self.errors / self.requests if self.requests else None

    @property
    def mean_ttft_ms(self) -> float | None:
        return self.ttft_ms / self.answered if self.answered else None


def total(sums: Iterable[UsageSum]) -> UsageTotal:
    whole = UsageTotal()
    for each in sums:
        whole.add(each)
    return whole


async def last_month(usage: UsageQueries, tenant_id: str, adapter: str | None = None) -> UsageTotal:
    """Of the days that the range "30d" has: a tenant's, or one adapter's."""
    start, end = span("30d", datetime.now(UTC))
    return total(await usage.sums(Asked(start, end, tenant_id, adapter=adapter), "all", "nothing", MOST_CURRENCIES))


def totals_by(group: Callable[[UsageSum], Hashable], sums: Iterable[UsageSum]) -> list[UsageTotal]:
    """Those with the most tokens first."""
    groups: dict[Hashable, UsageTotal] = defaultdict(UsageTotal)
    for each in sums:
        groups[group(each)].add(each)
    return sorted(groups.values(), key=lambda each: -each.tokens)


def bars(sums: Iterable[UsageSum], start: datetime, end: datetime, step: Step) -> list[tuple[datetime, UsageTotal]]:
    """One for each step, also where nothing was used."""
    found: dict[datetime, UsageTotal] = defaultdict(UsageTotal)
    for each in sums:
        assert each.start is not None
        found[each.start].add(each)
    count = (end - start) // STEPS[step]
    first = start.astimezone(UTC)
    return [(moment, found[moment]) for moment in (first + number * STEPS[step] for number in range(count))]


def chart_data(step: Step, shown: list[tuple[datetime, UsageTotal]]) -> dict[str, Any]:
    """What static/usage.js draws. times: seconds since 1970."""
    parts = list(zip(*(total.parts for _, total in shown), strict=True))
    return {
        "step": step,
        "times": [int(moment.timestamp()) for moment, _ in shown],
        "computed": parts[0],
        "cached": parts[1],
        "completion": parts[2],
    }

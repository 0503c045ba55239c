"""What a tenant or a key may spend in a period, as operators write it. Plain data: knows no row and no request."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

MOST = 10**15
"""The largest amount that can be set."""

Period = Literal["day", "month", "total"]
Amount = Annotated[int, Meta(ge=1, le=MOST)]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Place = tuple[str, datetime]
"""Whose spending, `tenant/` or `key/` and its id, and when the period began."""


class Spending(NamedTuple):
    """tokens: of prompts and answers. cost_micros: in millionths of the price table's currency."""

    tokens: int
    cost_micros: int

    def plus(self, other: Spending) -> Spending:
        return Spending(self.tokens + other.tokens, self.cost_micros + other.cost_micros)

    def minus(self, other: Spending) -> Spending:
        return Spending(self.tokens - other.tokens, self.cost_micros - other.cost_micros)


NOTHING = Spending(0, 0)


class Budget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """None: without bound.

    tokens: of prompts and answers. cost_micros: in millionths of the price table's currency; what was charged in
    another one does not count, nor what has no price. period: the calendar's day or month in UTC, or all that was ever
    used. A request belongs to the period in which it began.
    """

    tokens: Amount | None = None
    cost_micros: Amount | None = None
    period: Period = "month"

    @property
    def is_bounded(self) -> bool:
        return self.tokens is not None or self.cost_micros is not None


class CallerBudgets(NamedTuple):
    """What holds for requests with one key; None: no budget."""

    key: Budget | None
    tenant: Budget | None


def caller_budgets(key: Mapping[str, Any] | None, tenant: Mapping[str, Any] | None) -> CallerBudgets | None:
    """As rows have them. None where nothing is bounded, so that such callers cost nothing."""
    found = CallerBudgets(*(None if row is None else stored_budget(row) for row in (key, tenant)))
    return found if any(found) else None


def stored_budget(row: Mapping[str, Any] | None) -> Budget:
    """What a later release may have put beside it is passed over."""
    return Budget(**{field: value for field, value in (row or {}).items() if field in Budget.__struct_fields__})


def to_row(budget: Budget) -> dict[str, Any] | None:
    """What `stored_budget` reads; None where there is nothing to keep."""
    return msgspec.structs.asdict(budget) if budget.is_bounded else None


def period_start(period: Period, moment: datetime) -> datetime:
    """Of the period that a moment, in UTC, is in; of all time, 1970."""
    if period == "total":
        return EPOCH
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight if period == "day" else midnight.replace(day=1)


def renewal(period: Period, start: datetime) -> datetime | None:
    """When what began at `start` is over; None: never."""
    if period == "total":
        return None
    return start + timedelta(days=1) if period == "day" else (start + timedelta(days=32)).replace(day=1)


def day_of(moment: datetime) -> int:
    """Counted since 1970."""
    return (moment - EPOCH).days

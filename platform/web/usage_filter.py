"""Which usage a page shows: of which time, whose, of what; read from its URL, and written into its links.

Knows queries of pages; asks the ledger for nothing but the names that there are to choose from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from litestar.di import NamedDependency, Provide
from litestar.params import QueryParameter

from loraplex.platform.ledger.queries import Asked, Step, UsageSum
from loraplex.platform.services import Services
from loraplex.platform.web.tenants import visible_tenant
from loraplex.platform.web.usage_ranges import Range, span
from loraplex.platform.web_sessions import Person

RangeName = Annotated[Range, QueryParameter()]
Flag = Annotated[Literal["", "1"], QueryParameter()]
Text = Annotated[str, QueryParameter(max_length=255)]

BASE = "-"
"""The base model among adapters, none of which can have this name."""

BY_HOURS = timedelta(days=8)
"""Up to here a chart has one bar for each hour, beyond one for each day."""
MOST_CHOICES = 200


@dataclass(frozen=True, slots=True)
class UsageFilter:
    """`tenant`: a slug; it, `adapter` and `key` are "" where all are meant. `asked`: the same for the ledger."""

    range: Range
    tenant: str
    adapter: str
    key: str
    errors: bool
    asked: Asked

    @property
    def step(self) -> Step:
        return "hour" if self.asked.end - self.asked.start <= BY_HOURS else "day"

    @property
    def first_day(self) -> date:
        return self.asked.start.date()

    @property
    def last_day(self) -> date:
        return (self.asked.end - timedelta(seconds=1)).date()

    @property
    def is_narrow(self) -> bool:
        """Whether anything but the time is chosen by whoever looks."""
        return bool(self.tenant or self.adapter or self.key or self.errors)

    def query(self, **other: str) -> str:
        """Of a page that shows the same but for what `other` says."""
        days = {"start": str(self.first_day), "end": str(self.last_day)} if self.range == "custom" else {}
        own = {"range": self.range, "tenant": self.tenant, "adapter": self.adapter, "key": self.key}
        errors = {"errors": "1"} if self.errors else {}
        return urlencode({name: value for name, value in (own | days | errors | other).items() if value})


@dataclass(frozen=True, slots=True)
class Choices:
    """What there is to choose from, by value: what people read."""

    tenants: list[str]
    adapters: dict[str, str]
    keys: dict[str, str]


async def provide_usage_filter(
    services: NamedDependency[Services],
    person: NamedDependency[Person],
    range: RangeName = "24h",
    start: Text = "",
    end: Text = "",
    tenant: Text = "",
    adapter: Text = "",
    key: Text = "",
    errors: Flag = "",
) -> UsageFilter:
    """start, end: first and last day of a custom range. Raises ApiError, and TenantNotFound for what is not to be
    seen."""
    tenant_id = (await visible_tenant(services, person, tenant)).id if tenant else person.tenant_id
    starts, ends = span(range, datetime.now(UTC), start, end)
    asked = Asked(
        start=starts,
        end=ends,
        tenant_id=tenant_id,
        key_id=key or None,
        adapter=("" if adapter == BASE else adapter) if adapter else None,
        errors=bool(errors),
    )
    return UsageFilter(range, tenant if person.is_operator else "", adapter, key, bool(errors), asked)


USAGE_FILTER: dict[str, Any] = {"chosen": Provide(provide_usage_filter)}


async def choices(services: Services, person: Person, chosen: UsageFilter) -> Choices:
    """What was used in this time, and what is chosen, whether it was used or not."""
    asked = replace(chosen.asked, adapter=None, key_id=None, errors=False)
    adapters = await services.usage.sums(asked, "all", "adapter", MOST_CHOICES, largest_first=True)
    keys = await services.usage.sums(asked, "all", "key", MOST_CHOICES, largest_first=True)
    tenants = await services.tenants.list_tenants() if person.is_operator else []
    return Choices(
        tenants=[tenant.slug for tenant in tenants],
        adapters=_sorted({value: adapter_name(value) for value in _chosen(chosen.adapter, adapters)}),
        keys=_sorted({each.key or "": each.key_name or each.key or "" for each in keys} | _unused(chosen.key, keys)),
    )


def adapter_name(value: str) -> str:
    return "the base model" if value == BASE else value


def adapter_value(adapter: str | None) -> str:
    """Of an adapter as the ledger has it, in a URL."""
    return adapter or BASE


def _chosen(chosen: str, sums: list[UsageSum]) -> set[str]:
    return ({chosen} if chosen else set()) | {adapter_value(each.adapter) for each in sums}


def _unused(chosen: str, sums: list[UsageSum]) -> dict[str, str]:
    return {chosen: chosen} if chosen and chosen not in {each.key for each in sums} else {}


def _sorted(names: dict[str, str]) -> dict[str, str]:
    return dict(sorted(names.items(), key=lambda item: (item[0] != BASE, item[1])))

"""Usage: tokens over time, and by whom and by what they were used; as files, too."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, get
from litestar.di import NamedDependency
from litestar.response import Stream

from loraplex.platform.ledger.queries import By
from loraplex.platform.manage.usage import MAX_SUMS, FormatName, What, exported_usage
from loraplex.platform.services import Services
from loraplex.platform.web.rendering import page
from loraplex.platform.web.usage_filter import USAGE_FILTER, UsageFilter, adapter_value, choices
from loraplex.platform.web.usage_totals import UsageTotal, bars, chart_data, total, totals_by
from loraplex.platform.web_sessions import Person

SHOWN = 20
"""Lines of a table; an export has all."""
READ = 10 * SHOWN
"""Sums for it: a line has one for each currency."""


@get("/usage", opt={"page": "person"}, dependencies=USAGE_FILTER)
async def show_usage(
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    person: NamedDependency[Person],
    chosen: NamedDependency[UsageFilter],
) -> Response[Any]:
    """Tokens over time; totals; and the largest adapters, keys and, for operators, tenants."""
    asked = chosen.asked
    sums = await services.usage.sums(asked, chosen.step, "nothing", MAX_SUMS)
    shown = bars(sums, asked.start, asked.end, chosen.step)
    return page(
        request,
        "usage.html",
        chosen=chosen,
        choices=await choices(services, person, chosen),
        total=total(sums),
        bars=shown,
        chart=chart_data(chosen.step, shown),
        adapters=await _largest(services, chosen, "adapter"),
        keys=await _largest(services, chosen, "key"),
        tenants=await _largest(services, chosen, "tenant") if person.is_operator and not chosen.tenant else [],
        most=SHOWN,
        adapter_value=adapter_value,
    )


@get("/usage/export", opt={"page": "person"}, dependencies=USAGE_FILTER)
async def export_usage(
    services: NamedDependency[Services],
    chosen: NamedDependency[UsageFilter],
    what: What = "sums",
    format: FormatName = "csv",
) -> Stream:
    """What the pages show as a file: requests, or sums by version and the chart's steps."""
    return exported_usage(services, chosen.asked, what, format, chosen.step, "version")


async def _largest(services: Services, chosen: UsageFilter, by: By) -> list[UsageTotal]:
    sums = await services.usage.sums(chosen.asked, "all", by, READ, largest_first=True)
    return totals_by(lambda each: (each.tenant, each.adapter, each.key), sums)[:SHOWN]


USAGE_PAGES = [show_usage, export_usage]

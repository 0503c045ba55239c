"""What was used: sums over time, single requests, exports. A tenant's own, and the operator's over all tenants."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from litestar import Router, delete, get, put
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, JSONBody, QueryParameter
from litestar.response import Stream

from loraplex.adapters.audit import Actor
from loraplex.platform.audit_rules import audited
from loraplex.platform.errors import ApiError
from loraplex.platform.ledger.export import MEDIA_TYPES, Format, exported
from loraplex.platform.ledger.prices import PriceTable
from loraplex.platform.ledger.queries import Asked, By, Step, UsageEntry, UsageSum
from loraplex.platform.manage.usage_schemas import (
    ContentRetention,
    DeletedContents,
    RequestContents,
    UsagePage,
    UsageSums,
)
from loraplex.platform.services import Services
from loraplex.platform.tenants import Principal, TenantNotFound

MAX_SUMS = 10_000
MAX_SPAN: dict[Step, timedelta] = {
    "hour": timedelta(days=62),
    "day": timedelta(days=3660),
    "all": timedelta(days=3660),
}
DEFAULT_SPAN = timedelta(days=1)

Moment = Annotated[datetime | None, QueryParameter(description="ISO 8601; in UTC where it has no time zone.")]
KeyId = Annotated[str | None, QueryParameter(max_length=64, description="Of this API key alone, by its id.")]
AdapterName = Annotated[
    str | None, QueryParameter(max_length=255, description="Of this adapter alone; empty: of the base.")
]
EndpointName = Annotated[
    Literal["chat", "completions", "responses", "messages", "embeddings"] | None,
    QueryParameter(description="Of this endpoint alone."),
]
TenantName = Annotated[str | None, QueryParameter(max_length=63, description="Of this tenant alone.")]
Failed = Annotated[bool, QueryParameter(description="Of requests that failed or were refused alone.")]
StepName = Annotated[Step, QueryParameter(description="One sum for each hour or day in UTC, or over all the time.")]
GroupName = Annotated[By, QueryParameter(name="by", description="One sum for each of these.")]
SumLimit = Annotated[int, QueryParameter(ge=1, le=MAX_SUMS, description="Most sums.")]
Largest = Annotated[bool, QueryParameter(description="Those with the most tokens first, instead of by time and name.")]
PageLimit = Annotated[int, QueryParameter(ge=1, le=500, description="Most entries of the page.")]
PageAfter = Annotated[str | None, QueryParameter(max_length=80, description="`next` of the page before.")]
What = Annotated[Literal["requests", "sums"], QueryParameter(description="Single requests, or sums.")]
FormatName = Annotated[Format, QueryParameter(description="csv or json.")]

_CURSOR = re.compile(r"(\d{1,18})-([0-9a-f]{32})", re.ASCII)


EXPORTS = {
    "text/csv": {"schema": {"type": "string"}},
    "application/json": {"schema": {"type": "array", "items": {"type": "object"}}},
}


async def provide_usage_of(
    principal: NamedDependency[Principal], services: NamedDependency[Services], tenant: TenantName = None
) -> str | None:
    """The id of the tenant whose usage is asked for: a tenant's key asks for its own; None: of all tenants."""
    if principal.tenant_id is not None:
        if tenant is not None and tenant != principal.tenant:
            raise TenantNotFound(f"tenant: there is no tenant {tenant!a} that this key speaks for; leave it out")
        return principal.tenant_id
    return None if tenant is None else (await services.tenants.get_tenant(tenant)).id


def provide_asked(
    usage_of: NamedDependency[str | None],
    start: Moment = None,
    end: Moment = None,
    key: KeyId = None,
    adapter: AdapterName = None,
    endpoint: EndpointName = None,
    errors: Failed = False,
) -> Asked:
    """Of which time, without saying so the last day; and of what in it. Raises ApiError."""
    ends = _in_utc(end) or datetime.now(UTC)
    starts = _in_utc(start) or ends - DEFAULT_SPAN
    if starts >= ends:
        raise ApiError(400, "invalid_value", "'start' is not before 'end'.", param="start")
    return Asked(starts, ends, usage_of, key, adapter, endpoint, errors)


@get("/")
async def get_usage(
    services: NamedDependency[Services],
    asked: NamedDependency[Asked],
    step: StepName = "day",
    group: GroupName = "nothing",
    limit: SumLimit = 1000,
    largest_first: Largest = False,
) -> UsageSums:
    """Sums of tokens, costs and times. Hours are counted whole: that of `start` is in it from its beginning on.

    Usage is here a second or two after a request has ended; while the database was away, later.
    """
    _check_span(asked, step)
    found = await services.usage.sums(asked, step, group, limit, largest_first=largest_first)
    return UsageSums(asked.start, asked.end, found)


@get("/requests")
async def list_requests(
    services: NamedDependency[Services],
    asked: NamedDependency[Asked],
    limit: PageLimit = 100,
    after: PageAfter = None,
) -> UsagePage:
    """Single requests, the newest first. Of refused ones, ten a second are told of each tenant."""
    return await page_of_requests(services, asked, limit, after)


@get("/export", opt={"answers": EXPORTS})
async def export_usage(
    services: NamedDependency[Services],
    asked: NamedDependency[Asked],
    what: What = "requests",
    format: FormatName = "csv",
    step: StepName = "day",
    group: GroupName = "version",
) -> Stream:
    """All of it as one file: requests, the newest first, or sums. A cell of CSV that would be a formula in a
    spreadsheet begins with an apostrophe."""
    return exported_usage(services, asked, what, format, step, group)


async def page_of_requests(services: Services, asked: Asked, limit: int, after: str | None) -> UsagePage:
    """Raises ApiError for an `after` that is none."""
    found = await services.usage.requests(asked, limit + 1, None if after is None else _position(after))
    page = found[:limit]
    return UsagePage(page, _cursor(page[-1]) if len(found) > limit else None)


def exported_usage(services: Services, asked: Asked, what: What, format: Format, step: Step, by: By) -> Stream:
    """A file, written while it is read. Raises ApiError for more time than such steps may cover."""
    if what == "requests":
        content = exported(format, UsageEntry, services.usage.every_request(asked))
    else:
        _check_span(asked, step)
        content = exported(format, UsageSum, _all_sums(services, asked, step, by))
    name = f"usage-{what}-{asked.start:%Y%m%d}-{asked.end:%Y%m%d}.{format}"
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Stream(content, media_type=MEDIA_TYPES[format], headers=headers)


@get("/requests/{record_id:str}/contents")
async def get_contents(
    record_id: FromPath[str], services: NamedDependency[Services], usage_of: NamedDependency[str | None]
) -> RequestContents:
    """What a request asked and was answered, of a tenant for which that is kept."""
    found = await services.usage.contents(usage_of, record_id)
    if found is None:
        raise _no_contents()
    return RequestContents(*found)


@delete("/requests/{record_id:str}/contents", opt=audited("contents.delete"))
async def delete_contents(
    record_id: FromPath[str],
    services: NamedDependency[Services],
    usage_of: NamedDependency[str | None],
    by: NamedDependency[Actor],
) -> None:
    """Delete what a request asked and was answered; what it used stays."""
    if not await services.usage.delete_contents(usage_of, record_id, by=by):
        raise _no_contents()


@get("/prices")
async def get_prices(services: NamedDependency[Services]) -> PriceTable:
    """What tokens cost; without any price nothing does."""
    return await services.prices.get()


@put("/prices", opt=audited("prices.set"))
async def set_prices(
    data: JSONBody[PriceTable], services: NamedDependency[Services], by: NamedDependency[Actor]
) -> PriceTable:
    """Set all prices. They hold for what is written into the ledger from now on."""
    return await services.prices.set(data, by=by)


@get("/contents/{slug:str}")
async def get_content_retention(slug: FromPath[str], services: NamedDependency[Services]) -> ContentRetention:
    """How long what a tenant's requests ask and are answered is kept."""
    return ContentRetention(days=await services.tenants.content_days(slug))


@put("/contents/{slug:str}", opt=audited("tenant.contents"))
async def set_content_retention(
    slug: FromPath[str],
    data: JSONBody[ContentRetention],
    services: NamedDependency[Services],
    by: NamedDependency[Actor],
) -> ContentRetention:
    """Keep what a tenant's requests ask and are answered for so many days, or no longer. What is kept stays until its
    own time is up."""
    await services.tenants.set_content_days(slug, data.days, by=by)
    return data


@delete("/contents/{slug:str}", status_code=200, opt=audited("contents.delete"))
async def delete_all_contents(
    slug: FromPath[str], services: NamedDependency[Services], by: NamedDependency[Actor]
) -> DeletedContents:
    """Delete all that is kept of what a tenant's requests asked and were answered."""
    tenant = await services.tenants.get_tenant(slug)
    return DeletedContents(await services.usage.delete_all_contents(tenant.id, by=by))


async def _all_sums(services: Services, asked: Asked, step: Step, by: By) -> AsyncIterator[list[UsageSum]]:
    """In parts of time of which each has few enough."""
    start, part = asked.start, timedelta(days=1)
    if step == "all":
        yield await services.usage.sums(asked, step, by, MAX_SUMS)
        return
    while start < asked.end:
        midnight = start.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + part
        end = min(midnight, asked.end)
        found = await services.usage.sums(_within(asked, start, end), step, by, MAX_SUMS)
        if found:
            yield found
        start = end


def _within(asked: Asked, start: datetime, end: datetime) -> Asked:
    return Asked(start, end, asked.tenant_id, asked.key_id, asked.adapter, asked.endpoint, asked.errors)


def _check_span(asked: Asked, step: Step) -> None:
    if asked.end - asked.start > MAX_SPAN[step]:
        message = (
            f"'start' and 'end' are more than {MAX_SPAN[step].days} days apart; ask for less, or for longer steps."
        )
        raise ApiError(400, "invalid_value", message, param="start")


def _in_utc(moment: datetime | None) -> datetime | None:
    if moment is None or moment.tzinfo is not None:
        return moment
    return moment.replace(tzinfo=UTC)


def _cursor(entry: UsageEntry) -> str:
    return f"{_microseconds(entry.started_at)}-{entry.id}"


def _position(cursor: str) -> tuple[datetime, str]:
    found = _CURSOR.fullmatch(cursor)
    try:
        if found is not None:
            return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(found[1])), found[2]
    except OverflowError:
        pass
    raise ApiError(400, "invalid_value", "'after' is not the `next` of a page.", param="after")


def _microseconds(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _no_contents() -> ApiError:
    return ApiError(404, "contents_not_found", "Nothing is kept of what this request asked or was answered.")


USAGE_HANDLERS: list[Any] = [get_usage, list_requests, export_usage, get_contents, delete_contents]
DEPENDENCIES = {
    "usage_of": Provide(provide_usage_of),
    "asked": Provide(provide_asked, sync_to_thread=False),
}

OPERATORS_HANDLERS: list[Any] = [
    get_prices,
    set_prices,
    get_content_retention,
    set_content_retention,
    delete_all_contents,
]

USAGE_ROUTES = [
    Router(
        "/api/v1/usage",
        route_handlers=USAGE_HANDLERS,
        dependencies=DEPENDENCIES,
        opt={"scope": "adapters"},
        tags=["usage"],
    ),
    Router(
        "/api/v1/admin/usage",
        route_handlers=[*USAGE_HANDLERS, *OPERATORS_HANDLERS],
        dependencies=DEPENDENCIES,
        opt={"scope": "admin"},
        tags=["admin"],
    ),
]

"""The request log: what was asked when, by whom, and how it went; and one request, with its times and its contents
where its tenant has them kept."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.params import FromPath, QueryParameter

from loraplex.adapters.audit import Actor
from loraplex.platform.audit_rules import audited
from loraplex.platform.ledger.queries import UsageEntry
from loraplex.platform.manage.usage import page_of_requests
from loraplex.platform.services import Services
from loraplex.platform.web.rendering import go, page, wants_part
from loraplex.platform.web.usage_filter import USAGE_FILTER, UsageFilter, choices
from loraplex.platform.web_sessions import Person

PAGE_SIZE = 50

Cursor = Annotated[str, QueryParameter(max_length=80)]


@get("/requests", opt={"page": "person"}, dependencies=USAGE_FILTER)
async def list_requests(
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    person: NamedDependency[Person],
    chosen: NamedDependency[UsageFilter],
    after: Cursor = "",
) -> Response[Any]:
    """The newest first, a page at a time; the first page is asked for again while it is open."""
    found = await page_of_requests(services, chosen.asked, PAGE_SIZE, after or None)
    shown: dict[str, Any] = {"requests": found.data, "next": found.next, "is_first": not after, "chosen": chosen}
    if wants_part(request) and request.headers.get("hx-target") == "found":
        return page(request, "_requests.html", **shown)
    return page(
        request,
        "requests.html",
        choices=await choices(services, person, chosen),
        record_days=services.settings.usage_record_days,
        **shown,
    )


@get("/requests/{record_id:str}", opt={"page": "person"})
async def show_request(
    record_id: FromPath[str],
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    person: NamedDependency[Person],
) -> Response[Any]:
    """All that is known of one request."""
    entry = await services.usage.request(person.tenant_id, record_id)
    if entry is None:
        raise NotFoundException
    contents = await services.usage.contents(person.tenant_id, record_id)
    return page(
        request,
        "request.html",
        entry=entry,
        course=course(entry),
        asked=_indented(contents[0]) if contents else None,
        answer=contents[1] if contents else None,
    )


@post("/requests/{record_id:str}/contents/delete", opt={"page": "person"} | audited("contents.delete"))
async def delete_contents(
    record_id: FromPath[str],
    services: NamedDependency[Services],
    person: NamedDependency[Person],
    by: NamedDependency[Actor],
) -> Response[Any]:
    """Delete what a request asked and was answered; what it used stays."""
    if not await services.usage.delete_contents(person.tenant_id, record_id, by=by):
        raise NotFoundException
    return go(f"/admin/requests/{record_id}", "contents-deleted")


def course(entry: UsageEntry) -> list[tuple[str, int]]:
    """What a request's time went into, in milliseconds, in their order; [] where it had no first token."""
    if entry.ttft_ms is None:
        return []
    queue, load = entry.queue_ms or 0, entry.load_ms or 0
    return [
        ("Queue", queue),
        ("Adapter load", load),
        ("To the first token", max(0, entry.ttft_ms - queue - load)),
        ("Decode", max(0, entry.total_ms - entry.ttft_ms)),
    ]


def _indented(text: str) -> str:
    """JSON for people; what was cut is no JSON any more, and stays as it is."""
    try:
        return msgspec.json.format(text, indent=2)
    except msgspec.DecodeError:
        return text


REQUEST_PAGES = [list_requests, show_request, delete_contents]

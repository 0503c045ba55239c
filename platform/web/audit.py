"""The audit log as pages: who changed what, with filters; operators see all of it, a tenant's people what is theirs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from litestar import Request, Response, get
from litestar.di import NamedDependency
from litestar.params import QueryParameter
from litestar.response import Stream

from loraplex.adapters.audit_actions import ACTIONS
from loraplex.adapters.audit_log import Wanted
from loraplex.adapters.schema import storable
from loraplex.platform.manage.audit import ndjson
from loraplex.platform.services import Services
from loraplex.platform.web.audit_rows import read_rows
from loraplex.platform.web.rendering import page
from loraplex.platform.web.tenants import visible_tenant
from loraplex.platform.web_sessions import Person

PAGE_SIZE = 50

Text = Annotated[str, QueryParameter(max_length=200)]
Day = Annotated[str, QueryParameter(max_length=10)]
Before = Annotated[str, QueryParameter(pattern="^[0-9]{0,15}$")]


@get("/audit", opt={"page": "person"})
async def show_audit(
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    person: NamedDependency[Person],
    tenant: Text = "",
    action: Text = "",
    object: Text = "",
    actor: Text = "",
    since: Day = "",
    until: Day = "",
    before: Before = "",
) -> Response[Any]:
    """The newest entries first, a page at a time."""
    chosen = tenant.strip() if person.is_operator else str(person.tenant)
    tenant_id = (await visible_tenant(services, person, chosen)).id if chosen else None
    days = _day(since), _day(until)
    wanted = Wanted(
        tenant_id=tenant_id,
        action=action if action in ACTIONS else None,
        object=storable(object.strip()) or None,
        actor=storable(_actor(actor)) or None,
        since=days[0],
        until=None if days[1] is None else days[1] + timedelta(days=1),
    )
    rows = await read_rows(services, person, wanted, PAGE_SIZE + 1, int(before) if before else None)
    filters = {"action": action, "object": object.strip(), "actor": actor.strip(), "since": since, "until": until}
    return page(
        request,
        "audit.html",
        rows=rows[:PAGE_SIZE],
        older=rows[PAGE_SIZE - 1].entry.number if len(rows) > PAGE_SIZE else None,
        is_first=not before,
        filters=filters | ({"tenant": chosen} if person.is_operator else {}),
        is_filtered=any(filters.values()) or bool(person.is_operator and chosen),
        actions=ACTIONS,
        tenants=await services.tenants.list_tenants() if person.is_operator else [],
        chain=await services.audit_chain.look() if person.is_operator else None,
    )


@get("/audit/export", opt={"page": "person"})
async def export_audit(services: NamedDependency[Services], person: NamedDependency[Person]) -> Stream:
    """All that the person may see, as JSON lines."""
    return ndjson(services, Wanted(person.tenant_id), person.tenant_id)


def _day(text: str) -> datetime | None:
    """As a field for dates sends it; anything else is no filter."""
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        return None


def _actor(text: str) -> str:
    """The id of a key that was copied as it is shown."""
    return text.strip().removeprefix("lk_").removesuffix("…")


AUDIT_PAGES = [show_audit, export_audit]

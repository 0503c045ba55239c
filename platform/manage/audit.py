"""The audit log over the API: a tenant's own entries for its keys; all of them, and the chain, for operators."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from litestar import Router, get
from litestar.di import NamedDependency
from litestar.params import QueryParameter
from litestar.response import Stream
from msgspec import Struct

from loraplex.adapters.audit_log import Wanted
from loraplex.adapters.schema import storable
from loraplex.platform.audit_views import AuditEntryView, lines, seen_by
from loraplex.platform.errors import ApiError
from loraplex.platform.manage.adapters import PageLimit
from loraplex.platform.services import Services

Text = Annotated[str | None, QueryParameter(max_length=200)]
Moment = Annotated[datetime | None, QueryParameter(description="With its time zone.")]
Before = Annotated[int | None, QueryParameter(ge=1, le=1 << 53, description="`next` of the page before.")]
NDJSON = "application/x-ndjson"


class AuditPage(Struct, frozen=True):
    """`next`: give it as `before` to get the entries that are older; null: there are none."""

    data: list[AuditEntryView]
    next: int | None


class ChainView(Struct, frozen=True, kw_only=True):
    """`verified_through`: up to that entry the server has followed the chain since it looked first, which each call
    carries on; `broken`: what is wrong with the one after it."""

    entries: int
    hash: str
    verified_through: int
    broken: str | None


def wanted_entries(
    tenant_id: str | None,
    action: str | None = None,
    object: str | None = None,
    actor: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Wanted:
    """Raises ApiError 400 for a moment without a time zone."""
    for name, moment in (("since", since), ("until", until)):
        if moment is not None and moment.tzinfo is None:
            message = f"'{name}' needs a time zone: 2030-01-01T00:00:00Z."
            raise ApiError(400, "invalid_value", message, param=name)
    return Wanted(tenant_id, storable(action), storable(object), storable(actor), since, until)


@get("/api/v1/audit", opt={"scope": "adapters"})
async def list_own_entries(
    services: NamedDependency[Services],
    tenant_id: NamedDependency[str],
    limit: PageLimit = 100,
    before: Before = None,
    action: Text = None,
    object: Text = None,
    actor: Text = None,
    since: Moment = None,
    until: Moment = None,
) -> AuditPage:
    """What was done to what is your tenant's, the newest first. Of operators it is told that it was one, not which."""
    wanted = wanted_entries(tenant_id, action, object, actor, since, until)
    return await _page(services, wanted, limit, before, tenant_id)


@get("/api/v1/audit/export", opt={"scope": "adapters"}, media_type=NDJSON)
async def export_own_entries(services: NamedDependency[Services], tenant_id: NamedDependency[str]) -> Stream:
    """All of your tenant's entries as JSON lines, the first first."""
    return ndjson(services, Wanted(tenant_id), tenant_id)


@get("/api/v1/admin/audit", opt={"scope": "admin"})
async def list_entries(
    services: NamedDependency[Services],
    limit: PageLimit = 100,
    before: Before = None,
    tenant: Text = None,
    action: Text = None,
    object: Text = None,
    actor: Text = None,
    since: Moment = None,
    until: Moment = None,
) -> AuditPage:
    """Who changed what, the newest first. `object`: as an entry has it; an adapter's has its versions and aliases too.
    `actor`: the id of a key or account, or a login."""
    tenant_id = None if tenant is None else (await services.tenants.get_tenant(tenant)).id
    wanted = wanted_entries(tenant_id, action, object, actor, since, until)
    return await _page(services, wanted, limit, before, None)


@get("/api/v1/admin/audit/export", opt={"scope": "admin"}, media_type=NDJSON)
async def export_entries(services: NamedDependency[Services]) -> Stream:
    """The whole log as JSON lines, the first first, with all that it takes to verify its chain elsewhere."""
    return ndjson(services, Wanted(), None)


@get("/api/v1/admin/audit/chain", opt={"scope": "admin"})
async def get_chain(services: NamedDependency[Services]) -> ChainView:
    """Whether all entries are as they were written, each after the one that it was written after."""
    state = await services.audit_chain.look()
    return ChainView(
        entries=state.end.number, hash=state.end.hash, verified_through=state.verified.number, broken=state.why
    )


def ndjson(services: Services, wanted: Wanted, reader_tenant_id: str | None) -> Stream:
    """The entries as a file."""
    headers = {"content-disposition": 'attachment; filename="audit.ndjson"', "cache-control": "no-store"}
    return Stream(lines(services.audit, wanted, reader_tenant_id), media_type=NDJSON, headers=headers)


async def _page(
    services: Services, wanted: Wanted, limit: int, before: int | None, reader_tenant_id: str | None
) -> AuditPage:
    # A search for what is rare reads much: it is bounded by the database's own time limit for a statement.
    found = await services.audit.list(wanted, limit + 1, before)
    page = [seen_by(reader_tenant_id, entry) for entry in found[:limit]]
    slugs = await services.tenants.slugs({entry.tenant_id for entry in page if entry.tenant_id})
    return AuditPage(
        [AuditEntryView.of(entry, slugs) for entry in page], page[-1].number if len(found) > limit else None
    )


AUDIT_ROUTES = [
    Router(
        "/",
        route_handlers=[list_own_entries, export_own_entries, list_entries, export_entries, get_chain],
        tags=["audit"],
    )
]

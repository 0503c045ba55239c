"""Where versions are: on the device, in the host's memory or on the disk; and pins and evictions, which change that."""

from __future__ import annotations

from typing import Annotated

from anyio import to_thread
from litestar import Router, delete, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter

from loraplex.adapters.audit import Actor
from loraplex.platform import residency
from loraplex.platform.audit_rules import audited
from loraplex.platform.manage.adapters import PageLimit
from loraplex.platform.manage.engine_answers import answered
from loraplex.platform.manage.residency_schemas import (
    MemoryView,
    PinVersion,
    ResidencyList,
    ResidencyOverview,
    ResidencyView,
    ResidentView,
    tiers_of,
)
from loraplex.platform.manage.version_schemas import VersionView
from loraplex.platform.services import Services

MAX_RESIDENTS = 1000

VERSION = "/{name:str}/versions/{number:int}"
ResidentLimit = Annotated[int, QueryParameter(ge=1, le=MAX_RESIDENTS, description="Most entries of `data`.")]


@get("/{name:str}/residency")
async def list_residency(
    name: FromPath[str], services: NamedDependency[Services], tenant_id: NamedDependency[str], limit: PageLimit = 100
) -> ResidencyList:
    """Where the newest versions of an adapter are on this server. While the engine is down: on the disk."""
    adapter = await services.registry.get_adapter(tenant_id, name)
    return ResidencyList(await residency.look(services, adapter.versions[::-1][:limit]))


@get(VERSION + "/residency")
async def get_residency(
    name: FromPath[str], number: FromPath[int], services: NamedDependency[Services], tenant_id: NamedDependency[str]
) -> ResidencyView:
    """Where a version is on this server, what it takes there, and what your requests waited for."""
    return (await residency.look(services, [await services.registry.get_version(tenant_id, name, number)]))[0]


@post(VERSION + "/warm", status_code=202, opt=audited("version.warm"))
async def warm_version(
    name: FromPath[str],
    number: FromPath[int],
    services: NamedDependency[Services],
    tenant_id: NamedDependency[str],
    by: NamedDependency[Actor],
) -> VersionView:
    """Bring a version to the device before its first request, where that costs no running request its place."""
    return VersionView.of(await residency.warm(services, tenant_id, name, number, by))


@put(VERSION + "/pin", opt=audited("version.pin"))
async def pin_version(
    name: FromPath[str],
    number: FromPath[int],
    data: JSONBody[PinVersion],
    services: NamedDependency[Services],
    tenant_id: NamedDependency[str],
    by: NamedDependency[Actor],
) -> ResidencyView:
    """Bring a version to the device as `warm` does, and keep it there for so long; again: for so long from now.

    It holds on every server and over restarts. 409 with code `pins_exceeded`: there is a bound on what your pins, and
    all tenants' together, may take.
    """
    version = await residency.pin(services, tenant_id, name, number, data.seconds, by)
    return (await residency.look(services, [version]))[0]


@delete(VERSION + "/pin", opt=audited("version.unpin"))
async def unpin_version(
    name: FromPath[str],
    number: FromPath[int],
    services: NamedDependency[Services],
    tenant_id: NamedDependency[str],
    by: NamedDependency[Actor],
) -> None:
    """End a pin. The version stays where it is until others need the room."""
    await residency.unpin(services, tenant_id, name, number, by)


@post(VERSION + "/evict", status_code=200, opt=audited("version.evict"))
async def evict_version(
    name: FromPath[str],
    number: FromPath[int],
    services: NamedDependency[Services],
    tenant_id: NamedDependency[str],
    by: NamedDependency[Actor],
) -> ResidencyView:
    """Free the memory that a version takes on this server, on the device and in the host's memory.

    409 with code `adapter_in_use` while your requests run with it, `adapter_pinned` while you pin it.
    """
    return (await residency.look(services, [await residency.evict(services, tenant_id, name, number, by)]))[0]


@get("/residency")
async def get_overview(services: NamedDependency[Services], limit: ResidentLimit = 100) -> ResidencyOverview:
    """What is in each tier of this server, for all tenants, with sizes and totals; and how memory is shared."""
    found = await answered(services.engine.locate())
    status = (await answered(services.engine.inspect())).status
    found.sort(key=lambda entry: (entry.device_bytes > 0, entry.last_used_at or 0.0), reverse=True)
    shown = [entry.digest for entry in found[:limit]]
    versions = await services.registry.versions_of(shown)
    disk = await to_thread.run_sync(services.blobs.disk_use)
    sizes = await to_thread.run_sync(services.blobs.sizes, shown)
    return ResidencyOverview(
        memory=MemoryView.of(services.engine.ready, status),
        tiers=tiers_of(found, services.engine.ready, services.settings.adapter_host_bytes, disk),
        data=[
            ResidentView.of(entry, versions.get(entry.digest, []), size)
            for entry, size in zip(found[:limit], sizes, strict=True)
        ],
    )


RESIDENCY_ROUTES = [
    Router(
        "/api/v1/adapters",
        route_handlers=[list_residency, get_residency, warm_version, pin_version, unpin_version, evict_version],
        opt={"scope": "adapters"},
        tags=["residency"],
    ),
    Router("/api/v1/admin", route_handlers=[get_overview], opt={"scope": "admin"}, tags=["residency"]),
]

"""The first page: whether the server serves, what the engine does, and what there is. Tenants see what is theirs."""

from __future__ import annotations

import asyncio
from typing import Any

from litestar import Request, Response, get
from litestar.di import NamedDependency

from loraplex.platform.health import why_not_ready
from loraplex.platform.services import Services
from loraplex.platform.web.rendering import page, wants_part
from loraplex.platform.web_sessions import Person


@get("/", opt={"page": "person"})
async def show_overview(
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    person: NamedDependency[Person],
    drain: NamedDependency[asyncio.Event],
) -> Response[Any]:
    """How things stand; asked again every few seconds while it is open."""
    adapters, versions = await services.registry.count_versions(person.tenant_id)
    engine = services.engine
    return page(
        request,
        "_overview.html" if wants_part(request) else "overview.html",
        trouble=why_not_ready(engine, drain, services.settings.engine_stall_seconds),
        base_model=services.base_model_name,
        adapters=adapters,
        versions=versions,
        tenants=await services.tenants.list_tenants() if person.is_operator else [],
        status=engine.status if person.is_operator else None,
        tokens_per_second=engine.tokens_per_second,
        ready=engine.ready,
        host_capacity=services.settings.adapter_host_bytes,
    )


OVERVIEW_PAGES = [show_overview]

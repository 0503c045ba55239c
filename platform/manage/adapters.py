"""A tenant's own adapters, by name. The tenant always comes from the key, never from the request."""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar import Response, Router, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter

from loraplex.adapters.audit import Actor
from loraplex.platform.audit_rules import audited
from loraplex.platform.manage.adapter_schemas import AdapterPage, AdapterView, CreateAdapter
from loraplex.platform.manage.idempotency import REUSED, Once
from loraplex.platform.services import Services
from loraplex.platform.tenants import Principal

MAX_PAGE = 500

PageLimit = Annotated[int, QueryParameter(ge=1, le=MAX_PAGE, description="Most entries of the page.")]
PageAfter = Annotated[str | None, QueryParameter(max_length=127, description="`next` of the page before.")]


@post("/", responses=REUSED, opt=audited("adapter.create"))
async def create_adapter(
    data: JSONBody[CreateAdapter],
    services: NamedDependency[Services],
    tenant_id: NamedDependency[str],
    once: NamedDependency[Once],
    by: NamedDependency[Actor],
) -> Response[AdapterView]:
    """Reserve a name. It answers requests once it has a version."""
    async with once.attempt(msgspec.json.encode(data)) as attempt:
        if attempt.answer is not None:
            return attempt.answer
        base_model = data.base_model or services.base_model_name
        created = await services.registry.create_adapter(tenant_id, data.name, base_model, data.description, by=by)
        return attempt.keep(Response(AdapterView.of(created), status_code=201))


@get("/")
async def list_adapters(
    services: NamedDependency[Services],
    principal: NamedDependency[Principal],
    tenant_id: NamedDependency[str],
    limit: PageLimit = 100,
    after: PageAfter = None,
) -> AdapterPage:
    """Your adapters by name, a page at a time."""
    start = None if after is None else f"{principal.tenant}/{after}"
    found = await services.registry.list_adapters(tenant_id, limit + 1, start)
    page = found[:limit]
    return AdapterPage([AdapterView.of(adapter) for adapter in page], page[-1].name if len(found) > limit else None)


@get("/{name:str}")
async def get_adapter(
    name: FromPath[str], services: NamedDependency[Services], tenant_id: NamedDependency[str]
) -> AdapterView:
    """One adapter with its version numbers and aliases."""
    return AdapterView.of(await services.registry.get_adapter(tenant_id, name))


@delete("/{name:str}", opt=audited("adapter.delete"))
async def delete_adapter(
    name: FromPath[str],
    services: NamedDependency[Services],
    tenant_id: NamedDependency[str],
    by: NamedDependency[Actor],
) -> None:
    """Delete an adapter with all its versions. Requests that run finish; new ones get 404."""
    await services.registry.delete_adapter(tenant_id, name, by=by)


ADAPTER_ROUTES = [
    Router(
        "/api/v1/adapters",
        route_handlers=[create_adapter, list_adapters, get_adapter, delete_adapter],
        opt={"scope": "adapters"},
        tags=["adapters"],
    )
]

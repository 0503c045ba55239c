"""The playground: one conversation, answered side by side by the base and versions of adapters, as they stream."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Request, Response, get
from litestar.di import NamedDependency
from litestar.params import QueryParameter

from loraplex.adapters.lookup import AdapterInfo
from loraplex.platform.services import Services
from loraplex.platform.web.rendering import page
from loraplex.platform.web.tenants import visible_tenant
from loraplex.platform.web_sessions import Person

MAX_COLUMNS = 4
SHOWN_ADAPTERS = 200
SHOWN_VERSIONS = 5
"""Of each adapter, the newest; others can be reached by typing their name into the page's URL."""

Text = Annotated[str, QueryParameter(max_length=300)]


@get("/playground", opt={"page": "person"})
async def show_playground(
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    person: NamedDependency[Person],
    tenant: Text = "",
    model: Text = "",
) -> Response[Any]:
    """Choose a tenant, then models; `model`: the one that stands beside the base at first."""
    tenants = await services.tenants.list_tenants() if person.is_operator else []
    slug = tenant if person.is_operator else str(person.tenant)
    names: list[str] = []
    if slug:
        owner = await visible_tenant(services, person, slug)
        for adapter in await services.registry.list_adapters(owner.id, SHOWN_ADAPTERS):
            if adapter.base_model == services.base_model_name:
                names += _names(adapter)
    columns = [services.base_model_name, model or next(iter(names), "")]
    return page(
        request,
        "playground.html",
        tenants=tenants,
        chosen=slug,
        names=[services.base_model_name, *dict.fromkeys([model] if model else []), *names],
        columns=[*columns, *[""] * (MAX_COLUMNS - len(columns))],
    )


def _names(adapter: AdapterInfo) -> list[str]:
    """What requests can call it: by alias, and by version."""
    ready = [version for version in adapter.versions if version.state == "ready"]
    aliases = [f"{adapter.tenant}/{adapter.name}@{alias}" for alias in adapter.aliases]
    return aliases + [version.canonical_name for version in ready[::-1][:SHOWN_VERSIONS]]


PLAYGROUND_PAGES = [show_playground]

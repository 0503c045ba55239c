"""The live engine page. What it shows comes by a feed that its scripts follow; here is only the frame around it."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, get
from litestar.di import NamedDependency

from loraplex.platform.services import Services
from loraplex.platform.web.rendering import page
from loraplex.platform.web_sessions import Person


@get("/live", opt={"page": "person"})
async def show_live_engine(
    request: Request[Any, Any, Any], services: NamedDependency[Services], person: NamedDependency[Person]
) -> Response[Any]:
    """Operators see the whole batch, a tenant's people their part of it."""
    return page(request, "live.html", ready=services.engine.ready, base_model=services.base_model_name)


LIVE_PAGES = [show_live_engine]

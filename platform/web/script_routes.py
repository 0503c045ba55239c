"""What scripts on our pages call: handlers of the API, once more, for whoever is signed in instead of for a key.

Under the tenant for which the person acts, or as a feed of what the person may see. Errors are the API's JSON, since
programs read them.
"""

from __future__ import annotations

import asyncio
from typing import Any

from litestar import Request, Response, Router, get
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency, Provide
from litestar.exceptions import HTTPException
from litestar.handlers import BaseRouteHandler

from loraplex.platform.actors import PERSON
from loraplex.platform.errors import ApiError, respond
from loraplex.platform.live.stream import live_stream
from loraplex.platform.manage.resumable import (
    append_to_file,
    complete_upload,
    drop_upload,
    get_offset,
    list_uploads,
    open_upload,
)
from loraplex.platform.openai.chat import create_chat_completion
from loraplex.platform.openai.files import get_file_content
from loraplex.platform.services import Services
from loraplex.platform.web.access import SignInNeeded, provide_person
from loraplex.platform.web.security_headers import security_headers
from loraplex.platform.web.tenants import visible_tenant
from loraplex.platform.web_sessions import Person

UPLOADS = [open_upload, list_uploads, get_offset, append_to_file, complete_upload, drop_upload]


def script_routes(services: Services) -> Router:
    """After the guard of all pages, the handlers find a `Principal` where they look for one."""

    async def act_for_tenant(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        person: Person = connection.auth
        connection.scope[PERSON] = person  # type: ignore[literal-required]
        tenant = await visible_tenant(services, person, connection.path_params["tenant"])
        if "idempotency-key" in connection.headers:
            raise ApiError(400, "invalid_value", "Idempotency-Key: it is for API keys.", param="Idempotency-Key")
        connection.scope["auth"] = await services.tenants.principal_of_tenant(
            tenant.slug, person.account_id, {"inference", "adapters"}
        )

    return Router(
        "/admin/script/{tenant:str}",
        route_handlers=[
            Router("/uploads", route_handlers=UPLOADS),
            get_file_content,
            create_chat_completion,
        ],
        guards=[act_for_tenant],
        opt={"page": "person"},
        exception_handlers={SignInNeeded: _sign_in, Exception: respond, HTTPException: respond},
        middleware=[security_headers],
        include_in_schema=False,
    )


@get("/live")
async def watch_engine(
    services: NamedDependency[Services], person: NamedDependency[Person], drain: NamedDependency[asyncio.Event]
) -> Response[Any]:
    """The engine as it runs, as far as the person may see it: operators all of it, others their tenant's part."""
    return live_stream(services.live, None if person.is_operator else str(person.tenant_id), drain)


def _sign_in(request: Request[Any, Any, Any], error: SignInNeeded) -> Response[Any]:
    return respond(request, ApiError(401, "signed_out", "Your session has ended. Sign in again, then repeat it."))


FEED_ROUTES = Router(
    "/admin/feeds",
    route_handlers=[watch_engine],
    dependencies={"person": Provide(provide_person, sync_to_thread=False)},
    opt={"page": "person"},
    exception_handlers={SignInNeeded: _sign_in, Exception: respond, HTTPException: respond},
    middleware=[security_headers],
    include_in_schema=False,
)

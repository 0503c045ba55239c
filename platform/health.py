"""What operators' tools poll: is the server alive, should it be sent requests, its metrics. Also what draining refuses.

`/livez` answers as long as the event loop turns and never asks the engine: restarting the API does not mend an engine.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import msgspec
from litestar import Response, get
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency
from litestar.handlers import BaseRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.types import Guard

from loraplex.engine.client import EngineClient
from loraplex.platform.errors import unavailable
from loraplex.platform.metrics import CONTENT_TYPE
from loraplex.platform.services import Services

DRAIN_RETRY_SECONDS = 5


class Health(msgspec.Struct, frozen=True):
    """`reason`: why not, for people."""

    status: Literal["ok", "unavailable"]
    reason: str | None = None


@get("/livez", opt={"public": True}, tags=["health"])
async def livez() -> Health:
    """The process answers."""
    return Health("ok")


@get(
    ["/readyz", "/health"],
    opt={"public": True},
    tags=["health"],
    responses={503: ResponseSpec(Health, description="Send no requests now", generate_examples=False)},
)
async def readyz(services: NamedDependency[Services], drain: NamedDependency[asyncio.Event]) -> Response[Health]:
    """Requests can be served: not draining, the engine is up and its step loop makes progress."""
    reason = why_not_ready(services.engine, drain, services.settings.engine_stall_seconds)
    if reason is not None:
        return Response(Health("unavailable", reason), status_code=503)
    return Response(Health("ok"))


def why_not_ready(engine: EngineClient, drain: asyncio.Event, stall_seconds: float) -> str | None:
    """None when ready. The engine reports from inside its step loop, so silence means that no step ends."""
    if drain.is_set():
        return "the server is shutting down"
    if not engine.is_alive:
        return "the engine is restarting"
    if engine.seconds_since_progress() > stall_seconds:
        return f"the engine has made no progress for more than {stall_seconds:g} seconds"
    return None


def make_drain_guard(drain: asyncio.Event) -> Guard:
    """While `drain` is set, new inference gets 503; streams that run and the management API go on."""

    async def guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        if drain.is_set() and handler.opt.get("scope") == "inference":
            raise unavailable("draining", "The server is shutting down. Try again shortly.", DRAIN_RETRY_SECONDS)

    return guard


@get("/metrics", opt={"public": True}, media_type="text/plain", tags=["health"])
async def metrics(services: NamedDependency[Services]) -> Response[bytes]:
    """Prometheus' text format. Holds no name of a tenant or an adapter."""
    return Response(services.metrics.render(), media_type=CONTENT_TYPE)


HEALTH_ROUTES = [livez, readyz, metrics]

"""What operators' tools poll: is the server alive, should it be sent requests, its metrics, its version. Also what
draining refuses.

`/livez` answers as long as the event loop turns and never asks the engine: restarting the API does not mend an engine.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import msgspec
from litestar import Response, get, post
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency
from litestar.handlers import BaseRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.types import Guard

from loraplex import __version__
from loraplex.engine.client import EngineClient
from loraplex.platform.audit_rules import unaudited
from loraplex.platform.errors import unavailable
from loraplex.platform.metrics import CONTENT_TYPE
from loraplex.platform.services import Services

DRAIN_RETRY_SECONDS = 5


class Health(msgspec.Struct, frozen=True):
    """`reason`: why not, for people."""

    status: Literal["ok", "unavailable"]
    reason: str | None = None


class Version(msgspec.Struct, frozen=True):
    version: str


@get("/livez", opt={"public": True}, tags=["health"])
async def livez() -> Health:
    """The process answers."""
    return Health("ok")


UNAVAILABLE = {503: ResponseSpec(Health, description="Send no requests now", generate_examples=False)}


@get(["/readyz", "/health", "/ping"], opt={"public": True}, tags=["health"], responses=UNAVAILABLE)
async def readyz(services: NamedDependency[Services], drain: NamedDependency[asyncio.Event]) -> Response[Health]:
    """Requests can be served: not draining, the engine is up and its step loop makes progress."""
    return _readiness(services, drain)


@post(
    "/ping",
    status_code=200,
    opt={"public": True} | unaudited("it reads how the server is"),
    tags=["health"],
    responses=UNAVAILABLE,
)
async def ping(services: NamedDependency[Services], drain: NamedDependency[asyncio.Event]) -> Response[Health]:
    """As /readyz, for SageMaker, whose containers are asked by GET or POST; a body is not read."""
    return _readiness(services, drain)


def _readiness(services: Services, drain: asyncio.Event) -> Response[Health]:
    reason = why_not_ready(services.engine, drain, services.settings.engine_stall_seconds)
    return Response(Health("ok")) if reason is None else Response(Health("unavailable", reason), status_code=503)


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


@get("/version", opt={"public": True}, tags=["health"])
async def version() -> Version:
    """Which Loraplex this is."""
    return Version(__version__)


HEALTH_ROUTES = [livez, readyz, ping, version]
"""`metrics` may have a listener of its own instead."""

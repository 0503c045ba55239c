"""What is seen of every HTTP request: its headers of ours, its counters, its trace, and one line in the log.

Knows ASGI, and who asks by opaque ids; knows no handler.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import structlog
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from loraplex.platform.auth import ON_BEHALF_OF
from loraplex.platform.logging import request_id
from loraplex.platform.metrics import Metrics
from loraplex.platform.observability.tracing import Tracing

UNMATCHED = "unmatched"
"""The route of paths that match none: they have no end, so they count as one."""

logger = structlog.get_logger("loraplex.http")


def observe_requests(tracing: Tracing, *, access_log: bool) -> Callable[[ASGIApp], ASGIApp]:
    """Middleware: from here on a request is being processed, until its response has been sent or given up.

    access_log: tell of each request that a client made at level info, of probes and static files at debug.
    """

    def middleware(app: ASGIApp) -> ASGIApp:
        async def handle(scope: Scope, receive: Receive, send: Send) -> None:
            scope = cast("HTTPScope", scope)  # there are no others here
            scope["state"]["arrived_at"] = time.monotonic()
            with tracing.request(scope) as trace_id:
                known = {"request_id": request_id(scope)} | ({"trace_id": trace_id} if trace_id else {})
                with structlog.contextvars.bound_contextvars(**known):
                    try:
                        await app(scope, receive, send)
                    finally:
                        _log(scope, "info" if access_log and _is_a_clients(scope) else "debug")

        return handle

    return middleware


def response_hook(metrics: Metrics) -> Callable[[Message, Scope], Any]:
    """Litestar's `before_send`: stamp and count every response when it begins, whatever made it."""

    async def before_send(message: Message, scope: Scope) -> None:
        if message["type"] != "http.response.start" or scope["type"] == ScopeType.WEBSOCKET:
            return
        message["headers"] = [*message.get("headers", []), *_stamps(scope)]
        status, state = message["status"], scope["state"]
        state["status"] = status
        metrics.http_response(scope["method"], _route(scope), status)
        if status >= 400:
            metrics.error(status, state.get("error_code"))
        if (limit := state.get("limit")) is not None:
            metrics.limited(*limit)
        if "arrived_at" not in state:
            _log(scope, "debug")

    return before_send


def _stamps(scope: Scope) -> list[tuple[bytes, bytes]]:
    """Headers of every response: its id, by OpenAI's and by Anthropic's name; of inference also the time until it
    begins, in milliseconds, as OpenAI tells it."""
    headers = [(name, request_id(scope).encode()) for name in (b"x-request-id", b"request-id")]
    arrived_at = scope["state"].get("arrived_at")
    if arrived_at is not None and scope["route_handler"].opt.get("scope") == "inference":
        milliseconds = round((time.monotonic() - arrived_at) * 1000)
        headers.append((b"openai-processing-ms", str(milliseconds).encode()))
    return headers


def _route(scope: HTTPScope) -> str:
    return scope.get("path_template") or UNMATCHED


def _is_a_clients(scope: HTTPScope) -> bool:
    """Not a probe's, a file's, or the server's own for a line of a batch."""
    opt = scope["route_handler"].opt
    return not opt.get("public") and opt.get("page") != "file" and ON_BEHALF_OF not in scope


def _log(scope: HTTPScope, level: str) -> None:
    """No path, query, name or address: these are the client's."""
    state, principal = scope["state"], scope.get("auth")
    now = time.monotonic()
    getattr(logger, level)(
        "request",
        method=scope["method"],
        route=_route(scope),
        status=state.get("status"),
        seconds=round(now - state.get("arrived_at", now), 4),
        request_id=request_id(scope),
        code=state.get("error_code"),
        tenant_id=getattr(principal, "tenant_id", None),
        key_id=getattr(principal, "key_id", None),
    )

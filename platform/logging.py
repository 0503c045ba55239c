"""How the server logs: structured lines with the request's id and never a secret; and where that id comes from."""

from __future__ import annotations

import logging
import re
import secrets
import sys
import time
from collections.abc import Callable, MutableMapping
from typing import Any, Literal

import structlog
from litestar.datastructures import Headers
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from loraplex.platform.metrics import Metrics

SECRET = re.compile(r"\blk_[A-Za-z0-9_]{8,}|(?<=://)[^/@\s:]*:[^/@\s]*(?=@)")
"""API keys, and the credentials in a database URL."""
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

logger = structlog.get_logger("loraplex.http")


def configure_logging(level: str, format: Literal["console", "json"]) -> None:
    """Send our own lines and those of the standard library to stderr, in one form."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact,
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer()
        if format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in ("uvicorn", "uvicorn.error", "alembic", "httpx", "httpcore", "aiosqlite"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))


def redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: no text that looks like a key or a password leaves the process."""
    for field, value in event.items():
        if isinstance(value, str):
            event[field] = SECRET.sub("[redacted]", value)
    return event


def request_id(scope: Scope) -> str:
    """The client's `x-request-id` if it is harmless, else a new one; the same for the whole request."""
    state = scope["state"]
    if "request_id" not in state:
        given = Headers.from_scope(scope).get("x-request-id", "")
        state["request_id"] = given if REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(16)}"
    return str(state["request_id"])


def note_arrival(app: ASGIApp) -> ASGIApp:
    """Middleware: from here on a request is being processed."""

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["arrived_at"] = time.monotonic()
        await app(scope, receive, send)

    return handle


def _stamps(scope: Scope) -> list[tuple[bytes, bytes]]:
    """Headers of every response: its id, by OpenAI's and by Anthropic's name; of inference also the time until it
    begins, in milliseconds, as OpenAI tells it."""
    headers = [(name, request_id(scope).encode()) for name in (b"x-request-id", b"request-id")]
    arrived_at = scope["state"].get("arrived_at")
    if arrived_at is not None and scope["route_handler"].opt.get("scope") == "inference":
        milliseconds = round((time.monotonic() - arrived_at) * 1000)
        headers.append((b"openai-processing-ms", str(milliseconds).encode()))
    return headers


def response_hook(metrics: Metrics) -> Callable[[Message, Scope], Any]:
    """Litestar's `before_send`: stamp, count and log every response when it begins, whatever made it."""

    async def before_send(message: Message, scope: Scope) -> None:
        if message["type"] != "http.response.start" or scope["type"] == ScopeType.WEBSOCKET:
            return
        message["headers"] = [*message.get("headers", []), *_stamps(scope)]
        # Paths that match no route have no end: they count as one.
        route = scope.get("path_template") or "unmatched"
        metrics.http_response(scope["method"], route, message["status"])
        principal = scope.get("auth")
        logger.debug(
            "response",
            method=scope["method"],
            route=route,
            status=message["status"],
            request_id=request_id(scope),
            key_id=getattr(principal, "key_id", None),
        )

    return before_send

"""How the server logs: structured lines with the request's id and never a secret; and where that id comes from."""

from __future__ import annotations

import logging
import re
import secrets
import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog
from litestar.datastructures import Headers
from litestar.types import Scope

from loraplex.platform.redaction import redacted

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


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
    for chatty in ("uvicorn", "uvicorn.error", "alembic", "httpx", "httpcore", "aiosqlite", "urllib3"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))


def redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: no secret leaves the process, under whatever name or in whatever text."""
    for field, value in event.items():
        if not field.startswith("_"):  # structlog's own
            event[field] = redacted(field, value)
    return event


def request_id(scope: Scope) -> str:
    """The client's `x-request-id` if it is harmless, else a new one; the same for the whole request."""
    state = scope["state"]
    if "request_id" not in state:
        given = Headers.from_scope(scope).get("x-request-id", "")
        state["request_id"] = given if REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(16)}"
    return str(state["request_id"])

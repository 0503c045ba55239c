"""Every handler that may change something says what the audit log will have of it, or why there is nothing.

Knows handlers and what they declare; that they do as they say is for tests to see, which call every one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from litestar import Litestar
from litestar.handlers import HTTPRouteHandler

from loraplex.adapters.audit_actions import ACTIONS

READS = frozenset({"GET", "HEAD", "OPTIONS"})


def audited(*actions: str) -> dict[str, Any]:
    """For a handler's `opt`: what its entries in the audit log say was done, one of these or several."""
    return {"audited": actions}


def unaudited(why: str) -> dict[str, Any]:
    """For the `opt` of a handler that answers POST or the like and changes nothing that the log is about."""
    return {"unaudited": why}


INFERENCE = {"scope": "inference", **unaudited("inference: it reads adapters, and usage is counted elsewhere")}
"""The whole `opt` of handlers that compute something."""


def mutating_handlers(app: Litestar) -> Iterator[tuple[str, str, HTTPRouteHandler]]:
    """Method, path and handler of all that is no mere reading."""
    for route in app.routes:
        for handler in getattr(route, "route_handlers", []):
            for method in sorted(set(handler.http_methods) - READS):
                yield method, route.path_format, handler


def require_audited(app: Litestar) -> None:
    """Raises `RuntimeError` for a handler that may change something and declares neither, both, or no known action."""
    for method, path, handler in mutating_handlers(app):
        actions, why = handler.opt.get("audited", ()), handler.opt.get("unaudited")
        if bool(actions) == bool(why) or not ACTIONS.keys() >= set(actions):
            needs = "opt=audited(actions that audit_actions lists), or opt=unaudited(why)"
            raise RuntimeError(f"{method} {path}: {handler} needs {needs}")

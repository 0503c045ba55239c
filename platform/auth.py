"""Who is calling, and may they: keys, scopes, and the rule that a handler nobody thought of is closed.

Knows where keys are checked (`tenants`), not how they are stored. Every handler carries either `opt["public"]` or the
one scope that it needs, `opt["scope"]`; pages for people carry `opt["page"]`, and `web/access` decides about them.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from litestar import Litestar, Request
from litestar.connection import ASGIConnection
from litestar.datastructures import Headers
from litestar.di import NamedDependency
from litestar.handlers import BaseRouteHandler
from litestar.types import Guard

from loraplex.adapters.changes import KEYS, ChangeFeed
from loraplex.adapters.schema import now
from loraplex.platform.errors import ApiError
from loraplex.platform.key_terms import SCOPES
from loraplex.platform.tenants import InvalidKey, Principal, TenantDirectory

MAX_SECRET_CHARS = 256
CHALLENGE = {"www-authenticate": "Bearer"}

PAGES = frozenset({"file", "anyone", "person", "operator"})
"""Who may see a page: whoever comes (and a static file even in the clear), who is signed in, of these the operators."""

ON_BEHALF_OF = "loraplex.principal"
"""The key in an ASGI scope of who is calling, where the server makes a request itself. No HTTP client can set it."""

OWN_WORK = "loraplex.own_work"
"""The key in such a scope of a name for what the request is for. If the server dies it is made again under this name,
and is billed once."""


@dataclass(frozen=True)
class _Entry:
    principal: Principal
    expires: float


class Authenticator:
    """Turns a secret into a `Principal`, and remembers the answer until keys change, at most for `ttl_seconds` and
    until the key ends by the clock.

    A key that is revoked through another server goes on working here for at most `changes.MAX_STALE_SECONDS`. Holds
    digests, never secrets.
    """

    def __init__(
        self,
        tenants: TenantDirectory,
        changes: ChangeFeed,
        *,
        ttl_seconds: float,
        max_entries: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tenants = tenants
        self._changes = changes
        changes.subscribe(self._forget)
        self._ttl_seconds = ttl_seconds
        self._max_entries = max_entries
        self._clock = clock
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._generation = 0

    async def authenticate(self, secret: str) -> Principal:
        """Raises `InvalidKey` for a secret that is unknown, revoked, expired, or of a suspended tenant."""
        await self._changes.refresh()
        digest = hashlib.sha256(secret.encode()).digest()
        entry = self._entries.get(digest)
        if entry is not None and entry.expires > self._clock():
            return entry.principal
        generation = self._generation
        principal = await self._tenants.authenticate(secret)
        # A key that was revoked while we asked must not come back into the cache.
        if generation == self._generation:
            self._remember(digest, principal)
        return principal

    def _forget(self, subjects: frozenset[str] | None) -> None:
        if subjects is None or KEYS in subjects:
            self._generation += 1
            self._entries.clear()

    def _remember(self, digest: bytes, principal: Principal) -> None:
        self._entries.pop(digest, None)
        seconds = self._ttl_seconds
        if principal.valid_until is not None:
            seconds = min(seconds, (principal.valid_until - now()).total_seconds())
        self._entries[digest] = _Entry(principal, self._clock() + seconds)
        if len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)


def make_guard(authenticator: Authenticator) -> Guard:
    """The guard of the whole app. The principal it found is `connection.scope["auth"]`."""

    async def guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        if handler.opt.get("public") or "page" in handler.opt:
            return
        principal: Any = connection.scope.get(ON_BEHALF_OF)
        if principal is None:
            principal = await _authenticate(authenticator, connection.headers)
        scope = handler.opt.get("scope")
        if scope not in principal.scopes or (scope != "admin" and principal.tenant_id is None):
            raise ApiError(403, "insufficient_permissions", _why_forbidden(principal, scope))
        connection.scope["auth"] = principal

    return guard


def provide_principal(request: Request[Any, Any, Any]) -> Principal:
    """The caller, for handlers that are not public."""
    principal: Principal = request.auth
    return principal


def provide_tenant_id(principal: NamedDependency[Principal]) -> str:
    """The caller's tenant: never from the request. The guard has sent operators away, who have none."""
    assert principal.tenant_id is not None
    return principal.tenant_id


def require_closed(app: Litestar) -> None:
    """Raises `RuntimeError` if a handler carries neither `public` nor one of `SCOPES` nor, as a page, of `PAGES`."""
    for route in app.routes:
        for handler in getattr(route, "route_handlers", [getattr(route, "route_handler", None)]):
            if handler is None or getattr(handler, "http_methods", None) == {"OPTIONS"}:
                continue
            opt = handler.opt
            if not opt.get("public") and opt.get("scope") not in SCOPES and opt.get("page") not in PAGES:
                needs = f"public=True, scope=one of {sorted(SCOPES)} or page=one of {sorted(PAGES)}"
                raise RuntimeError(f"{route.path}: {handler} needs opt {needs}")


def _why_forbidden(principal: Principal, scope: str | None) -> str:
    if principal.tenant_id is None and scope != "admin":
        return (
            "This API key belongs to an operator, not to a tenant. Create a tenant's key with POST /api/v1/admin/keys."
        )
    return f"This API key lacks the scope `{scope}`, which is needed here. Ask the operator for a key that has it."


async def _authenticate(authenticator: Authenticator, headers: Headers) -> Principal:
    """By either header; clients that send both send the same key in both."""
    bearer, own = headers.get("authorization", ""), headers.get("x-api-key", "").strip()
    if not bearer and not own:
        message = "No API key was given. Send it in the header `Authorization: Bearer YOUR_KEY`, or in `x-api-key`."
        raise ApiError(401, None, message, headers=CHALLENGE)
    kind, _, secret = bearer.partition(" ") if bearer else ("bearer", "", own)
    secret = secret.strip()
    if own and secret != own:
        message = "`Authorization` and `x-api-key` hold different keys. Send one of them, or the same key in both."
        raise ApiError(401, "invalid_api_key", message, headers=CHALLENGE)
    try:
        if kind.lower() != "bearer" or not 0 < len(secret) <= MAX_SECRET_CHARS:
            raise InvalidKey
        return await authenticator.authenticate(secret)
    except InvalidKey:
        message = "The API key is not valid: it is unknown, revoked or expired. Send `Authorization: Bearer YOUR_KEY`."
        raise ApiError(401, "invalid_api_key", message, headers=CHALLENGE) from None

"""Who asks for a change, for the audit log: from what the guards found out about a request.

Knows keys and people. Which handlers have to hand it on is in `audit_rules`.
"""

from __future__ import annotations

from typing import Any

from litestar import Request

from loraplex.adapters.audit import Actor
from loraplex.platform.logging import request_id
from loraplex.platform.tenants import Principal
from loraplex.platform.web_sessions import Person

MAX_ADDRESS_CHARS = 64

PERSON = "loraplex.person"
"""The key in an ASGI scope of the person who acts for a tenant, where a handler of the API finds a `Principal`."""


def provide_actor(request: Request[Any, Any, Any]) -> Actor:
    """The caller, for handlers that change something; their argument is called `by`."""
    who: Any = request.scope.get(PERSON) or request.scope.get("auth")
    # A proxy on this machine gives it by a header, so it may be any text.
    address = None if request.client is None else request.client.host[:MAX_ADDRESS_CHARS]
    origin = {"request_id": request_id(request.scope), "address": address}
    if isinstance(who, Person):
        return Actor("account", who.account_id, who.login, who.tenant_id, **origin)
    if isinstance(who, Principal):
        return Actor("key", who.key_id, None, who.tenant_id, **origin)
    return Actor("visitor", **origin)

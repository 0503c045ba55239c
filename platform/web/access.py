"""Who may see a page and change something by it: sessions by cookie, requests from our own pages only, roles.

Knows nothing of API keys: those open no page, and a session opens nothing but pages. What a handler needs stands in its
`opt["page"]`; the guard is the whole application's, so that no router can forget it.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from typing import Any

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.datastructures import Cookie
from litestar.exceptions import NotFoundException
from litestar.handlers import BaseRouteHandler
from litestar.types import Guard

from loraplex.platform.errors import ApiError
from loraplex.platform.settings import Settings
from loraplex.platform.web.forms import CSRF_FIELD, form_fields
from loraplex.platform.web_sessions import Person, WebSessions

COOKIE = "loraplex_session"
SECURE_COOKIE = f"__Host-{COOKIE}"
"""Over https. Browsers take it only if it is Secure, for this very host and for all paths of it."""

CSRF_HEADER = "x-csrf-token"
MAX_TOKEN_CHARS = 128
READS = frozenset({"GET", "HEAD", "OPTIONS"})

Connection = ASGIConnection[Any, Any, Any, Any]


class SignInNeeded(Exception):
    """The page is for people who are signed in, and whoever asks for it is not, or not any more."""


def make_page_guard(sessions: WebSessions, settings: Settings) -> Guard:
    """The guard of all pages. The person that it found is `connection.scope["auth"]`."""

    async def guard(connection: Connection, handler: BaseRouteHandler) -> None:
        wanted = handler.opt.get("page")
        if wanted in (None, "file"):
            return
        if not (settings.insecure_admin_http or is_confidential(connection)):
            raise _clear_text()
        changes = connection.scope.get("method") not in READS
        if changes:
            require_own_page(connection)
        if wanted == "anyone":
            return
        token = session_token(connection)
        # Pages ask for their live parts again and again: nobody need be there for that.
        is_use = "hx-request" not in connection.headers
        person = await sessions.find(token, is_use=is_use) if token else None
        if token is None or person is None:
            raise SignInNeeded
        if changes:
            await _require_csrf_token(connection, token)
        connection.scope["auth"] = person
        if wanted == "operator" and not person.is_operator:
            raise NotFoundException

    return guard


def provide_person(request: Request[Any, Any, Any]) -> Person:
    """Who is signed in, for pages that are not for anyone."""
    person: Person = request.auth
    return person


def require_own_page(connection: Connection) -> None:
    """Raises ApiError 403 for a change that another site's page, or no page, asks for.

    Browsers say where a request comes from, in Sec-Fetch-Site (https, loopback) or in Origin; pages cannot forge these.
    """
    site, origin = connection.headers.get("sec-fetch-site"), connection.headers.get("origin")
    if site is not None:
        is_own = site == "same-origin"
    else:
        is_own = origin is not None and origin.partition("://")[2] == connection.headers.get("host")
    if not is_own:
        raise ApiError(403, "cross_site", "This request did not come from a page of this server, so nothing was done.")


def csrf_token(session: str) -> str:
    """What the forms of a session carry: whoever has it cannot tell the session's token from it."""
    return hmac.digest(session.encode(), b"csrf", hashlib.sha256).hex()


def session_token(connection: Connection) -> str | None:
    """The token in the cookie that belongs to the connection: a plain one counts for nothing over https."""
    token = connection.cookies.get(SECURE_COOKIE if is_https(connection) else COOKIE, "")
    return token if 0 < len(token) <= MAX_TOKEN_CHARS else None


def session_cookie(connection: Connection, token: str, settings: Settings) -> Cookie:
    """The cookie that carries a session from here on; without a token it ends the one that does."""
    return Cookie(
        key=SECURE_COOKIE if is_https(connection) else COOKIE,
        value=token,
        max_age=round(settings.session_max_seconds) if token else 0,
        secure=is_https(connection),
        httponly=True,
        samesite="lax",
    )


def is_confidential(connection: Connection) -> bool:
    """Whether nobody between the browser and us can read along: https, or both on one machine."""
    return is_https(connection) or (connection.client is not None and _is_loopback(connection.client.host))


async def _require_csrf_token(connection: Connection, session: str) -> None:
    given = connection.headers.get(CSRF_HEADER)
    if given is None:
        request: Request[Any, Any, Any] = Request(connection.scope, connection.receive)
        given = next(iter((await form_fields(request)).get(CSRF_FIELD, [])), "")
    if not hmac.compare_digest(given.encode(), csrf_token(session).encode()):
        raise ApiError(
            403, "csrf", "This form is from an earlier session. Open the page again, then repeat the change."
        )


def is_https(connection: Connection) -> bool:
    return connection.scope["scheme"] == "https"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _clear_text() -> ApiError:
    message = (
        "Passwords are not taken over plain HTTP from another machine. Put a proxy with TLS in front of the server, or "
        "come through a tunnel: ssh -L 8000:localhost:8000 HOST. To allow it all the same, set "
        "LORAPLEX_INSECURE_ADMIN_HTTP=true."
    )
    return ApiError(403, "insecure_transport", message)

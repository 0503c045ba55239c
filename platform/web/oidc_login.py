"""Sign in through an OpenID provider: off to it, and back with its word for who somebody is.

Knows cookies and pages; what the provider's word must hold is `oidc`'s, what it is good for `identities`'.
"""

from __future__ import annotations

import hmac
from typing import Any
from urllib.parse import quote, unquote

import structlog
from litestar import Request, Response, get
from litestar.datastructures import Cookie
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.response import Redirect

from loraplex.adapters.audit import Actor
from loraplex.platform.audit_rules import audited
from loraplex.platform.errors import ApiError
from loraplex.platform.identities import NotAdmitted
from loraplex.platform.oidc_flow import FLOW_SECONDS, Flow, OidcError, ProviderUnreachable
from loraplex.platform.services import Services
from loraplex.platform.web.access import is_https
from loraplex.platform.web.entry import address_of, admit, login_page, own_path, signed_in
from loraplex.platform.web.rendering import go

COOKIE = "loraplex_sign_in"
MAX_PARAMETER_CHARS = 4096
MAX_SECRET_CHARS = 64

logger = structlog.get_logger(__name__)


@get("/login/oidc", opt={"page": "anyone"})
async def begin_sign_in(request: Request[Any, Any, Any], services: NamedDependency[Services]) -> Response[Any]:
    """To the provider, under a secret that this browser alone keeps. By a link: a form's way out our policy forbids."""
    if services.oidc is None:
        raise NotFoundException
    path, flow = own_path(request.query_params.get("next", "")), Flow.new()
    try:
        answer = Redirect(await services.oidc.authorization_url(flow), status_code=303)
    except OidcError as error:
        return _refused(request, services, error)
    answer.cookies.append(_cookie(request, f"{flow.secret}.{quote(path, safe='')}"))
    return answer


@get(
    "/login/oidc/callback",
    opt={"page": "anyone"} | audited("account.create", "account.role", "account.login", "account.logout_everywhere"),
)
async def finish_sign_in(
    request: Request[Any, Any, Any], services: NamedDependency[Services], by: NamedDependency[Actor]
) -> Response[Any]:
    """Back from the provider: begin a session for whom it vouches, under a token that was not there before."""
    if services.oidc is None:
        raise NotFoundException
    secret, _, path = request.cookies.get(_cookie_name(request), "").partition(".")
    try:
        code, issuer = _answer(request, Flow(secret)), request.query_params.get("iss")
        address = address_of(request)
        admit(services, request, f"oidc {address}")
        identity = await services.oidc.identity(Flow(secret), code, issuer)
        account = await services.identities.sign_in(identity, by=by)
    except (ApiError, OidcError, NotAdmitted) as error:
        return _refused(request, services, error)
    services.logins.succeeded(f"oidc {address}", address)
    logger.info("signed_in", account=account.login, role=account.role)
    answer = await signed_in(request, services, account, go(own_path(unquote(path))))
    answer.cookies.append(_cookie(request, ""))
    return answer


def _answer(request: Request[Any, Any, Any], flow: Flow) -> str:
    """The code with which the provider sent this browser back. Raises ApiError for anything else."""
    given = {name: request.query_params.get(name, "") for name in ("state", "code", "error")}
    is_bounded = all(len(value) <= MAX_PARAMETER_CHARS for value in given.values())
    is_ours = hmac.compare_digest(given["state"].encode(), flow.state.encode())
    if not (is_bounded and is_ours and 0 < len(flow.secret) <= MAX_SECRET_CHARS):
        minutes = FLOW_SECONDS // 60
        message = f"This sign-in did not begin in this browser, or took longer than {minutes} minutes. Begin again."
        raise ApiError(400, "sign_in_lost", message)
    if given["error"] or not given["code"]:
        raise ApiError(403, "sign_in_refused", "The provider did not sign you in. Begin again, or ask whoever runs it.")
    return given["code"]


def _refused(request: Request[Any, Any, Any], services: Services, error: Exception) -> Response[Any]:
    """The login page, which says no more than a person needs; the log says why."""
    match error:
        case ApiError():
            told = error
        case NotAdmitted():
            logger.warning("sign_in_refused", reason=error.reason, address=address_of(request))
            told = ApiError(403, "not_admitted", str(error))
        case ProviderUnreachable():
            logger.error("sign_in_failed", reason=str(error))
            told = ApiError(503, "provider_unreachable", "The provider does not answer as it should. Try again soon.")
        case _:
            logger.warning("sign_in_failed", reason=str(error), address=address_of(request))
            told = ApiError(400, "sign_in_failed", "The sign-in did not succeed. Begin again.")
    answer = login_page(request, services, refusal=told)
    answer.cookies.append(_cookie(request, ""))
    return answer


def _cookie_name(request: Request[Any, Any, Any]) -> str:
    return f"__Host-{COOKIE}" if is_https(request) else COOKIE


def _cookie(request: Request[Any, Any, Any], value: str) -> Cookie:
    """Lax, since the way back begins on the provider's page."""
    return Cookie(
        key=_cookie_name(request),
        value=value,
        max_age=FLOW_SECONDS if value else 0,
        secure=is_https(request),
        httponly=True,
        samesite="lax",
    )


OIDC_PAGES = [begin_sign_in, finish_sign_in]

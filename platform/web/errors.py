"""What goes wrong, as a page: the same table as the API's, told to people.

What is absent and what is somebody else's give one and the same page.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.response import Redirect
from litestar.types import ExceptionHandlersMap

from loraplex.adapters.errors import AdapterError
from loraplex.engine.client import EngineUnavailable
from loraplex.platform.accounts import AccountError
from loraplex.platform.batches.errors import BatchError
from loraplex.platform.errors import ApiError, tell
from loraplex.platform.key_terms import InvalidKeyRequest
from loraplex.platform.passwords import PasswordRefused, PasswordsBusy
from loraplex.platform.tenants import TenantError
from loraplex.platform.web.access import SignInNeeded
from loraplex.platform.web.rendering import page

REFUSALS = (
    ApiError,
    AdapterError,
    TenantError,
    InvalidKeyRequest,
    AccountError,
    BatchError,
    PasswordRefused,
    PasswordsBusy,
    EngineUnavailable,
    msgspec.ValidationError,
)
"""What a handler of a form catches, to show the form again with the reason."""

TITLES = {
    400: "That did not work",
    403: "Not allowed",
    404: "Nothing here",
    405: "That did not work",
    413: "Too large",
    429: "Too many tries",
    500: "Something broke",
    503: "Not now",
}
NOT_FOUND = "There is no such page, or it is not yours to see."


def refusal_of(request: Request[Any, Any, Any], error: Exception) -> ApiError:
    """Why a form's change was not done, for its page. What is not there has no page: that is raised again."""
    told = tell(request, error)
    if told.status == 404 or told.status == 500:
        raise error
    return told


def respond(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """The page for an error that no form shows."""
    if isinstance(error, SignInNeeded):
        return _to_login(request)
    told = tell(request, error)
    message = NOT_FOUND if told.status == 404 else told.message
    title = TITLES.get(told.status, TITLES[500 if told.status >= 500 else 400])
    answer = page(request, "error.html", code=told.status, title=title, message=message)
    answer.headers.update(told.headers)
    return answer


def _to_login(request: Request[Any, Any, Any]) -> Response[Any]:
    back = quote(request.url.path, safe="/") if request.method == "GET" else "/admin"
    if "hx-request" in request.headers:  # a part of a page that was open when its session ended
        return Response(b"", status_code=401, headers={"hx-redirect": "/admin/login"})
    return Redirect(f"/admin/login?next={back}", status_code=303)


PAGE_EXCEPTION_HANDLERS: ExceptionHandlersMap = {Exception: respond, HTTPException: respond}
"""For the router of all pages."""

"""How people come in and go out: the first account, sign in, sign out, change one's password."""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec
import structlog
from litestar import Request, Response, get, post
from litestar.background_tasks import BackgroundTask
from litestar.di import NamedDependency
from litestar.response import Redirect
from msgspec import Meta
from sqlalchemy.exc import SQLAlchemyError

from loraplex.adapters.audit import Actor
from loraplex.platform.accounts import AccountInfo, NotTheFirst, WrongCredentials
from loraplex.platform.audit_rules import audited
from loraplex.platform.errors import ApiError
from loraplex.platform.passwords import MAX_PASSWORD_CHARS, MIN_PASSWORD_CHARS
from loraplex.platform.services import Services
from loraplex.platform.web.access import session_cookie, session_token
from loraplex.platform.web.errors import REFUSALS, refusal_of
from loraplex.platform.web.forms import form_fields, only, read_form
from loraplex.platform.web.rendering import go, page
from loraplex.platform.web_sessions import Person

_NEXT = re.compile(r"/admin(/[\w.@~-]+)*", re.ASCII)

WRONG_CREDENTIALS = "wrong_credentials"

Text = Annotated[str, Meta(min_length=1, max_length=MAX_PASSWORD_CHARS)]

logger = structlog.get_logger(__name__)


class SetUp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    token: Text
    login: Text
    password: Text


class SignIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    login: Text
    password: Text
    next: str = "/admin"


class ChangePassword(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    current: Text
    password: Text


@get("/setup", opt={"page": "anyone"})
async def show_setup(request: Request[Any, Any, Any], services: NamedDependency[Services]) -> Response[Any]:
    """Make the first account, while there is none."""
    if await services.accounts.exist() or not services.settings.password_login:
        return go("/admin/login")
    return _setup_page(request)


@post("/setup", opt={"page": "anyone"} | audited("account.create"))
async def set_up(
    request: Request[Any, Any, Any], services: NamedDependency[Services], by: NamedDependency[Actor]
) -> Response[Any]:
    """Take the token, which works once, and make an operator's account of whoever has it."""
    require_password_login(services)
    fields = await form_fields(request)
    try:
        form = read_form(fields, SetUp)
        admit(services, request, form.login)
        if not services.setup_token.matches(form.token):
            raise ApiError(
                400, "wrong_token", "token: This is not the token that the server printed last.", param="token"
            )
        account = await services.accounts.create(form.login, form.password, first=True, by=by)
    except NotTheFirst:
        services.setup_token.withdraw()
        return go("/admin/login")
    except REFUSALS as error:
        return _setup_page(request, login=only(fields, "login"), refusal=refusal_of(request, error))
    services.setup_token.withdraw()
    logger.info("set_up", account=account.login)
    return await signed_in(request, services, account, go("/admin", "welcome"))


@get("/login", opt={"page": "anyone"})
async def show_login(request: Request[Any, Any, Any], services: NamedDependency[Services]) -> Response[Any]:
    """Sign in."""
    is_set_up = await services.accounts.exist()
    if services.oidc is None and not is_set_up:
        return go("/admin/setup")
    return login_page(request, services, next_path=request.query_params.get("next", ""), is_set_up=is_set_up)


@post("/login", opt={"page": "anyone"} | audited("account.login", "account.login_fail", "account.lock_out"))
async def log_in(
    request: Request[Any, Any, Any], services: NamedDependency[Services], by: NamedDependency[Actor]
) -> Response[Any]:
    """Begin a session, under a token that was not there before."""
    require_password_login(services)
    fields = await form_fields(request)
    try:
        form = read_form(fields, SignIn)
        account = await _authenticate(services, request, form.login, form.password, by=by)
    except REFUSALS as error:
        refusal = refusal_of(request, error)
        answer = login_page(request, services, only(fields, "next"), only(fields, "login"), refusal)
        return _noting_failure(answer, refusal, services, only(fields, "login"), by)
    return await signed_in(request, services, account, go(own_path(form.next)))


@post("/logout", opt={"page": "person"} | audited("account.logout"))
async def log_out(
    request: Request[Any, Any, Any], services: NamedDependency[Services], by: NamedDependency[Actor]
) -> Redirect:
    """End this session."""
    await services.web_sessions.close(session_token(request) or "", signs_out=by)
    return _signed_out(request, services, "signed-out")


@post("/logout/everywhere", opt={"page": "person"} | audited("account.logout_everywhere"))
async def log_out_everywhere(
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    person: NamedDependency[Person],
    by: NamedDependency[Actor],
) -> Redirect:
    """End all sessions of the account."""
    await services.web_sessions.close_all(person.account_id, by=by)
    return _signed_out(request, services, "signed-out-everywhere")


@get("/account", opt={"page": "person"})
async def show_account(
    request: Request[Any, Any, Any], services: NamedDependency[Services], person: NamedDependency[Person]
) -> Response[Any]:
    """One's own account."""
    return await _account_page(request, services, person)


@post(
    "/account/password", opt={"page": "person"} | audited("account.password", "account.login_fail", "account.lock_out")
)
async def change_password(
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    person: NamedDependency[Person],
    by: NamedDependency[Actor],
) -> Response[Any]:
    """Change one's password, which ends all sessions and begins a new one here."""
    require_password_login(services)
    try:
        form = read_form(await form_fields(request), ChangePassword)
        await _authenticate(services, request, person.login, form.current, is_login=False, by=by)
        account = await services.accounts.set_password(person.login, form.password, by=by)
    except REFUSALS as error:
        refusal = refusal_of(request, error)
        answer = await _account_page(request, services, person, refusal=refusal)
        return _noting_failure(answer, refusal, services, person.login, by)
    return await signed_in(request, services, account, go("/admin/account", "password-changed"))


async def _authenticate(
    services: Services, request: Request[Any, Any, Any], login: str, password: str, *, by: Actor, is_login: bool = True
) -> AccountInfo:
    """Whose these are. Raises ApiError 429 where there were too many tries, 401 where they are wrong."""
    param = "password" if is_login else "current"
    admit(services, request, login)
    try:
        account = await services.accounts.authenticate(login, password, is_login=is_login, by=by)
    except WrongCredentials as error:
        logger.warning("login_failed", address=address_of(request))
        raise ApiError(401, WRONG_CREDENTIALS, str(error), param=param) from error
    services.logins.succeeded(login, address_of(request))
    return account


def _noting_failure(
    answer: Response[Any], refusal: ApiError, services: Services, login: str, by: Actor
) -> Response[Any]:
    """The answer, after which a wrong password is counted: the time that takes would tell which names there are."""
    if refusal.code == WRONG_CREDENTIALS:
        answer.background = BackgroundTask(_note_failure, services, login, by)
    return answer


async def _note_failure(services: Services, login: str, by: Actor) -> None:
    try:
        await services.accounts.note_failed_login(login, by=by)
    except (OSError, SQLAlchemyError) as error:
        logger.warning("a failed sign-in cannot be written down", error=str(error))


def admit(services: Services, request: Request[Any, Any, Any], login: str) -> None:
    """Count a try. Raises ApiError 429."""
    wait = services.logins.admit(login, address_of(request))
    if wait:
        seconds = max(round(wait), 1)
        message = f"There were too many tries. Wait {seconds} seconds, then try again."
        raise ApiError(429, "too_many_tries", message, headers={"retry-after": str(seconds)})


async def signed_in(
    request: Request[Any, Any, Any], services: Services, account: AccountInfo, answer: Redirect
) -> Redirect:
    """The answer with a new session of the account's. The one that the browser had ends: whoever knew its token knows
    nothing."""
    if token := session_token(request):
        await services.web_sessions.close(token)
    token = await services.web_sessions.open(account.id)
    answer.cookies.append(session_cookie(request, token, services.settings))
    return answer


def _signed_out(request: Request[Any, Any, Any], services: Services, done: str) -> Redirect:
    answer = go("/admin/login", done)
    answer.cookies.append(session_cookie(request, "", services.settings))
    return answer


def login_page(
    request: Request[Any, Any, Any],
    services: Services,
    next_path: str = "",
    login: str = "",
    refusal: ApiError | None = None,
    *,
    is_set_up: bool = True,
) -> Response[Any]:
    """The ways in that this server has. is_set_up: whether there is an account."""
    settings = services.settings
    return page(
        request,
        "login.html",
        refusal=refusal,
        login=login,
        next=own_path(next_path),
        provider=settings.oidc_name if services.oidc else None,
        takes_passwords=settings.password_login,
        is_set_up=is_set_up,
    )


def require_password_login(services: Services) -> None:
    """Raises ApiError 403 where passwords are switched off."""
    if not services.settings.password_login:
        message = "This server takes no passwords. Sign in through the provider, or set LORAPLEX_PASSWORD_LOGIN=true."
        raise ApiError(403, "password_login_off", message)


def _setup_page(request: Request[Any, Any, Any], login: str = "", refusal: ApiError | None = None) -> Response[Any]:
    return page(request, "setup.html", login=login, least=MIN_PASSWORD_CHARS, refusal=refusal)


async def _account_page(
    request: Request[Any, Any, Any], services: Services, person: Person, refusal: ApiError | None = None
) -> Response[Any]:
    account = await services.accounts.get(person.login)
    return page(
        request,
        "account.html",
        sessions=await services.web_sessions.count(person.account_id),
        least=MIN_PASSWORD_CHARS,
        provider=None if account.has_password else services.settings.oidc_name,
        takes_passwords=services.settings.password_login,
        refusal=refusal,
    )


def own_path(path: str) -> str:
    """Where to go after signing in: one of our own pages, whatever the URL says."""
    return path if _NEXT.fullmatch(path) else "/admin"


def address_of(request: Request[Any, Any, Any]) -> str:
    return request.client.host if request.client else ""


ENTRY_PAGES = [show_setup, set_up, show_login, log_in, log_out, log_out_everywhere, show_account, change_password]

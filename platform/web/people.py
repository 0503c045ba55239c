"""Accounts of people, for operators: who may sign in, new ones and passwords, shown once, and who may not any more."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.params import FromPath
from msgspec import Meta

from loraplex.adapters.audit import Actor
from loraplex.platform.accounts import new_password
from loraplex.platform.audit_rules import audited
from loraplex.platform.errors import ApiError
from loraplex.platform.manage.adapter_schemas import Name
from loraplex.platform.services import Services
from loraplex.platform.web.entry import require_password_login
from loraplex.platform.web.errors import REFUSALS, refusal_of
from loraplex.platform.web.forms import Fields, form_fields, only, read_form
from loraplex.platform.web.rendering import go, page
from loraplex.platform.web_sessions import Person


class NewAccount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Without a tenant it is an operator's: that has to be said, so that nobody becomes one by an omission."""

    login: Name
    role: Annotated[str, Meta(pattern="^(operator|tenant-admin)$")]
    tenant: Name | None = None

    def owner(self) -> str | None:
        """The tenant. Raises ApiError 400 for an admin of none."""
        if self.role == "operator":
            return None
        if self.tenant is None:
            raise ApiError(400, "missing_required_parameter", "Say of which tenant it is.", param="tenant")
        return self.tenant


@get("/people", opt={"page": "operator"})
async def list_people(request: Request[Any, Any, Any], services: NamedDependency[Services]) -> Response[Any]:
    """All accounts."""
    return await _people_page(request, services)


@get("/people/new", opt={"page": "operator"})
async def show_new_person(request: Request[Any, Any, Any], services: NamedDependency[Services]) -> Response[Any]:
    """The form for a new account."""
    require_password_login(services)
    return await _new_person_page(request, services, {})


@post("/people/new", opt={"page": "operator"} | audited("account.create"))
async def create_person(
    request: Request[Any, Any, Any], services: NamedDependency[Services], by: NamedDependency[Actor]
) -> Response[Any]:
    """Create an account and show its password: here, and never again."""
    require_password_login(services)
    fields, password = await form_fields(request), new_password()
    try:
        form = read_form(fields, NewAccount)
        account = await services.accounts.create(form.login, password, form.owner(), by=by)
    except REFUSALS as error:
        return await _new_person_page(request, services, fields, refusal=refusal_of(request, error))
    return page(request, "person_password.html", account=account, password=password, code=201)


@post(
    "/people/{login:str}/{action:str}",
    opt={"page": "operator"} | audited("account.password", "account.disable", "account.enable"),
)
async def change_person(
    login: FromPath[str],
    action: FromPath[str],
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    person: NamedDependency[Person],
    by: NamedDependency[Actor],
) -> Response[Any]:
    """Give an account another password, disable it, or enable it again."""
    try:
        if login == person.login:
            raise ApiError(409, "own_account", "This is your own account; another operator can do that.")
        match action:
            case "password":
                require_password_login(services)
                password = new_password()
                account = await services.accounts.set_password(login, password, by=by)
                return page(request, "person_password.html", account=account, password=password)
            case "disable" | "enable":
                await services.accounts.set_disabled(login, action == "disable", by=by)
                return go("/admin/people", f"person-{action}d")
    except REFUSALS as error:
        return await _people_page(request, services, refusal_of(request, error))
    raise NotFoundException


async def _people_page(
    request: Request[Any, Any, Any], services: Services, refusal: ApiError | None = None
) -> Response[Any]:
    return page(
        request,
        "people.html",
        accounts=await services.accounts.list_accounts(),
        provider=services.settings.oidc_name if services.oidc else None,
        takes_passwords=services.settings.password_login,
        refusal=refusal,
    )


async def _new_person_page(
    request: Request[Any, Any, Any], services: Services, fields: Fields, refusal: ApiError | None = None
) -> Response[Any]:
    return page(
        request,
        "person_new.html",
        tenants=await services.tenants.list_tenants(),
        fields={name: only(fields, name) for name in ("login", "role", "tenant")},
        refusal=refusal,
    )


PEOPLE_PAGES = [list_people, show_new_person, create_person, change_person]

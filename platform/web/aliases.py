"""What an adapter's aliases stand for, changed by hand: each change only from the revision that the page showed."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.params import FromPath

from loraplex.adapters.aliases import AdapterAliases
from loraplex.adapters.audit import Actor
from loraplex.platform.audit_rules import audited
from loraplex.platform.errors import ApiError
from loraplex.platform.manage.alias_schemas import MoveAlias
from loraplex.platform.services import Services
from loraplex.platform.web.adapters import PATH, adapter_page
from loraplex.platform.web.errors import REFUSALS, refusal_of
from loraplex.platform.web.forms import Fields, form_fields, only
from loraplex.platform.web.rendering import go
from loraplex.platform.web.tenants import visible_tenant
from loraplex.platform.web_sessions import Person

Web = Request[Any, Any, Any]
WEIGHT = "weight-"
"""Of a field, before the number of the version whose share it is."""

DONE = {"move": "alias-moved", "rollback": "alias-restored", "delete": "alias-deleted"}


@post(PATH + "/aliases/{action:str}", opt={"page": "person"} | audited("alias.move", "alias.roll_back", "alias.delete"))
async def change_alias(
    tenant: FromPath[str],
    name: FromPath[str],
    action: FromPath[str],
    request: Web,
    services: NamedDependency[Services],
    person: NamedDependency[Person],
    by: NamedDependency[Actor],
) -> Response[Any]:
    """Move an alias, new or not, roll it back or delete it. The adapter's page says that this is done, or why not."""
    owner = await visible_tenant(services, person, tenant)
    if action not in DONE:
        raise NotFoundException
    fields = await form_fields(request)
    try:
        await _change(action, services.aliases, (owner.id, name, only(fields, "alias")), fields, by)
    except REFUSALS as error:
        return await adapter_page(request, services, person, owner, name, refusal_of(request, error))
    return go(f"/admin/adapters/{owner.slug}/{name}", DONE[action])


async def _change(action: str, aliases: AdapterAliases, alias: tuple[str, str, str], fields: Fields, by: Actor) -> None:
    """Raises ApiError, msgspec.ValidationError, and what the registry refuses."""
    expected = _revision(fields)
    if action == "move":
        await aliases.move(*alias, _split(fields), expected=expected, by=by)
    elif action == "rollback":
        await aliases.roll_back(*alias, expected=expected, by=by)
    else:
        await aliases.delete(*alias, expected=expected, by=by)


def _revision(fields: Fields) -> int:
    """The revision that the page showed; ABSENT of an alias that is new."""
    revision = only(fields, "revision")
    if revision.isascii() and revision.isdigit() and len(revision) <= 9:
        return int(revision)
    raise ApiError(400, "invalid_value", "revision: it is missing; open the adapter's page again.", param="revision")


def _split(fields: Fields) -> dict[int, int]:
    """Version number -> weight, of those that have one. Raises msgspec.ValidationError as the API's body does."""
    given = {name.removeprefix(WEIGHT): only(fields, name) for name in fields if name.startswith(WEIGHT)}
    weights = {number: weight for number, weight in given.items() if weight not in ("", "0")}
    if not weights:
        raise ApiError(400, "invalid_value", "weight: give at least one version a weight above 0.", param="weight")
    return msgspec.convert({"split": weights}, MoveAlias, strict=False).targets()


ALIAS_PAGES = [change_alias]

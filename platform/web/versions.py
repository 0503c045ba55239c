"""One version of an adapter: its report and proof, where it is, and what can be done about that."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.params import FromPath

from loraplex.adapters.audit import Actor
from loraplex.platform import residency
from loraplex.platform.audit_rules import audited
from loraplex.platform.errors import ApiError
from loraplex.platform.manage.residency_schemas import PinVersion
from loraplex.platform.services import Services
from loraplex.platform.tenants import TenantInfo
from loraplex.platform.web.adapters import PATH, whereabouts
from loraplex.platform.web.errors import REFUSALS, refusal_of
from loraplex.platform.web.forms import form_fields, read_form
from loraplex.platform.web.rendering import go, page, wants_part
from loraplex.platform.web.tenants import visible_tenant
from loraplex.platform.web_sessions import Person

VERSION = PATH + "/versions/{number:int}"
Web = Request[Any, Any, Any]


@get(VERSION, opt={"page": "person"})
async def show_version(
    tenant: FromPath[str],
    name: FromPath[str],
    number: FromPath[int],
    request: Web,
    services: NamedDependency[Services],
    person: NamedDependency[Person],
) -> Response[Any]:
    """One version."""
    owner = await visible_tenant(services, person, tenant)
    return await _version_page(request, services, person, owner, name, number)


@post(
    VERSION + "/{action:str}",
    opt={"page": "person"} | audited("version.warm", "version.pin", "version.unpin", "version.evict", "version.delete"),
)
async def change_version(
    tenant: FromPath[str],
    name: FromPath[str],
    number: FromPath[int],
    action: FromPath[str],
    request: Web,
    services: NamedDependency[Services],
    person: NamedDependency[Person],
    by: NamedDependency[Actor],
) -> Response[Any]:
    """Warm, pin, unpin, evict or delete it. Its page says that this is done, or why not."""
    owner = await visible_tenant(services, person, tenant)
    try:
        done = await _change(action, request, services, (owner.id, name, number), by)
    except REFUSALS as error:
        refusal = refusal_of(request, error)
        return await _version_page(request, services, person, owner, name, number, refusal)
    url = f"/admin/adapters/{owner.slug}/{name}"
    return go(url if action == "delete" else f"{url}/versions/{number}", done)


async def _change(action: str, request: Web, services: Services, version: tuple[str, str, int], by: Actor) -> str:
    """The code of what is done. Raises as the functions that it calls."""
    match action:
        case "warm":
            await residency.warm(services, *version, by)
            return "warming"
        case "pin":
            form = read_form(await form_fields(request), PinVersion)
            await residency.pin(services, *version, form.seconds, by)
            return "pinned"
        case "unpin":
            await residency.unpin(services, *version, by)
            return "unpinned"
        case "evict":
            await residency.evict(services, *version, by)
            return "evicted"
        case "delete":
            await services.registry.delete_version(*version, by=by)
            return "version-deleted"
    raise NotFoundException


async def _version_page(
    request: Web,
    services: Services,
    person: Person,
    owner: TenantInfo,
    name: str,
    number: int,
    refusal: ApiError | None = None,
) -> Response[Any]:
    version = await services.registry.get_version(owner.id, name, number)
    adapter = await services.registry.get_adapter(owner.id, name)
    report = await services.registry.get_report(owner.id, name, number)
    by_code = {entry.get("code"): entry for entry in report}
    return page(
        request,
        "_whereabouts.html" if wants_part(request) else "version.html",
        refusal=refusal,
        version=version,
        aliases=[alias for alias in adapter.aliases.values() if number in alias.split],
        where=(await whereabouts(services, person, (version,)))[number],
        proof=by_code.get("proof"),
        statistics=by_code.get("statistics"),
        tokenizer=by_code.get("tokenizer"),
        failures=[entry for entry in report if "message" in entry],
        profile=(await services.profiles.get(owner.id, name, number)).profile,
    )


VERSION_PAGES = [show_version, change_version]

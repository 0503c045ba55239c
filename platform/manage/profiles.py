"""The serving profile of a version: chat template, system prompt, stops, default sampling, context limit."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, Router, delete, get, put
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import UNSET, UnsetType, structs

from loraplex.adapters.audit import Actor
from loraplex.adapters.errors import VersionNotFound
from loraplex.adapters.profile import ChatTemplate, ProfileSettings, ServingProfile
from loraplex.adapters.profile_store import ProfileInfo
from loraplex.engine.templates import TemplateError
from loraplex.platform.audit_rules import audited
from loraplex.platform.errors import ApiError
from loraplex.platform.manage.preconditions import PRECONDITIONED, etag, expected_revision
from loraplex.platform.publishing import require_served
from loraplex.platform.services import Services
from loraplex.platform.template_checks import check_profile

PATH = "/{name:str}/versions/{number:int}/profile"


class SetProfile(ProfileSettings, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """`chat_template`: left out, the version keeps the one it has, which may have come with its weights."""

    chat_template: ChatTemplate | UnsetType | None = UNSET

    def onto(self, old: ServingProfile | None) -> ServingProfile:
        settings = structs.asdict(self)
        if self.chat_template is UNSET:
            settings["chat_template"] = None if old is None else old.chat_template
        return ServingProfile(**settings)


@get(PATH)
async def get_profile(
    name: FromPath[str], number: FromPath[int], services: NamedDependency[Services], tenant_id: NamedDependency[str]
) -> Response[ServingProfile]:
    """What the version is served with where a request does not say. The answer's ETag is the profile's revision."""
    return _shown(await services.profiles.get(tenant_id, name, number), name, number)


@put(PATH, opt=PRECONDITIONED | audited("profile.set"))
async def set_profile(
    name: FromPath[str],
    number: FromPath[int],
    data: JSONBody[SetProfile],
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    tenant_id: NamedDependency[str],
    by: NamedDependency[Actor],
) -> Response[ServingProfile]:
    """Set the profile as a whole; only a `chat_template` that is left out stays as it is, and null takes it away.

    A request's own fields win over it, and it wins over the server's defaults. A new version has none but the chat
    template that came with it: send what GET shows of an older version's to go on with that. With `If-Match` it is
    changed only from that revision, with `If-None-Match: *` only created; else 412 with code `profile_changed`.
    """
    await require_served(services, tenant_id, name)
    expected = expected_revision(request)
    known = await services.profiles.get(tenant_id, name, number)
    await _require_servable(services, tenant_id, data.onto(known.profile))
    changed = await services.profiles.change(tenant_id, name, number, data.onto, expected=expected, by=by)
    return _shown(changed, name, number)


@delete(PATH, opt=PRECONDITIONED | audited("profile.clear"))
async def clear_profile(
    name: FromPath[str],
    number: FromPath[int],
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    tenant_id: NamedDependency[str],
    by: NamedDependency[Actor],
) -> None:
    """Serve the version with the base's chat template and the server's defaults. `If-Match` as for setting it."""

    def clear(profile: ServingProfile | None) -> None:
        if profile is None:
            raise VersionNotFound(_no_profile(name, number))

    await services.profiles.change(tenant_id, name, number, clear, expected=expected_revision(request), by=by)


async def _require_servable(services: Services, tenant_id: str, profile: ServingProfile) -> None:
    """Raises ApiError for what depends on the base, and for a template that does not work; EngineUnavailable."""
    longest = services.engine.ready.max_model_len
    if profile.context_limit is not None and profile.context_limit > longest:
        message = f"Invalid value for 'context_limit': the base's context is {longest} tokens; give at most that."
        raise ApiError(400, "invalid_value", message, param="context_limit")
    try:
        await check_profile(services.text, services.templates, tenant_id, profile)
    except TemplateError as error:
        param = "system_prompt" if profile.chat_template is None else "chat_template"
        raise ApiError(400, "chat_template_invalid", f"Invalid value for '{param}': {error}.", param=param) from error


def _shown(info: ProfileInfo, name: str, number: int) -> Response[ServingProfile]:
    if info.profile is None:
        raise VersionNotFound(_no_profile(name, number))
    return Response(info.profile, headers=etag(info.revision))


def _no_profile(name: str, number: int) -> str:
    return f'profile: version {number} of "{name}" has none; it is served with the defaults of the base'


PROFILE_ROUTES = [
    Router(
        "/api/v1/adapters",
        route_handlers=[get_profile, set_profile, clear_profile],
        opt={"scope": "adapters"},
        tags=["profiles"],
    )
]

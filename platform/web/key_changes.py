"""Change an API key: its terms by a form, its secret by a rotation, whose outcome is shown once."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath
from msgspec import Meta

from loraplex.adapters.audit import Actor
from loraplex.platform.audit_rules import audited
from loraplex.platform.key_terms import BASE, MAX_LISTED_ADAPTERS, KeyInfo, KeyTerms
from loraplex.platform.manage.tenant_schemas import AdapterNames, KeyName, RotateKey
from loraplex.platform.services import Services
from loraplex.platform.web.errors import REFUSALS, refusal_of
from loraplex.platform.web.forms import form_fields, read_form
from loraplex.platform.web.keys import key_page, visible_key
from loraplex.platform.web.rendering import go, page
from loraplex.platform.web_sessions import Person

SHOWN_ADAPTERS = 200
"""To choose from; a key of a tenant with more can be bound to the others by the API and the command line."""


class EditKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`scopes`, `reach`, `adapters`: of a tenant's key. `revision`: that of the key whose terms the form showed."""

    name: KeyName
    revision: Annotated[int, Meta(ge=1)]
    scopes: Annotated[list[Literal["inference", "adapters"]], Meta(max_length=2)] = []
    reach: Literal["all", "some"] = "all"
    adapters: AdapterNames = []
    expires: Annotated[str, Meta(pattern="^(keep|never|[1-9][0-9]{0,3})$")] = "keep"

    def apply(self, terms: KeyTerms) -> KeyTerms:
        ends = {"keep": terms.expires_at, "never": None}
        expires_at = (
            ends[self.expires] if self.expires in ends else datetime.now(UTC) + timedelta(days=int(self.expires))
        )
        changed = replace(terms, name=self.name, expires_at=expires_at)
        if terms.scopes == {"admin"}:
            return changed
        adapters = frozenset(self.adapters) if self.reach == "some" else None
        return replace(changed, scopes=frozenset(self.scopes), adapters=adapters)


@get("/keys/{key_id:str}/edit", opt={"page": "person"})
async def show_edit_key(
    key_id: FromPath[str],
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    person: NamedDependency[Person],
) -> Response[Any]:
    """The form for what a key may do, and until when."""
    key = await visible_key(services, person, key_id)
    return await _edit_page(request, services, key)


@post("/keys/{key_id:str}/edit", opt={"page": "person"} | audited("key.change"))
async def edit_key(
    key_id: FromPath[str],
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    person: NamedDependency[Person],
    by: NamedDependency[Actor],
) -> Response[Any]:
    """Change a key, if nobody else has since the form was shown."""
    key, fields = await visible_key(services, person, key_id), await form_fields(request)
    try:
        form = read_form(fields, EditKey)
        await services.key_changes.change(key_id, form.apply, form.revision, by=by)
    except REFUSALS as error:
        return await _edit_page(request, services, key, refusal=refusal_of(request, error), fields=fields)
    return go(f"/admin/keys/{key_id}", "key-changed")


@post("/keys/{key_id:str}/rotate", opt={"page": "person"} | audited("key.rotate"))
async def rotate_key(
    key_id: FromPath[str],
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    person: NamedDependency[Person],
    by: NamedDependency[Actor],
) -> Response[Any]:
    """Give a key another secret and show it: here, and never again."""
    await visible_key(services, person, key_id)
    try:
        form = read_form(await form_fields(request), RotateKey)
        key, secret = await services.key_changes.rotate(key_id, timedelta(seconds=form.overlap_seconds), by=by)
    except REFUSALS as error:
        return key_page(request, await visible_key(services, person, key_id), refusal=refusal_of(request, error))
    return page(request, "key_created.html", key=key, secret=secret, base_model=services.base_model_name)


@post("/keys/{key_id:str}/end-old-secret", opt={"page": "person"} | audited("key.end_old_secret"))
async def end_old_secret(
    key_id: FromPath[str],
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    person: NamedDependency[Person],
    by: NamedDependency[Actor],
) -> Response[Any]:
    """End the secret from before the last rotation."""
    await visible_key(services, person, key_id)
    try:
        await services.key_changes.end_old_secret(key_id, by=by)
    except REFUSALS as error:
        return key_page(request, await visible_key(services, person, key_id), refusal=refusal_of(request, error))
    return go(f"/admin/keys/{key_id}", "old-secret-ended")


async def _edit_page(
    request: Request[Any, Any, Any], services: Services, key: KeyInfo, fields: Any = None, **more: Any
) -> Response[Any]:
    """fields: of a form that was refused, which is shown as it came; else the key as it is."""
    if fields is None:
        reach = "all" if key.adapters is None else "some"
        shown = {"scopes": key.scopes, "adapters": key.adapters or frozenset(), "name": [key.name], "reach": [reach]}
    else:
        shown = {"scopes": (), "adapters": (), "reach": ["all"], "name": [""]} | fields
    there = await services.registry.list_adapters(key.tenant_id, SHOWN_ADAPTERS) if key.tenant_id else []
    names = {adapter.name for adapter in there}
    return page(
        request,
        "key_edit.html",
        key=key,
        fields=shown,
        adapters=sorted(names),
        absent=sorted((key.adapters or frozenset()) - names - {BASE}),
        is_cut=len(there) == SHOWN_ADAPTERS,
        most=MAX_LISTED_ADAPTERS,
        base=BASE,
        base_model=services.base_model_name,
        **more,
    )


KEY_CHANGE_PAGES = [show_edit_key, edit_key, rotate_key, end_old_secret]

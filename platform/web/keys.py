"""API keys: those there are, new ones whose secret is shown once, and their end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery
from msgspec import Meta

from loraplex.adapters.audit import Actor
from loraplex.platform.audit_rules import audited
from loraplex.platform.errors import ApiError
from loraplex.platform.key_terms import BASE, KeyInfo
from loraplex.platform.manage.tenant_schemas import CreateKey
from loraplex.platform.services import Services
from loraplex.platform.tenants import KeyNotFound
from loraplex.platform.web.errors import REFUSALS, refusal_of
from loraplex.platform.web.forms import Fields, form_fields, only, read_form
from loraplex.platform.web.rendering import go, page
from loraplex.platform.web.tenants import visible_tenant
from loraplex.platform.web_sessions import Person

HOUR, DAY = 3600, 24 * 3600
OVERLAPS = ((HOUR, "for an hour"), (DAY, "for a day"), (7 * DAY, "for a week"), (30 * DAY, "for 30 days"))
"""How long the old secret of a rotated key may hold, to choose from."""


class NewKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`kind` operator: the key has no tenant and the scope admin alone, whatever the form says of these."""

    name: Annotated[str, Meta(min_length=1, max_length=100)]
    kind: Literal["tenant", "operator"] = "tenant"
    tenant: Annotated[str, Meta(max_length=63)] | None = None
    scopes: Annotated[list[Literal["inference", "adapters"]], Meta(max_length=2)] = []
    expires_in_days: Annotated[int, Meta(ge=1, le=36_500)] | None = None

    def body(self) -> CreateKey:
        """Raises msgspec.ValidationError where the API would refuse it."""
        is_operators = self.kind == "operator"
        end = None if self.expires_in_days is None else datetime.now(UTC) + timedelta(days=self.expires_in_days)
        wanted = {
            "tenant": None if is_operators else self.tenant or "",
            "name": self.name,
            "scopes": ["admin"] if is_operators else self.scopes,
            "expires_at": end,
        }
        return msgspec.convert(wanted, CreateKey)


@get("/keys", opt={"page": "person"})
async def list_keys(
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    person: NamedDependency[Person],
    tenant: FromQuery[str | None] = None,
) -> Response[Any]:
    """Keys of one tenant, or of all for operators."""
    wanted = (tenant or None) if person.is_operator else person.tenant
    if wanted is not None:
        await visible_tenant(services, person, wanted)
    tenants = await services.tenants.list_tenants() if person.is_operator else []
    keys = (await services.tenants.list_keys(wanted))[::-1]
    return page(request, "keys.html", keys=keys, tenants=tenants, chosen=wanted, now=datetime.now(UTC), base=BASE)


@get("/keys/new", opt={"page": "person"})
async def show_new_key(
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    person: NamedDependency[Person],
    tenant: FromQuery[str | None] = None,
) -> Response[Any]:
    """The form for a new key."""
    return await _new_key_page(request, services, person, {"tenant": [tenant or ""], "scopes": ["inference"]})


@post("/keys/new", opt={"page": "person"} | audited("key.create"))
async def create_key(
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    person: NamedDependency[Person],
    by: NamedDependency[Actor],
) -> Response[Any]:
    """Create a key and show its secret: here, and never again."""
    fields = await form_fields(request)
    try:
        wanted = read_form(fields, NewKey).body()
        if not person.is_operator:
            # Of its own tenant, whatever the form says; an operator's key it cannot have.
            wanted = msgspec.structs.replace(wanted, tenant=person.tenant)
        facts = wanted.tenant, wanted.name, wanted.scopes, wanted.expires_at
        key, secret = await services.tenants.create_key(*facts, by=by)
    except REFUSALS as error:
        return await _new_key_page(request, services, person, fields, refusal=refusal_of(request, error))
    return page(request, "key_created.html", key=key, secret=secret, base_model=services.base_model_name, code=201)


@get("/keys/{key_id:str}", opt={"page": "person"})
async def show_key(
    key_id: FromPath[str],
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    person: NamedDependency[Person],
) -> Response[Any]:
    """One key, its secrets, and what changes and ends them."""
    return key_page(request, await visible_key(services, person, key_id))


@post("/keys/{key_id:str}/revoke", opt={"page": "person"} | audited("key.revoke"))
async def revoke_key(
    key_id: FromPath[str],
    services: NamedDependency[Services],
    person: NamedDependency[Person],
    by: NamedDependency[Actor],
) -> Response[Any]:
    """End a key for good."""
    await visible_key(services, person, key_id)
    await services.tenants.revoke_key(key_id, by=by)
    return go(f"/admin/keys/{key_id}", "key-revoked")


def key_page(request: Request[Any, Any, Any], key: KeyInfo, refusal: ApiError | None = None) -> Response[Any]:
    return page(request, "key.html", key=key, now=datetime.now(UTC), overlaps=OVERLAPS, base=BASE, refusal=refusal)


async def visible_key(services: Services, person: Person, key_id: str) -> KeyInfo:
    """Raises KeyNotFound, alike for what is absent and what is foreign."""
    key = await services.tenants.get_key(key_id)
    if not person.is_operator and key.tenant_id != person.tenant_id:
        raise KeyNotFound
    return key


async def _new_key_page(
    request: Request[Any, Any, Any], services: Services, person: Person, fields: Fields, **more: Any
) -> Response[Any]:
    return page(
        request,
        "key_new.html",
        tenants=await services.tenants.list_tenants() if person.is_operator else [],
        fields={name: only(fields, name) for name in ("name", "kind", "tenant", "expires_in_days")},
        scopes=fields.get("scopes", []),
        **more,
    )


KEY_PAGES = [list_keys, show_new_key, create_key, show_key, revoke_key]

"""Aliases of a tenant's adapters: move, split, roll back, and what they pointed at before."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, Router, delete, get, post, put
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, JSONBody

from loraplex.adapters.aliases import AdapterAliases
from loraplex.adapters.audit import Actor
from loraplex.adapters.lookup import AliasInfo
from loraplex.platform.audit_rules import audited
from loraplex.platform.manage.alias_schemas import AliasHistory, AliasView, MoveAlias, MoveView, RollBackAlias
from loraplex.platform.manage.preconditions import PRECONDITIONED, etag, expected_revision
from loraplex.platform.services import Services
from loraplex.platform.tenants import Principal

PATH = "/{name:str}/aliases/{alias:str}"


def provide_aliases(services: NamedDependency[Services]) -> AdapterAliases:
    return services.aliases


@get(PATH)
async def get_alias(
    name: FromPath[str],
    alias: FromPath[str],
    aliases: NamedDependency[AdapterAliases],
    tenant_id: NamedDependency[str],
) -> Response[AliasView]:
    """What an alias stands for now. The answer's ETag is its revision."""
    return _shown(await aliases.get(tenant_id, name, alias))


@put(PATH, opt=PRECONDITIONED | audited("alias.move"))
async def move_alias(
    name: FromPath[str],
    alias: FromPath[str],
    data: JSONBody[MoveAlias],
    request: Request[Any, Principal, Any],
    aliases: NamedDependency[AdapterAliases],
    tenant_id: NamedDependency[str],
    by: NamedDependency[Actor],
) -> Response[AliasView]:
    """Let an alias, new or not, stand for a version, or split its traffic over several by weight.

    `prod` is what a name without @ means. With `If-Match` it is moved only from that revision, with `If-None-Match: *`
    only created; else 412 with code `alias_moved`. Requests that run keep their version.
    """
    moved = await aliases.move(
        tenant_id,
        name,
        alias,
        data.targets(),
        expected=expected_revision(request),
        by=by,
    )
    return _shown(moved)


@post(PATH + "/rollback", status_code=200, opt=PRECONDITIONED | audited("alias.roll_back"))
async def roll_back_alias(
    name: FromPath[str],
    alias: FromPath[str],
    data: JSONBody[RollBackAlias],
    request: Request[Any, Principal, Any],
    aliases: NamedDependency[AdapterAliases],
    tenant_id: NamedDependency[str],
    by: NamedDependency[Actor],
) -> Response[AliasView]:
    """Let an alias stand for what it stood for before its last move, or at the revision `to`; else 409.

    Each further rollback goes one move further back. A deleted alias comes back. `If-Match` as for a move.
    """
    restored = await aliases.roll_back(
        tenant_id,
        name,
        alias,
        to=data.to,
        expected=expected_revision(request),
        by=by,
    )
    return _shown(restored)


@get(PATH + "/history")
async def get_alias_history(
    name: FromPath[str],
    alias: FromPath[str],
    aliases: NamedDependency[AdapterAliases],
    tenant_id: NamedDependency[str],
) -> AliasHistory:
    """The last 100 moves of an alias, newest first; of a deleted one, too."""
    return AliasHistory([MoveView.of(move) for move in await aliases.history(tenant_id, name, alias)])


@delete(PATH, opt=PRECONDITIONED | audited("alias.delete"))
async def delete_alias(
    name: FromPath[str],
    alias: FromPath[str],
    request: Request[Any, Principal, Any],
    aliases: NamedDependency[AdapterAliases],
    tenant_id: NamedDependency[str],
    by: NamedDependency[Actor],
) -> None:
    """Delete an alias; its versions and its history stay. `If-Match` as for a move."""
    await aliases.delete(tenant_id, name, alias, expected=expected_revision(request), by=by)


def _shown(alias: AliasInfo) -> Response[AliasView]:
    return Response(AliasView.of(alias), headers=etag(alias.revision))


ALIAS_ROUTES = [
    Router(
        "/api/v1/adapters",
        route_handlers=[get_alias, move_alias, roll_back_alias, get_alias_history, delete_alias],
        dependencies={"aliases": Provide(provide_aliases, sync_to_thread=False)},
        opt={"scope": "adapters"},
        tags=["aliases"],
    )
]

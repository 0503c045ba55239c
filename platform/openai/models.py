"""/v1/models and /v1/models/{model}: the base, and the caller's own adapters. Nothing of anybody else's."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from litestar import delete, get
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter

from loraplex.adapters.audit import Actor
from loraplex.adapters.errors import AdapterNotFound
from loraplex.adapters.lookup import DEFAULT_ALIAS
from loraplex.adapters.registry import MAX_PAGE, AdapterInfo
from loraplex.platform.audit_rules import audited
from loraplex.platform.catalog import model_not_found
from loraplex.platform.errors import ApiError
from loraplex.platform.key_terms import BASE
from loraplex.platform.services import Services
from loraplex.platform.tenants import Principal

MIN_READ, MAX_READS = 100, 10
"""Adapters that are read at a time, and how often, for one page of models: not every adapter is one."""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """`root`: what the name stands for now, `acme/support-bot@7`. Where versions share its traffic, it is the one with
    most in a list, and that of the caller's key where one model is asked for. `parent`: an adapter's base model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    root: str
    parent: str | None = None


class DeletedModel(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    deleted: bool = True


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """`has_more`: there may be; ask again with `after` = the last id."""

    object: Literal["list"] = "list"
    data: list[Model]
    has_more: bool


@get("/models", opt={"scope": "inference"}, tags=["openai"])
async def list_models(
    services: NamedDependency[Services],
    principal: NamedDependency[Principal],
    limit: Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)] = MAX_PAGE,
    after: Annotated[str | None, QueryParameter(max_length=128)] = None,
) -> ModelList:
    """The base model, then the caller's adapters as `tenant/adapter`, as far as the key may name them. One whose name
    stands for no version that is ready is no model now."""
    base = [] if after or not principal.may_name(BASE) else [_base(services)]
    if principal.tenant_id is None:
        return ModelList(data=base, has_more=False)
    models: list[Model] = []
    rows, may_be_more = max(limit, MIN_READ), True
    for _ in range(MAX_READS):
        adapters = await services.registry.list_adapters(principal.tenant_id, rows, after, among=principal.adapters)
        models += [model for adapter in adapters if (model := _listed(adapter))]
        may_be_more = len(adapters) == rows
        if len(models) >= limit or not may_be_more:
            break
        after = f"{adapters[-1].tenant}/{adapters[-1].name}"
    return ModelList(data=base + models[:limit], has_more=may_be_more or len(models) > limit)


@get("/models/{model:path}", opt={"scope": "inference"}, tags=["openai"])
async def get_model(
    model: FromPath[str], services: NamedDependency[Services], principal: NamedDependency[Principal]
) -> Model:
    """One model by any of its names. The slash of `tenant/adapter` may stand raw or as %2F."""
    name = model.removeprefix("/")
    found = await services.catalog.resolve(principal, name)
    if not found.adapters:
        return _base(services)
    version = found.adapters[0].version
    return Model(
        id=name,
        created=_seconds(version.created_at),
        owned_by=version.tenant,
        root=found.name,
        parent=version.base_model,
    )


@delete(
    "/models/{model:path}",
    status_code=200,
    opt={"scope": "adapters"} | audited("adapter.delete"),
    tags=["openai"],
)
async def delete_model(
    model: FromPath[str],
    services: NamedDependency[Services],
    principal: NamedDependency[Principal],
    by: NamedDependency[Actor],
) -> DeletedModel:
    """Delete one of your adapters with all its versions, by its name. Requests that run finish; new ones get 404."""
    name = model.removeprefix("/")
    if name == services.base_model_name:
        raise ApiError(403, "insufficient_permissions", f"`{name}` is the server's base model; it cannot be deleted.")
    tenant_id, own = services.catalog.own_name(principal, name)
    if own.selector is not None:
        message = (
            f"`{name}` names a version or an alias, and this deletes whole adapters. Name the adapter without @; "
            f"DELETE /api/v1/adapters/{own.adapter}/versions/NUMBER deletes one version."
        )
        raise ApiError(400, "invalid_value", message, param="model")
    try:
        await services.registry.delete_adapter(tenant_id, own.adapter, by=by)
    except AdapterNotFound:
        raise model_not_found(name, "model") from None
    return DeletedModel(id=name)


def _base(services: Services) -> Model:
    name = services.base_model_name
    return Model(id=name, created=0, owned_by="loraplex", root=name)


def _listed(adapter: AdapterInfo) -> Model | None:
    """As `lookup.find_targets` has it; None: a request for it would be a 404."""
    default = adapter.aliases.get(DEFAULT_ALIAS)
    weights = {version.number: 0 for version in adapter.versions} if default is None else default.split
    ready = [version.number for version in adapter.versions if version.state == "ready" and version.number in weights]
    if not ready:
        return None
    number = max(ready, key=lambda number: (weights[number], number))
    name = f"{adapter.tenant}/{adapter.name}"
    return Model(
        id=name,
        created=_seconds(adapter.created_at),
        owned_by=adapter.tenant,
        root=f"{name}@{number}",
        parent=adapter.base_model,
    )


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())

"""A tenant's own adapters: names and versions. The tenant always comes from the key, never from the request."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from anyio import to_thread
from litestar import Request, Response, Router, delete, get, post
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, JSONBody, QueryParameter

from loraplex.adapters.blobs import CONFIG_FILE, WEIGHTS_FILE, BlobStore, Staging
from loraplex.adapters.errors import VersionNotReady
from loraplex.adapters.peft_checks import AdapterLimits, CheckedAdapter, check_adapter
from loraplex.adapters.registry import VersionInfo
from loraplex.adapters.types import BaseShape
from loraplex.engine.client import EngineUnavailable
from loraplex.platform.errors import ApiError
from loraplex.platform.manage.schemas import (
    AdapterPage,
    AdapterView,
    CreateAdapter,
    VersionDetail,
    VersionList,
    VersionView,
)
from loraplex.platform.manage.uploads import CONFIG_BYTES, PartTarget, UploadSlots, receive_parts
from loraplex.platform.services import Services
from loraplex.platform.tenants import Principal
from loraplex.platform.validation import validate

MAX_PAGE = 500
VALIDATION_SECONDS = 60
"""How long an upload waits for the engine to run its version."""

_FILE = {"type": "string", "format": "binary"}
UPLOAD_FORM = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "required": ["config", "weights"],
            "properties": {"config": _FILE, "weights": _FILE},
        }
    }
}

PageLimit = Annotated[int, QueryParameter(ge=1, le=MAX_PAGE, description="Most entries of the page.")]
PageAfter = Annotated[str | None, QueryParameter(max_length=127, description="`next` of the page before.")]


def provide_tenant_id(principal: NamedDependency[Principal]) -> str:
    """The caller's tenant. The guard has sent operators away, who have none."""
    assert principal.tenant_id is not None
    return principal.tenant_id


@post("/")
async def create_adapter(
    data: JSONBody[CreateAdapter], services: NamedDependency[Services], tenant_id: NamedDependency[str]
) -> AdapterView:
    """Reserve a name. It answers requests once it has a version."""
    base_model = data.base_model or services.base_model_name
    return AdapterView.of(await services.registry.create_adapter(tenant_id, data.name, base_model, data.description))


@get("/")
async def list_adapters(
    services: NamedDependency[Services],
    principal: NamedDependency[Principal],
    tenant_id: NamedDependency[str],
    limit: PageLimit = 100,
    after: PageAfter = None,
) -> AdapterPage:
    """Your adapters by name, a page at a time."""
    start = None if after is None else f"{principal.tenant}/{after}"
    found = await services.registry.list_adapters(tenant_id, limit + 1, start)
    page = found[:limit]
    return AdapterPage([AdapterView.of(adapter) for adapter in page], page[-1].name if len(found) > limit else None)


@get("/{name:str}")
async def get_adapter(
    name: FromPath[str], services: NamedDependency[Services], tenant_id: NamedDependency[str]
) -> AdapterView:
    """One adapter with its version numbers and aliases."""
    return AdapterView.of(await services.registry.get_adapter(tenant_id, name))


@delete("/{name:str}")
async def delete_adapter(
    name: FromPath[str], services: NamedDependency[Services], tenant_id: NamedDependency[str]
) -> None:
    """Delete an adapter with all its versions. Requests that run finish; new ones get 404."""
    await services.registry.delete_adapter(tenant_id, name)


@post("/{name:str}/versions", request_max_body_size=None, opt={"request_body": UPLOAD_FORM})
async def publish_version(
    name: FromPath[str],
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    principal: NamedDependency[Principal],
    tenant_id: NamedDependency[str],
    upload_slots: NamedDependency[UploadSlots],
) -> Response[VersionDetail]:
    """Upload a PEFT LoRA as the next version: `config` is adapter_config.json, `weights` is adapter_model.safetensors.

    An adapter that fails its checks, or that the engine cannot run on the probe prompts, is refused with code
    `adapter_invalid` and every failed check in `details`. 202: the engine had no time for it yet; the version is
    validating and will be ready or rejected later. The same bytes again give the version that has them.
    """
    adapter = await services.registry.get_adapter(tenant_id, name)
    _require_served(adapter.base_model, services.base_model_name)
    limits = AdapterLimits(
        max_rank=services.settings.max_adapter_rank,
        max_config_bytes=CONFIG_BYTES,
        max_weights_bytes=services.settings.max_adapter_bytes,
    )
    with upload_slots.take(tenant_id), services.blobs.stage() as staging:
        targets = {
            "config": PartTarget(staging.path(CONFIG_FILE), limits.max_config_bytes),
            "weights": PartTarget(staging.path(WEIGHTS_FILE), limits.max_weights_bytes),
        }
        weights = (await receive_parts(request, targets))["weights"]
        checked, digest = await to_thread.run_sync(
            _check_and_commit, services.blobs, staging, services.base_shape, limits, weights.sha256
        )
        published = await services.registry.publish(
            tenant_id,
            name,
            digest=digest,
            size_bytes=weights.size_bytes,
            max_rank=checked.spec.max_rank,
            targets=sorted({module.rsplit(".", 1)[-1] for module in checked.spec.modules}),
            report=[_statistics(checked, services.base_shape)],
            created_by=principal.key_id,
        )
    version = await _validated(services, published)
    report = await services.registry.get_report(tenant_id, name, version.number)
    return Response(VersionDetail.told(version, report), status_code=201 if version.state == "ready" else 202)


@get("/{name:str}/versions")
async def list_versions(
    name: FromPath[str], services: NamedDependency[Services], tenant_id: NamedDependency[str]
) -> VersionList:
    """All versions of an adapter by rising number."""
    adapter = await services.registry.get_adapter(tenant_id, name)
    return VersionList([VersionView.of(version) for version in adapter.versions])


@get("/{name:str}/versions/{number:int}")
async def get_version(
    name: FromPath[str], number: FromPath[int], services: NamedDependency[Services], tenant_id: NamedDependency[str]
) -> VersionDetail:
    """One version, with what its validation found out."""
    version = await services.registry.get_version(tenant_id, name, number)
    return VersionDetail.told(version, await services.registry.get_report(tenant_id, name, number))


@post("/{name:str}/versions/{number:int}/warm", status_code=202)
async def warm_version(
    name: FromPath[str], number: FromPath[int], services: NamedDependency[Services], tenant_id: NamedDependency[str]
) -> VersionView:
    """Bring a version to the device before its first request, where that costs no running request its place."""
    version = await services.registry.get_version(tenant_id, name, number)
    if version.state != "ready":
        raise VersionNotReady(f'version: {number} of "{name}" is {version.state}')
    services.engine.warm(version.digest)
    return VersionView.of(version)


@delete("/{name:str}/versions/{number:int}")
async def delete_version(
    name: FromPath[str], number: FromPath[int], services: NamedDependency[Services], tenant_id: NamedDependency[str]
) -> None:
    """Delete a version that no alias points at; else 409 with code `version_in_use`."""
    await services.registry.delete_version(tenant_id, name, number)


def _require_served(base_model: str, served: str) -> None:
    if base_model != served:
        message = (
            f"The adapter is for the base model `{base_model}`; this server serves `{served}` now and cannot check it."
        )
        raise ApiError(400, "base_model_not_served", message)


def _check_and_commit(
    blobs: BlobStore, staging: Staging, shape: BaseShape, limits: AdapterLimits, received_sha256: str
) -> tuple[CheckedAdapter, str]:
    checked = check_adapter(staging.path(CONFIG_FILE), staging.path(WEIGHTS_FILE), shape, limits)
    if checked.weights_sha256 != received_sha256:
        raise OSError("the bytes on disk are not those that were received")
    return checked, blobs.commit(staging, checked.spec, checked.weights_sha256)


async def _validated(services: Services, version: VersionInfo) -> VersionInfo:
    """The version once it is ready, or still validating when the engine has no time. Raises AdapterInvalid."""
    if version.state != "validating":
        return version
    try:
        async with asyncio.timeout(VALIDATION_SECONDS):
            return await validate(services, version)
    except (TimeoutError, EngineUnavailable):
        return version


def _statistics(checked: CheckedAdapter, shape: BaseShape) -> dict[str, Any]:
    factors = [factor for module in checked.statistics.values() for factor in (module.a, module.b)]
    return {
        "code": "statistics",
        "modules": len(checked.spec.modules),
        "share_of_modules": len(checked.spec.modules) / len(shape.modules()),
        "largest_weight": max(factor.max_abs for factor in factors),
        "largest_norm": max(factor.norm for factor in factors),
        "norms": {name: [_short(module.a.norm), _short(module.b.norm)] for name, module in checked.statistics.items()},
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")


ADAPTER_ROUTES = [
    Router(
        "/api/v1/adapters",
        route_handlers=[
            create_adapter,
            list_adapters,
            get_adapter,
            delete_adapter,
            publish_version,
            list_versions,
            get_version,
            warm_version,
            delete_version,
        ],
        dependencies={"tenant_id": Provide(provide_tenant_id, sync_to_thread=False)},
        opt={"scope": "adapters"},
        tags=["adapters"],
    )
]

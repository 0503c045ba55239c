"""A tenant's own adapters: names and versions. The tenant always comes from the key, never from the request."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Request, Response, Router, delete, get, post
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, JSONBody, QueryParameter

from loraplex.adapters.blobs import CONFIG_FILE, TEMPLATE_FILE, TOKENIZER_CONFIG_FILE, WEIGHTS_FILE
from loraplex.adapters.errors import VersionNotReady
from loraplex.adapters.registry import VersionInfo
from loraplex.platform.manage.schemas import (
    AdapterPage,
    AdapterView,
    CreateAdapter,
    VersionDetail,
    VersionList,
    VersionView,
)
from loraplex.platform.manage.uploads import PartTarget, UploadSlots, receive_parts
from loraplex.platform.publishing import adapter_limits, publish_staged, require_served, validate_now
from loraplex.platform.services import Services
from loraplex.platform.template_checks import TEMPLATE_BYTES, TOKENIZER_CONFIG_BYTES
from loraplex.platform.tenants import Principal

MAX_PAGE = 500
_FILE = {"type": "string", "format": "binary"}
UPLOAD_FORM = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "required": ["config", "weights"],
            "properties": {"config": _FILE, "weights": _FILE, "chat_template": _FILE, "tokenizer_config": _FILE},
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

    `chat_template` (chat_template.jinja) or else the one in `tokenizer_config` (tokenizer_config.json), where they are
    sent, goes into the version's profile: it is served with that instead of the base's.
    An adapter that fails its checks, or that the engine cannot run on the probe prompts, is refused with code
    `adapter_invalid` and every failed check in `details`. 202: the engine had no time for it yet; the version is
    validating and will be ready or rejected later. The same bytes again give the version that has them.
    """
    await require_served(services, tenant_id, name)
    limits = adapter_limits(services)
    with upload_slots.take(tenant_id), services.blobs.stage() as staging:
        targets = {
            "config": PartTarget(staging.path(CONFIG_FILE), limits.max_config_bytes),
            "weights": PartTarget(staging.path(WEIGHTS_FILE), limits.max_weights_bytes),
            "chat_template": PartTarget(staging.path(TEMPLATE_FILE), TEMPLATE_BYTES, required=False),
            "tokenizer_config": PartTarget(staging.path(TOKENIZER_CONFIG_FILE), TOKENIZER_CONFIG_BYTES, required=False),
        }
        weights = (await receive_parts(request, targets))["weights"]
        published = await publish_staged(services, staging, tenant_id, name, weights.sha256, principal.key_id)
    version = await validate_now(services, published)
    return Response(await _detail(services, version), status_code=201 if version.state == "ready" else 202)


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
    """One version, with what its validation found out and what it is served with."""
    return await _detail(services, await services.registry.get_version(tenant_id, name, number))


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


async def _detail(services: Services, version: VersionInfo) -> VersionDetail:
    where = version.tenant_id, version.name, version.number
    report, profile = await services.registry.get_report(*where), (await services.profiles.get(*where)).profile
    return VersionDetail.told(version, report, profile)


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

"""A tenant's own adapters: names and versions. The tenant always comes from the key, never from the request."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, Router, delete, get, post
from litestar.di import NamedDependency, Provide
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, JSONBody, QueryParameter

from loraplex.adapters.blobs import (
    ADAPTER_FILES,
    CONFIG_FILE,
    TEMPLATE_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
)
from loraplex.adapters.errors import AdapterInvalid, VersionNotReady
from loraplex.adapters.lookup import VersionInfo, not_ready
from loraplex.platform.manage.idempotency import REUSED, Once
from loraplex.platform.manage.schemas import (
    AdapterPage,
    AdapterView,
    CheckedView,
    CreateAdapter,
    VersionDetail,
    VersionList,
    VersionView,
)
from loraplex.platform.manage.uploads import PartTarget, UploadSlots, receive_parts
from loraplex.platform.publishing import (
    check_staged,
    max_file_bytes,
    publish_staged,
    report_of,
    require_served,
    validate_now,
)
from loraplex.platform.services import Services
from loraplex.platform.tenants import Principal

MAX_PAGE = 500
PARTS = {
    "config": CONFIG_FILE,
    "weights": WEIGHTS_FILE,
    "chat_template": TEMPLATE_FILE,
    "tokenizer_config": TOKENIZER_CONFIG_FILE,
    "tokenizer": TOKENIZER_FILE,
}
"""Of the form, and what they are as files."""
_FILE = {"type": "string", "format": "binary"}
UPLOAD_FORM = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "required": [part for part, file in PARTS.items() if file in ADAPTER_FILES],
            "properties": dict.fromkeys(PARTS, _FILE),
        }
    }
}

PageLimit = Annotated[int, QueryParameter(ge=1, le=MAX_PAGE, description="Most entries of the page.")]
PageAfter = Annotated[str | None, QueryParameter(max_length=127, description="`next` of the page before.")]


def provide_tenant_id(principal: NamedDependency[Principal]) -> str:
    """The caller's tenant. The guard has sent operators away, who have none."""
    assert principal.tenant_id is not None
    return principal.tenant_id


@post("/", responses=REUSED)
async def create_adapter(
    data: JSONBody[CreateAdapter],
    services: NamedDependency[Services],
    tenant_id: NamedDependency[str],
    once: NamedDependency[Once],
) -> Response[AdapterView]:
    """Reserve a name. It answers requests once it has a version."""
    async with once.attempt(msgspec.json.encode(data)) as attempt:
        if attempt.answer is not None:
            return attempt.answer
        base_model = data.base_model or services.base_model_name
        created = await services.registry.create_adapter(tenant_id, data.name, base_model, data.description)
        return attempt.keep(Response(AdapterView.of(created), status_code=201))


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


@post(
    "/{name:str}/versions",
    request_max_body_size=None,
    opt={"request_body": UPLOAD_FORM},
    responses={200: ResponseSpec(CheckedView, description="Of a dry run", generate_examples=False), **REUSED},
)
async def publish_version(
    name: FromPath[str],
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    principal: NamedDependency[Principal],
    tenant_id: NamedDependency[str],
    upload_slots: NamedDependency[UploadSlots],
    once: NamedDependency[Once],
    dry_run: Annotated[bool, QueryParameter(description="Check the files, and neither keep nor run them.")] = False,
) -> Response[VersionDetail]:
    """Upload a PEFT LoRA as the next version: `config` is adapter_config.json, `weights` is adapter_model.safetensors.

    `chat_template` (chat_template.jinja) or else the one in `tokenizer_config` (tokenizer_config.json), where they are
    sent, goes into the version's profile: it is served with that instead of the base's. `tokenizer` (tokenizer.json):
    the tokens that it adds to the base's are the version's own; with it count the special tokens of `tokenizer_config`.
    An adapter that fails its checks, or that the engine cannot run on the probe prompts, is refused with code
    `adapter_invalid` and every failed check in `details`. 202: the engine had no time for it yet; the version is
    validating and will be ready or rejected later. The same bytes again give the version that has them. With an
    Idempotency-Key the same request is one with the same files: the name is looked up once they have come in. `dry_run`
    answers 200 with what the checks found. Large files: POST /api/v1/uploads.
    """
    await require_served(services, tenant_id, name)
    limits = max_file_bytes(services)
    async with AsyncExitStack() as named:
        with upload_slots.take(tenant_id), services.blobs.stage() as staging:
            targets = {
                part: PartTarget(staging.path(file), limits[file], required=file in ADAPTER_FILES)
                for part, file in PARTS.items()
            }
            received = await receive_parts(request, targets)
            weights_sha256 = received["weights"].sha256
            if dry_run:
                checked = await check_staged(services, staging, tenant_id, weights_sha256)
                report = report_of(checked, services.base_shape)
                found: Any = CheckedView.of(checked.adapter, received["weights"].size_bytes, report)
                return Response(found, status_code=200)
            files = [received[part].sha256.encode() if part in received else b"" for part in PARTS]
            attempt = await named.enter_async_context(once.attempt(*files))
            if attempt.answer is not None:
                return attempt.answer
            published = await publish_staged(services, staging, tenant_id, name, weights_sha256, principal.key_id)
        return attempt.keep(await published_answer(services, published))


async def published_answer(services: Services, published: VersionInfo) -> Response[VersionDetail]:
    """201 once the version is ready, 202 while the engine has no time for it.

    Raises AdapterInvalid for one that is rejected, VersionNotReady for one that is quarantined.
    """
    version = await validate_now(services, published)
    if version.state == "rejected":
        report = await services.registry.get_report(version.tenant_id, version.name, version.number)
        raise AdapterInvalid([check for check in report if "message" in check])
    if version.state == "quarantined":
        raise VersionNotReady(not_ready(version.name, version.number, version.state, version.state_reason))
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
        raise VersionNotReady(not_ready(name, number, version.state, version.state_reason))
    services.uses.touch(tenant_id, version.digest)
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

"""The versions of a tenant's adapters: upload one, look at them, delete one."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Annotated, Any

from litestar import Request, Response, Router, delete, get, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, QueryParameter

from loraplex.adapters.audit import Actor
from loraplex.adapters.blobs import (
    ADAPTER_FILES,
    CONFIG_FILE,
    TEMPLATE_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Staging,
)
from loraplex.adapters.lookup import VersionInfo
from loraplex.platform.audit_rules import audited
from loraplex.platform.check_report import report_of_checks
from loraplex.platform.manage.idempotency import REUSED, Once
from loraplex.platform.manage.uploads import PartTarget, ReceivedPart, UploadSlots, receive_parts
from loraplex.platform.manage.version_schemas import CheckedView, VersionDetail, VersionList, VersionView
from loraplex.platform.publishing import (
    check_staged,
    known_tokens,
    max_file_bytes,
    publish_staged,
    require_served,
    validate_now,
)
from loraplex.platform.services import Services

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


@post(
    "/{name:str}/versions",
    request_max_body_size=None,
    opt={"request_body": UPLOAD_FORM} | audited("version.publish"),
    responses={200: ResponseSpec(CheckedView, description="Of a dry run", generate_examples=False), **REUSED},
)
async def publish_version(
    name: FromPath[str],
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    tenant_id: NamedDependency[str],
    upload_slots: NamedDependency[UploadSlots],
    once: NamedDependency[Once],
    by: NamedDependency[Actor],
    dry_run: Annotated[bool, QueryParameter(description="Check the files, and neither keep nor run them.")] = False,
) -> Response[VersionDetail]:
    """Upload a PEFT LoRA as the next version: `config` is adapter_config.json, `weights` is adapter_model.safetensors.

    `chat_template` (chat_template.jinja) or else the one in `tokenizer_config` (tokenizer_config.json), where they are
    sent, goes into the version's profile: it is served with that instead of the base's. The rest of an older version's
    profile does not come with it: PUT what GET shows of that to the new version's. The tokens that `tokenizer`
    (tokenizer.json) adds to the base's are the version's own; with it count the special tokens of `tokenizer_config`.
    An adapter that fails its checks, or that the engine cannot run on the probe prompts, is refused with code
    `adapter_invalid` and every failed check in `details`. 202: the engine had no time for it yet; the version is
    validating and will be ready or rejected later. The same bytes again give the version that has them; bytes that
    another of your adapters is served from are not run again. With an Idempotency-Key the same request is one with the
    same files: the name is looked up once they have come in. `dry_run` answers 200 with what the checks found. Large
    files: POST /api/v1/uploads.
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
                return await _checked_answer(services, staging, tenant_id, received["weights"])
            files = [received[part].sha256.encode() if part in received else b"" for part in PARTS]
            attempt = await named.enter_async_context(once.attempt(*files))
            if attempt.answer is not None:
                return attempt.answer
            published = await publish_staged(services, staging, tenant_id, name, weights_sha256, by)
        return attempt.keep(await published_answer(services, published))


async def _checked_answer(services: Services, staging: Staging, tenant_id: str, weights: ReceivedPart) -> Response[Any]:
    """What the checks find out about staged files. Raises as `check_staged` does."""
    checked = await check_staged(services, staging, tenant_id, weights.sha256)
    report = report_of_checks(checked.adapter, checked.tokenizer, services.base_shape)
    vocab_size = known_tokens(checked.adapter.spec, services.base_shape)
    return Response(CheckedView.of(checked.adapter, weights.size_bytes, vocab_size, report), status_code=200)


async def published_answer(services: Services, published: VersionInfo) -> Response[VersionDetail]:
    """201 once the version is ready, 202 while the engine has no time for it. Raises as `validate_now` does."""
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


@delete("/{name:str}/versions/{number:int}", opt=audited("version.delete"))
async def delete_version(
    name: FromPath[str],
    number: FromPath[int],
    services: NamedDependency[Services],
    tenant_id: NamedDependency[str],
    by: NamedDependency[Actor],
) -> None:
    """Delete a version that no alias points at; else 409 with code `version_in_use`."""
    await services.registry.delete_version(tenant_id, name, number, by=by)


async def _detail(services: Services, version: VersionInfo) -> VersionDetail:
    where = version.tenant_id, version.name, version.number
    report, profile = await services.registry.get_report(*where), (await services.profiles.get(*where)).profile
    return VersionDetail.told(version, report, profile)


VERSION_ROUTES = [
    Router(
        "/api/v1/adapters",
        route_handlers=[publish_version, list_versions, get_version, delete_version],
        opt={"scope": "adapters"},
        tags=["adapters"],
    )
]

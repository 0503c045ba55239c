"""vLLM's way to load an adapter from a folder of the server and to unload it, for operators.

Bodies and answers are vLLM's; errors have our one shape. Off unless the setting `lora_dirs` names directories.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import structlog
from litestar import Router, post
from litestar.di import NamedDependency
from litestar.params import JSONBody
from msgspec import Meta, Struct

from loraplex.adapters.audit import Actor
from loraplex.adapters.errors import AdapterNotFound, InvalidName
from loraplex.adapters.lookup import DEFAULT_ALIAS
from loraplex.adapters.names import MAX_MODEL_NAME_LENGTH
from loraplex.adapters.registry import VersionInfo
from loraplex.platform.audit_rules import audited
from loraplex.platform.errors import ApiError, unavailable
from loraplex.platform.lora_folders import publish_folder
from loraplex.platform.lora_modules import split_lora_name, stands_for, tenant_of
from loraplex.platform.services import Services
from loraplex.platform.tenants import TenantInfo, TenantNotFound

logger = structlog.get_logger(__name__)

LoraName = Annotated[str, Meta(min_length=1, max_length=MAX_MODEL_NAME_LENGTH, description="`[tenant/]adapter`.")]
LoraPath = Annotated[str, Meta(min_length=1, max_length=4096, description="A folder below one of `lora_dirs`.")]


class LoadLoraAdapter(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`load_inplace`: the name may be loaded already; it stands for the folder's weights afterwards."""

    lora_name: LoraName
    lora_path: LoraPath
    load_inplace: bool = False


class UnloadLoraAdapter(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`lora_int_id` says nothing here, as in vLLM."""

    lora_name: LoraName
    lora_int_id: int | None = None


@post(
    "/load_lora_adapter",
    status_code=200,
    media_type="text/plain",
    opt=audited("tenant.create", "adapter.create", "version.publish", "alias.move"),
)
async def load_lora_adapter(
    data: JSONBody[LoadLoraAdapter],
    services: NamedDependency[Services],
    lora_lock: NamedDependency[asyncio.Lock],
    by: NamedDependency[Actor],
) -> str:
    """Publish a PEFT folder of the server as an adapter's next version, checked and run like an upload.

    A bare name is an adapter of the tenant that the setting `lora_modules_tenant` names. 503 with code
    `version_validating`: the engine had no time to run it; load it again.
    """
    slug, adapter = _named(services, data.lora_name)
    async with lora_lock:
        tenant = await tenant_of(services, slug, by)
        if not data.load_inplace and await _is_loaded(services, tenant, adapter):
            message = (
                f"The lora adapter '{data.lora_name}' has already been loaded. If you want to load the adapter in "
                "place, set 'load_inplace' to True."
            )
            raise ApiError(400, "adapter_exists", message, param="lora_name")
        version = await _publish(services, tenant, adapter, data.lora_path, by)
    logger.info("lora_adapter_loaded", version=version.canonical_name, path=data.lora_path, key_id=by.id)
    return f"Success: LoRA adapter '{data.lora_name}' added successfully."


@post("/unload_lora_adapter", status_code=200, media_type="text/plain", opt=audited("adapter.delete"))
async def unload_lora_adapter(
    data: JSONBody[UnloadLoraAdapter],
    services: NamedDependency[Services],
    lora_lock: NamedDependency[asyncio.Lock],
    by: NamedDependency[Actor],
) -> str:
    """Delete an adapter with all its versions. Requests that run finish; new ones get 404."""
    slug, adapter = _named(services, data.lora_name)
    async with lora_lock:
        try:
            tenant = await services.tenants.get_tenant(slug)
            await services.registry.delete_adapter(tenant.id, adapter, by=by)
        except (AdapterNotFound, TenantNotFound) as error:
            message = f"The lora adapter '{data.lora_name}' cannot be found."
            raise ApiError(404, "adapter_not_found", message, param="lora_name") from error
    logger.info("lora_adapter_unloaded", adapter=f"{slug}/{adapter}", key_id=by.id)
    return f"Success: LoRA adapter '{data.lora_name}' removed successfully."


def _named(services: Services, lora_name: str) -> tuple[str, str]:
    if not services.settings.lora_dirs:
        message = (
            "Loading adapters from folders of the server is off. The setting `lora_dirs` turns it on: "
            "loraplex serve --lora-dirs DIR. Adapters can be uploaded without it."
        )
        raise ApiError(403, "lora_dirs_not_set", message)
    return split_lora_name(lora_name, services.settings.lora_modules_tenant)


async def _is_loaded(services: Services, tenant: TenantInfo, adapter: str) -> bool:
    try:
        found = await services.registry.get_adapter(tenant.id, adapter)
    except AdapterNotFound:
        return False
    return any(version.state == "ready" for version in found.versions)


async def _publish(services: Services, tenant: TenantInfo, adapter: str, path: str, by: Actor) -> VersionInfo:
    """The folder's version, which the bare name stands for afterwards."""
    try:
        version = await publish_folder(services, Path(path), services.settings.lora_dirs, tenant.id, adapter, by)
    except InvalidName as error:
        raise ApiError(400, "invalid_value", str(error), param="lora_name") from error
    if version.state != "ready":
        message = f"The engine had no time to run {version.canonical_name}; load it again."
        raise unavailable("version_validating", message, retry_after_seconds=5)
    # The same bytes may be an older version, and the name may be bound to another one.
    if not await stands_for(services, version):
        await services.aliases.move(tenant.id, adapter, DEFAULT_ALIAS, {version.number: 1}, by=by)
    return version


LORA_ROUTES = [
    Router(
        "/v1", route_handlers=[load_lora_adapter, unload_lora_adapter], opt={"scope": "admin"}, tags=["lora adapters"]
    )
]

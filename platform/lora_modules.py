"""Adapters that come as a name and a folder, as in vLLM: whose they are, and those of `--lora-modules` at start.

Knows names, tenants and settings. Knows no request and no command line.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import structlog

from loraplex.adapters.audit import SERVER, Actor
from loraplex.adapters.errors import AdapterError, AdapterNotFound
from loraplex.adapters.names import parse_adapter_name
from loraplex.adapters.registry import VersionInfo
from loraplex.platform.errors import ApiError
from loraplex.platform.lora_folders import ANYWHERE, open_adapter_files, publish_folder
from loraplex.platform.services import Services
from loraplex.platform.setting_types import LoraModule
from loraplex.platform.settings import Settings
from loraplex.platform.tenants import TenantError, TenantExists, TenantInfo, TenantNotFound

logger = structlog.get_logger(__name__)


class LoraModuleRefused(Exception):
    """One of the setting `lora_modules` cannot be served; the message says which and why."""


def split_lora_name(lora_name: str, default_tenant: str) -> tuple[str, str]:
    """Tenant and adapter of `tenant/adapter`, or of a bare name in the default tenant. Raises InvalidName."""
    name = parse_adapter_name(lora_name, "lora_name")
    return name.tenant or default_tenant, name.adapter


async def tenant_of(services: Services, slug: str, by: Actor = SERVER) -> TenantInfo:
    """The tenant; the one of the setting `lora_modules_tenant` is created when missing. Raises TenantNotFound."""
    try:
        return await services.tenants.get_tenant(slug)
    except TenantNotFound:
        if slug != services.settings.lora_modules_tenant:
            raise
    with suppress(TenantExists):  # another server may create it too
        return await services.tenants.create_tenant(slug, by=by)
    return await services.tenants.get_tenant(slug)


async def stands_for(services: Services, version: VersionInfo) -> bool:
    """Whether the adapter's bare name means this version and no other."""
    try:
        targets = await services.registry.resolve(version.tenant_id, version.name, None)
    except AdapterNotFound:  # its alias stands for one that does not serve
        return False
    return [target.version.number for target in targets] == [version.number]


def check_lora_modules(settings: Settings) -> None:
    """What can be known without an engine: names, and that the files are there. Raises LoraModuleRefused."""
    named = set()
    for module in settings.lora_modules:
        with _refusals_of(module):
            name = split_lora_name(module.name, settings.lora_modules_tenant)
            if name in named:
                raise LoraModuleRefused("another folder has this name too; give each its own")
            named.add(name)
            with open_adapter_files(module.folder, ANYWHERE):
                pass


async def publish_lora_modules(services: Services) -> None:
    """Publish the folders of the setting `lora_modules`, each as an upload would be. Raises LoraModuleRefused.

    The same bytes as before are the same version; other bytes become the next one. Aliases stay where they are.
    """
    for module in services.settings.lora_modules:
        with _refusals_of(module):
            await _publish(services, module)


async def _publish(services: Services, module: LoraModule) -> None:
    slug, adapter = split_lora_name(module.name, services.settings.lora_modules_tenant)
    tenant = await tenant_of(services, slug)
    version = await publish_folder(services, module.folder, ANYWHERE, tenant.id, adapter, SERVER)
    if version.state != "ready":
        raise LoraModuleRefused(f"the engine had no time to run {version.canonical_name}; start again")
    if module.base_model_name not in (None, services.base_model_name):
        logger.warning("base_model_name_ignored", given=module.base_model_name, served=services.base_model_name)
    if not await stands_for(services, version):
        logger.warning("name_stands_for_another_version", name=f"{slug}/{adapter}", published=version.canonical_name)
    logger.info(
        "lora_module_published",
        version=version.canonical_name,
        model=adapter,
        callers=f"keys of the tenant {slug}: loraplex key create --tenant {slug} --scope inference",
    )


@contextmanager
def _refusals_of(module: LoraModule) -> Iterator[None]:
    try:
        yield
    except (AdapterError, ApiError, TenantError, LoraModuleRefused) as error:
        raise LoraModuleRefused(f"--lora-modules {module.name}={module.path}: {error}") from error

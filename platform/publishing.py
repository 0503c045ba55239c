"""From files in staging to a version that serves: checked, stored under its digest, published, and run once.

However the files came, they go this way. Knows services and files; knows no request.
"""

from __future__ import annotations

import asyncio
from typing import Any

from anyio import to_thread

from loraplex.adapters.blobs import CONFIG_FILE, WEIGHTS_FILE, Staging
from loraplex.adapters.peft_checks import AdapterLimits, CheckedAdapter, check_adapter
from loraplex.adapters.registry import VersionInfo
from loraplex.adapters.types import BaseShape
from loraplex.engine.client import EngineUnavailable
from loraplex.platform.errors import ApiError
from loraplex.platform.services import Services
from loraplex.platform.validation import validate

CONFIG_BYTES = 256 << 10

VALIDATION_SECONDS = 60
"""How long an upload waits for the engine to run its version."""


def adapter_limits(services: Services) -> AdapterLimits:
    """What an adapter may be at most on this server."""
    return AdapterLimits(
        max_rank=services.settings.max_adapter_rank,
        max_config_bytes=CONFIG_BYTES,
        max_weights_bytes=services.settings.max_adapter_bytes,
    )


async def require_served(services: Services, tenant_id: str, name: str) -> None:
    """Raises AdapterNotFound; ApiError 400 where the adapter's base is not the one that this server can check it on."""
    adapter = await services.registry.get_adapter(tenant_id, name)
    if adapter.base_model != services.base_model_name:
        message = (
            f"The adapter is for the base model `{adapter.base_model}`; this server serves "
            f"`{services.base_model_name}` now and cannot check it."
        )
        raise ApiError(400, "base_model_not_served", message)


async def publish_staged(
    services: Services, staging: Staging, tenant_id: str, name: str, received_sha256: str, created_by: str | None
) -> VersionInfo:
    """The next version of an adapter, from staged files, not run yet; or the version that has these bytes.

    received_sha256: of the weights as they came in. Raises AdapterInvalid with every failed check, AdapterNotFound.
    """
    checked = await to_thread.run_sync(_check, services, staging, received_sha256)
    digest = await to_thread.run_sync(services.blobs.commit, staging, checked.spec, checked.weights_sha256)
    return await services.registry.publish(
        tenant_id,
        name,
        digest=digest,
        size_bytes=services.blobs.open(digest).size_bytes,
        max_rank=checked.spec.max_rank,
        targets=sorted({module.rsplit(".", 1)[-1] for module in checked.spec.touched}),
        invocation_tokens=checked.spec.invocation_tokens,
        is_additive=checked.spec.is_additive,
        report=[_statistics(checked, services.base_shape)],
        created_by=created_by,
    )


async def validate_now(services: Services, version: VersionInfo) -> VersionInfo:
    """The version once it is ready, or still validating when the engine has no time. Raises AdapterInvalid."""
    if version.state != "validating":
        return version
    try:
        async with asyncio.timeout(VALIDATION_SECONDS):
            return await validate(services, version)
    except (TimeoutError, EngineUnavailable):
        return version


def _check(services: Services, staging: Staging, received_sha256: str) -> CheckedAdapter:
    config, weights = staging.path(CONFIG_FILE), staging.path(WEIGHTS_FILE)
    checked = check_adapter(config, weights, services.base_shape, adapter_limits(services))
    if checked.weights_sha256 != received_sha256:
        raise OSError("the bytes on disk are not those that were received")
    return checked


def _statistics(checked: CheckedAdapter, shape: BaseShape) -> dict[str, Any]:
    layers = shape.modules().keys()
    tensors = [numbers for module in checked.statistics.values() for numbers in module.values()]
    return {
        "code": "statistics",
        "modules": len(checked.spec.touched),
        "share_of_modules": len(checked.spec.modules.keys() & layers) / len(layers),
        "largest_weight": max(numbers.max_abs for numbers in tensors),
        "largest_norm": max(numbers.norm for numbers in tensors),
        "norms": {
            name: {end: _short(numbers.norm) for end, numbers in module.items()}
            for name, module in checked.statistics.items()
        },
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")

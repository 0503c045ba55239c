"""From files in staging to a version that serves: checked, stored under its digest, published, and run once.

However the files came, they go this way. Knows services and files; knows no request.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar, TypeVarTuple

from anyio import to_thread

from loraplex.adapters.blobs import (
    CONFIG_FILE,
    PROMPT_FILES,
    TEMPLATE_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Staging,
)
from loraplex.adapters.peft_checks import AdapterLimits, CheckedAdapter, check_adapter
from loraplex.adapters.registry import Recorder, VersionInfo
from loraplex.adapters.tokenizer_file import TOKENIZER_BYTES, TokenizerDifference
from loraplex.adapters.types import AdapterSpec, BaseShape, received_digest
from loraplex.engine.client import EngineUnavailable
from loraplex.platform.errors import ApiError
from loraplex.platform.services import Services
from loraplex.platform.template_checks import (
    TEMPLATE_BYTES,
    TOKENIZER_CONFIG_BYTES,
    check_brought_template,
    take_prompting,
)
from loraplex.platform.validation import validate

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

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


PROMPT_FILE_BYTES = {
    TEMPLATE_FILE: TEMPLATE_BYTES,
    TOKENIZER_CONFIG_FILE: TOKENIZER_CONFIG_BYTES,
    TOKENIZER_FILE: TOKENIZER_BYTES,
}
"""How large each of PROMPT_FILES may be."""


def max_file_bytes(services: Services) -> dict[str, int]:
    """How large each of ADAPTER_FILES and PROMPT_FILES may be."""
    limits = adapter_limits(services)
    return {CONFIG_FILE: limits.max_config_bytes, WEIGHTS_FILE: limits.max_weights_bytes, **PROMPT_FILE_BYTES}


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
    services: Services,
    staging: Staging,
    tenant_id: str,
    name: str,
    received_sha256: str,
    created_by: str | None,
    record: Recorder | None = None,
) -> VersionInfo:
    """The next version of an adapter, from staged files, not run yet; or the version that has these bytes.

    received_sha256: of the weights as they came in. A chat template among the files goes into the version's profile.
    record: see `AdapterRegistry.publish`. Raises AdapterInvalid with every failed check, AdapterNotFound;
    EngineUnavailable.
    """
    checked = await check_staged(services, staging, tenant_id, received_sha256)
    adapter = checked.adapter
    digest = await _in_thread(services.blobs.commit, staging, adapter.spec, adapter.weights_sha256)
    return await services.registry.publish(
        tenant_id,
        name,
        digest=digest,
        size_bytes=services.blobs.open(digest).size_bytes,
        max_rank=adapter.spec.max_rank,
        targets=adapter.targets,
        invocation_tokens=adapter.spec.invocation_tokens,
        is_additive=adapter.spec.is_additive,
        vocab_size=known_tokens(adapter.spec, services.base_shape),
        report=report_of(checked, services.base_shape),
        created_by=created_by,
        received_sha256=checked.received_sha256,
        chat_template=checked.chat_template,
        record=record,
    )


@dataclass(frozen=True, slots=True)
class CheckedFiles:
    """What staged files turned out to be. `received_sha256`: see `types.received_digest`."""

    adapter: CheckedAdapter
    tokenizer: TokenizerDifference | None
    chat_template: str | None
    received_sha256: str


async def check_staged(services: Services, staging: Staging, tenant_id: str, received_sha256: str) -> CheckedFiles:
    """Everything that can be checked without running it; files of text are taken out of staging.

    Raises AdapterInvalid with every failed check, EngineUnavailable.
    """
    digests = await _in_thread(_digests, staging)
    prompting = await _in_thread(take_prompting, staging)
    if prompting.chat_template is not None:
        await check_brought_template(services.text, services.templates, tenant_id, prompting.chat_template)
    tokenizer = await services.tokenizer_checks.take(staging, prompting.special_tokens)
    adapter = await _in_thread(_check, services, staging, received_sha256, tokenizer)
    return CheckedFiles(
        adapter, tokenizer, prompting.chat_template, received_digest(digests | {WEIGHTS_FILE: adapter.weights_sha256})
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


async def _in_thread(function: Callable[[*Ts], T], *arguments: *Ts) -> T:
    """Its result. A caller that is cancelled waits for its end all the same: it works on files that then go."""
    running = asyncio.create_task(to_thread.run_sync(function, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.gather(running, return_exceptions=True)
        raise


def _digests(staging: Staging) -> dict[str, str]:
    """SHA-256 of the files that are there, but for the weights."""
    digests = {}
    for name in (CONFIG_FILE, *PROMPT_FILES):
        with suppress(FileNotFoundError), staging.path(name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _check(
    services: Services, staging: Staging, received_sha256: str, tokenizer: TokenizerDifference | None
) -> CheckedAdapter:
    config, weights = staging.path(CONFIG_FILE), staging.path(WEIGHTS_FILE)
    checked = check_adapter(config, weights, services.base_shape, adapter_limits(services), tokenizer)
    if checked.weights_sha256 != received_sha256:
        raise OSError("the bytes on disk are not those that were received")
    return checked


def known_tokens(spec: AdapterSpec, shape: BaseShape) -> int | None:
    """How many tokens it knows, where its text does not become the base's tokens."""
    return spec.vocab_size or shape.vocab_size if spec.has_tokenizer else None


def report_of(checked: CheckedFiles, shape: BaseShape) -> list[dict[str, Any]]:
    """The entries of a version's report that its checks make."""
    report = [_statistics(checked.adapter, shape)]
    if checked.tokenizer is not None:
        spec = checked.adapter.spec
        report.append(
            {
                "code": "tokenizer",
                "added_tokens": len(spec.added_tokens),
                "without_row": len(checked.tokenizer.added) - len(spec.added_tokens),
                "special_tokens": dict(spec.special_tokens),
                "base_instead_of": list(checked.tokenizer.ignored),
            }
        )
    return report


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

"""From files in staging to a version that serves: checked, stored under its digest, published, and run once.

However the files came, they go this way. Knows services and files; knows no request.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar, TypeVarTuple

from anyio import to_thread

from loraplex.adapters.audit import Actor
from loraplex.adapters.blobs import (
    CONFIG_FILE,
    PROMPT_FILES,
    TEMPLATE_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Staging,
)
from loraplex.adapters.errors import AdapterInvalid, VersionNotReady
from loraplex.adapters.lookup import not_ready
from loraplex.adapters.peft_checks import AdapterLimits, CheckedAdapter, check_adapter
from loraplex.adapters.registry import Recorder, VersionInfo
from loraplex.adapters.tokenizer_file import TOKENIZER_BYTES, TokenizerDifference
from loraplex.adapters.types import AdapterSpec, BaseShape, adapter_digest, received_digest
from loraplex.engine.client import EngineUnavailable
from loraplex.platform.check_report import report_of_checks
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


def _adapter_limits(services: Services) -> AdapterLimits:
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
    limits = _adapter_limits(services)
    return {CONFIG_FILE: limits.max_config_bytes, WEIGHTS_FILE: limits.max_weights_bytes, **PROMPT_FILE_BYTES}


async def require_served(services: Services, tenant_id: str, name: str) -> None:
    """Raises AdapterNotFound; ApiError 400 as `require_base` does."""
    require_base(services, (await services.registry.get_adapter(tenant_id, name)).base_model)


def require_base(services: Services, base_model: str) -> None:
    """Raises ApiError 400 where an adapter is for another base than the one that this server can run it on."""
    if base_model != services.base_model_name:
        message = (
            f"The adapter is for the base model `{base_model}`; this server serves `{services.base_model_name}` now "
            "and cannot run it."
        )
        raise ApiError(400, "base_model_not_served", message)


def require_ready(version: VersionInfo) -> None:
    """Raises VersionNotReady, with the reason."""
    if version.state != "ready":
        raise VersionNotReady(not_ready(version.name, version.number, version.state, version.state_reason))


async def publish_staged(
    services: Services,
    staging: Staging,
    tenant_id: str,
    name: str,
    weights_sha256: str,
    by: Actor,
    record: Recorder | None = None,
) -> VersionInfo:
    """The next version of an adapter, from staged files, not run yet; or the version that has these bytes.

    weights_sha256: of the weights as they came in. A chat template among the files goes into the version's profile.
    record: see `AdapterRegistry.publish`. Raises AdapterInvalid with every failed check, AdapterNotFound,
    StorageLimitReached; EngineUnavailable.
    """
    checked = await check_staged(services, staging, tenant_id, weights_sha256)
    adapter = checked.adapter
    size_bytes = staging.path(WEIGHTS_FILE).stat().st_size
    await services.registry.check_room(tenant_id, size_bytes, adapter_digest(adapter.spec, adapter.weights_sha256))
    digest = await _in_thread(services.blobs.commit, staging, adapter.spec, adapter.weights_sha256)
    return await services.registry.publish(
        tenant_id,
        name,
        digest=digest,
        size_bytes=size_bytes,
        max_rank=adapter.spec.max_rank,
        targets=adapter.targets,
        invocation_tokens=adapter.spec.invocation_tokens,
        is_additive=adapter.spec.is_additive,
        vocab_size=known_tokens(adapter.spec, services.base_shape),
        report=report_of_checks(adapter, checked.tokenizer, services.base_shape),
        by=by,
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


async def check_staged(services: Services, staging: Staging, tenant_id: str, weights_sha256: str) -> CheckedFiles:
    """Everything that can be checked without running it; files of text are taken out of staging.

    Raises AdapterInvalid with every failed check, EngineUnavailable.
    """
    digests = await _in_thread(_digests, staging)
    prompting = await _in_thread(take_prompting, staging)
    if prompting.chat_template is not None:
        await check_brought_template(services.text, services.templates, tenant_id, prompting.chat_template)
    tokenizer = await services.tokenizer_checks.take(staging, prompting.special_tokens)
    adapter = await _in_thread(_check, services, staging, weights_sha256, tokenizer)
    return CheckedFiles(
        adapter, tokenizer, prompting.chat_template, received_digest(digests | {WEIGHTS_FILE: adapter.weights_sha256})
    )


async def validate_now(services: Services, version: VersionInfo) -> VersionInfo:
    """The version once it is ready, or still validating when the engine has no time.

    Raises AdapterInvalid, with the report, for one that is rejected; VersionNotReady for one that is quarantined.
    """
    if version.state == "validating":
        with suppress(TimeoutError, EngineUnavailable):
            async with asyncio.timeout(VALIDATION_SECONDS):
                version = await validate(services, version)
    if version.state == "rejected":
        report = await services.registry.get_report(version.tenant_id, version.name, version.number)
        raise AdapterInvalid([check for check in report if "message" in check])
    if version.state != "validating":
        require_ready(version)
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
    services: Services, staging: Staging, weights_sha256: str, tokenizer: TokenizerDifference | None
) -> CheckedAdapter:
    config, weights = staging.path(CONFIG_FILE), staging.path(WEIGHTS_FILE)
    checked = check_adapter(config, weights, services.base_shape, _adapter_limits(services), tokenizer)
    if checked.weights_sha256 != weights_sha256:
        raise OSError("the bytes on disk are not those that were received")
    return checked


def known_tokens(spec: AdapterSpec, shape: BaseShape) -> int | None:
    """How many tokens it knows, where its text does not become the base's tokens."""
    return spec.vocab_size or shape.vocab_size if spec.has_tokenizer else None

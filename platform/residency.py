"""What a tenant sees of where its versions are, and does about it: look, warm, pin, evict. For the API and the pages.

Knows the engine, pins and what tenants may be told; knows no request.
"""

from __future__ import annotations

from collections.abc import Sequence

from anyio import to_thread

from loraplex.adapters.audit import Actor
from loraplex.adapters.registry import VersionInfo
from loraplex.engine.client import EngineUnavailable
from loraplex.engine.messages import Refusal, Whereabouts
from loraplex.platform.errors import ApiError, unavailable
from loraplex.platform.manage.engine_answers import answered
from loraplex.platform.manage.residency_schemas import ResidencyView, tier_of
from loraplex.platform.publishing import require_base, require_ready
from loraplex.platform.services import Services


async def look(services: Services, versions: Sequence[VersionInfo]) -> list[ResidencyView]:
    """Where versions of one tenant are on this server, as far as it may know. While the engine is down: on the disk."""
    digests = [version.digest for version in versions]
    found = await locate(services, digests)
    sizes = await to_thread.run_sync(services.blobs.sizes, digests)
    return [
        ResidencyView.of(
            version,
            entry,
            services.uses.tell(version.tenant_id, version.digest, tier_of(entry)),
            size,
            services.uses.of(version.tenant_id, version.digest),
            services.pins.pinned_until(version.tenant_id, version.digest),
        )
        for version, entry, size in zip(versions, found, sizes, strict=True)
    ]


async def locate(services: Services, digests: Sequence[str]) -> list[Whereabouts]:
    """Where bytes are, for all tenants. While the engine is down: on the disk."""
    try:
        return await answered(services.engine.locate(digests))
    except EngineUnavailable:
        return [Whereabouts(digest) for digest in digests]


async def warm(services: Services, tenant_id: str, name: str, number: int, by: Actor) -> VersionInfo:
    """Bring a version to the device, where that costs no running request its place. Raises as `pin` does."""
    version = await _loadable(services, tenant_id, name, number)
    services.engine.warm(version.digest)
    await _note(services, by, "version.warm", version)
    return version


async def pin(services: Services, tenant_id: str, name: str, number: int, seconds: float, by: Actor) -> VersionInfo:
    """Bring a version to the device and keep it there for so long from now.

    Raises AdapterNotFound, VersionNotFound, VersionNotReady; EngineUnavailable; ApiError 400 where it is for another
    base, 409 where pins may take no more.
    """
    version = await _loadable(services, tenant_id, name, number)
    _raise_refusal(await services.pins.put(version, seconds, by=by))
    return version


async def unpin(services: Services, tenant_id: str, name: str, number: int, by: Actor) -> None:
    """End a pin, if there is one. Raises AdapterNotFound, VersionNotFound."""
    await services.pins.end(await services.registry.get_version(tenant_id, name, number), by=by)


async def evict(services: Services, tenant_id: str, name: str, number: int, by: Actor) -> VersionInfo:
    """Free the memory that a version takes on this server. Raises AdapterNotFound, VersionNotFound; EngineUnavailable;
    ApiError 409 while the tenant uses or pins it.

    The tenant's own use decides what it is told. Where others have the same bytes they keep them, untold.
    """
    version = await services.registry.get_version(tenant_id, name, number)
    digest = version.digest
    if services.uses.of(tenant_id, digest).running:
        _raise_refusal(Refusal("adapter_in_use", "your requests run with this version; try again when they have ended"))
    if services.pins.pinned_until(tenant_id, digest) is not None:
        _raise_refusal(Refusal("adapter_pinned", "your pins keep this version on the device; end its pin first"))
    if not await services.registry.others_have(tenant_id, digest):
        _raise_refusal(await answered(services.engine.evict(digest)))
    services.uses.evicted(tenant_id, digest)
    await _note(services, by, "version.evict", version)
    return version


async def _note(services: Services, by: Actor, action: str, version: VersionInfo) -> None:
    where = f"adapters/{version.name}@{version.number}"
    await services.audit.note(by, action, where, tenant_id=version.tenant_id)


async def _loadable(services: Services, tenant_id: str, name: str, number: int) -> VersionInfo:
    """A version that is about to be brought to the device. Raises AdapterNotFound, VersionNotFound, VersionNotReady;
    ApiError 400 where it is for another base."""
    version = await services.registry.get_version(tenant_id, name, number)
    require_base(services, version.base_model)
    require_ready(version)
    services.uses.touch(tenant_id, version.digest)
    return version


def _raise_refusal(refusal: Refusal | None) -> None:
    """What the engine refuses is a conflict; what it could not load may work later."""
    if refusal is None:
        return
    if refusal.code == "adapter_load_failed":
        raise unavailable(refusal.code, refusal.message, retry_after_seconds=5)
    raise ApiError(409, refusal.code, refusal.message, headers={"x-should-retry": "false"})

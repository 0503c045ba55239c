"""From validating to ready or rejected: what the proof found, written down.

Knows services. An upload validates its own version; what a server left behind when it died is taken up here later.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog
from anyio import to_thread
from sqlalchemy.exc import SQLAlchemyError

from loraplex.adapters.errors import AdapterError, AdapterInvalid, AdapterNotFound
from loraplex.adapters.registry import VersionInfo
from loraplex.adapters.types import AdapterSpec
from loraplex.engine.client import EngineUnavailable
from loraplex.platform.services import Services

ABANDONED_AFTER = timedelta(minutes=3)
"""Well beyond the time that an upload waits for its own validation."""

LOOK_SECONDS = 60

logger = structlog.get_logger(__name__)


async def validate(services: Services, version: VersionInfo) -> VersionInfo:
    """The version as it is afterwards: ready. Raises AdapterInvalid, with the report, when it is rejected;
    EngineUnavailable when the engine cannot say now, and AdapterNotFound when it was deleted meanwhile."""
    services.uses.touch(version.tenant_id, version.digest)
    profile = await services.profile_cache.of(version)
    spec = await to_thread.run_sync(_spec_of, services, version.digest)
    proof = await services.prover.prove(version.digest, spec, profile.chat_template, version.tenant_id)
    if proof.failures:
        reason = proof.failures[0]["message"]
        settled = await services.registry.settle(version, "rejected", reason=reason, report=proof.failures)
    else:
        settled = await services.registry.settle(version, "ready", report=proof.report)
    logger.info("version_validated", version=settled.canonical_name, state=settled.state, reason=settled.state_reason)
    if settled.state == "rejected":
        raise AdapterInvalid(proof.failures)
    return settled


async def validate_abandoned(services: Services) -> None:
    """For ever: versions whose validation nobody seems to be at."""
    while True:
        try:
            for version in await services.registry.validating(services.base_model_name, ABANDONED_AFTER):
                await _validate_one(services, version)
        except (OSError, SQLAlchemyError) as error:
            logger.warning("looking for versions to validate failed; trying again later", error=str(error))
        await asyncio.sleep(LOOK_SECONDS)


def _spec_of(services: Services, digest: str) -> AdapterSpec:
    try:
        return services.blobs.open(digest).spec
    except AdapterError:
        return AdapterSpec({})  # the engine, which finds no more, says why


async def _validate_one(services: Services, version: VersionInfo) -> None:
    try:
        await validate(services, version)
    except (AdapterInvalid, AdapterNotFound):
        return  # it is settled, or gone
    except (EngineUnavailable, OSError, SQLAlchemyError) as error:  # its own, perhaps: the next ones have their turn
        logger.warning("version_not_validated", version=version.canonical_name, reason=str(error))

"""What the engine crashed with twice is taken out of service for good, and not only on this server.

Knows the engine and the registry. Operators begin and end quarantines in `manage/admin`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog
from sqlalchemy.exc import SQLAlchemyError

from loraplex.adapters.changes import ChangeFeed, released
from loraplex.adapters.errors import VersionNotFound
from loraplex.engine.client import EngineClient
from loraplex.platform.services import Services

REASON = "it was in use at two crashes of the engine"
RETRY_SECONDS = 5

logger = structlog.get_logger(__name__)


def forgive_released(changes: ChangeFeed, engine: EngineClient) -> None:
    """Let the engine run again what an operator released, on whichever server."""

    def forgive(subjects: frozenset[str] | None) -> None:
        for digest in released(subjects or frozenset()):
            engine.forgive(digest)

    changes.subscribe(forgive)


async def quarantine_crashers(services: Services) -> None:
    """For ever: write down what the engine refuses to run from now on."""
    crashers = services.engine.quarantined
    while True:
        digest = await crashers.get()
        try:
            await quarantine_crasher(services, digest)
        except (OSError, SQLAlchemyError) as error:
            logger.warning("a quarantine cannot be written down; trying again", digest=digest, error=str(error))
            crashers.put_nowait(digest)
            await asyncio.sleep(RETRY_SECONDS)


async def quarantine_crasher(services: Services, digest: str) -> None:
    """One that has served; what crashed when it was run to be validated is rejected for that. Raises the database's
    errors."""
    with suppress(VersionNotFound):
        for version in await services.quarantine.begin(digest, REASON, only_ready=True):
            logger.error("version_quarantined", version=version.canonical_name, reason=REASON)

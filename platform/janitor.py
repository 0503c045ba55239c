"""Clean up after what was begun and not ended, or has had its time: uploads, names of requests, stored responses, use
of limits, files that nothing refers to.

Of the servers that share a database one does it at a time. Each step may be done twice and beside any request, and
takes nothing that somebody may still come back for. The list of changes bounds itself (`changes`).
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog
from anyio import to_thread
from sqlalchemy.exc import SQLAlchemyError

from loraplex.adapters.leases import JANITOR
from loraplex.platform.services import Services

LEASE = timedelta(minutes=10)
RETRY_SECONDS = 30

logger = structlog.get_logger(__name__)


async def clean_up_forever(services: Services) -> None:
    """At once, and then at intervals."""
    while True:
        try:
            is_done = await clean_up_in_turn(services)
        except (OSError, SQLAlchemyError) as error:
            logger.warning("cleaning up failed; trying again later", error=str(error))
            is_done = False
        await asyncio.sleep(services.settings.sweep_seconds if is_done else RETRY_SECONDS)


async def clean_up_in_turn(services: Services) -> bool:
    """Clean up, unless another server is at it: then False. Raises as `clean_up` does."""
    async with services.leases.hold(JANITOR, LEASE) as is_ours:
        if is_ours:
            await clean_up(services)
        return is_ours


async def clean_up(services: Services) -> None:
    """Raises OSError and the database's errors; what was cleaned up before stays so."""
    await services.uploads.drop_expired()
    await services.idempotency.drop_expired()
    await services.web_sessions.drop_expired()
    await services.shared_use.drop_idle()
    await services.responses.drop_expired()
    settings = services.settings
    kept = timedelta(days=settings.usage_record_days), timedelta(days=settings.usage_hour_days)
    await services.ledger.drop_expired(*kept)
    await _sweep_upload_files(services)
    await services.files.drop_expired()
    live_files = await services.files.live_ids()
    await to_thread.run_sync(services.file_store.sweep, live_files, services.settings.orphan_blob_seconds)
    live = await services.registry.live_digests()
    removed = await to_thread.run_sync(services.blobs.sweep, live, services.settings.orphan_blob_seconds)
    logger.debug("swept adapter files", removed=len(removed))


async def _sweep_upload_files(services: Services) -> None:
    # The files are looked at before the rows: an upload's row is there before its first byte.
    with_files = await to_thread.run_sync(services.upload_files.ids)
    for upload_id in with_files - await services.uploads.open_ids():
        await to_thread.run_sync(services.upload_files.discard, upload_id)

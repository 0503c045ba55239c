"""What was deleted, on whichever server, leaves this one's memory too, and not only when others need the room.

Knows the engine and the registry. What is pinned or in use when it is deleted goes when that has ended.
"""

from __future__ import annotations

import asyncio
from itertools import islice

import structlog
from sqlalchemy.exc import SQLAlchemyError

from loraplex.adapters.changes import ChangeFeed, deleted
from loraplex.adapters.registry import AdapterRegistry
from loraplex.engine.client import EngineClient, EngineUnavailable

RETRY_SECONDS = 5.0
MAX_AT_ONCE = 1000

logger = structlog.get_logger(__name__)


class Deletions:
    """For the tasks of one event loop."""

    def __init__(self, changes: ChangeFeed, registry: AdapterRegistry, engine: EngineClient) -> None:
        self._registry = registry
        self._engine = engine
        self._leaving: set[str] = set()
        self._are_there = asyncio.Event()
        changes.subscribe(self._note)

    async def follow(self) -> None:
        """For ever."""
        while True:
            await self._are_there.wait()
            try:
                await self._evict()
            except (OSError, SQLAlchemyError) as error:
                logger.warning("cannot read which versions were deleted; trying again", error=str(error))
            if self._leaving:
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._are_there.clear()

    def _note(self, subjects: frozenset[str] | None) -> None:
        self._leaving.update(deleted(subjects or frozenset()))
        if self._leaving:
            self._are_there.set()

    async def _evict(self) -> None:
        """Bytes that some version has, of whomever, stay."""
        batch = list(islice(self._leaving, MAX_AT_ONCE))
        held = await self._registry.versions_of(batch)
        self._leaving -= held.keys()
        for digest in batch:
            if digest in held:
                continue
            try:
                refusal = await self._engine.evict(digest)
            except EngineUnavailable:  # its memory is gone
                refusal = None
            if refusal is None:
                self._leaving.discard(digest)

"""Pins from the database into this server's engine, and a tenant's wish for one into both.

The database says what is to be pinned, on every server and after a restart; each engine follows it as far as its
memory lets it. Knows rows and the engine; knows no HTTP.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy.exc import SQLAlchemyError

from loraplex.adapters.audit import SERVER, Actor
from loraplex.adapters.changes import ChangeFeed
from loraplex.adapters.pin_registry import PinRegistry
from loraplex.adapters.registry import VersionInfo
from loraplex.engine.client import EngineClient, EngineUnavailable
from loraplex.engine.messages import Refusal

SYNC_SECONDS = 60.0
"""Between two looks at the pins where nothing is known to have changed: an engine that refused one is asked again."""

DECISION_SECONDS = 20.0
"""How long the engine may take to read an adapter that is to be pinned."""

logger = structlog.get_logger(__name__)


class PinKeeper:
    """For the tasks of one event loop."""

    def __init__(self, pins: PinRegistry, engine: EngineClient, changes: ChangeFeed, base_model: str) -> None:
        self._pins = pins
        self._engine = engine
        self._base_model = base_model
        self._asked: dict[tuple[str, str], float] = {}  # (digest, tenant) -> end, what was asked of the engine lately
        self._deciding: Counter[tuple[str, str]] = Counter()  # those that `put` is asking for
        self._lock = asyncio.Lock()  # between what is written and what the engine is told
        self._changed = asyncio.Event()
        changes.subscribe(lambda _: self._changed.set())

    async def put(self, version: VersionInfo, seconds: float, *, by: Actor = SERVER) -> Refusal | None:
        """Keep a version on the device for so long from now; None: it is pinned, else nothing has changed.

        Raises AdapterNotFound, VersionNotFound, VersionNotReady, and EngineUnavailable where the engine cannot say.
        """
        key, until = (version.digest, version.tenant_id), datetime.now(UTC) + timedelta(seconds=seconds)
        self._deciding[key] += 1
        try:
            async with asyncio.timeout(DECISION_SECONDS):
                decision = await self._engine.pin(*key, until.timestamp())
            if decision.refusal is None:
                async with self._lock:
                    await self._pins.put(version, until, by=by)
        except (TimeoutError, EngineUnavailable):
            raise EngineUnavailable("the engine has had no time to read the adapter; try again", 5) from None
        finally:
            self._deciding -= Counter([key])
            self._asked.pop(key, None)
            await self.sync()
        return decision.refusal

    async def end(self, version: VersionInfo, *, by: Actor = SERVER) -> None:
        """End a version's pin, if there is one. Raises AdapterNotFound, VersionNotFound."""
        await self._pins.delete(version, by=by)
        await self.sync()

    def pinned_until(self, tenant_id: str, digest: str) -> datetime | None:
        """Until when the tenant's pins keep these bytes."""
        until = self._engine.pins.get((digest, tenant_id))
        end = None if until is None else datetime.fromtimestamp(until, UTC)
        return end if end is not None and end > datetime.now(UTC) else None

    async def sync(self) -> None:
        """Let the engine pin what the database says, and nothing else. What it has refused it is not asked again, and
        what it is being asked by `put` waits until that is decided."""
        async with self._lock:
            wanted: dict[tuple[str, str], float] = {}
            for pin in await self._pins.on_base(self._base_model):
                key, until = (pin.digest, pin.tenant_id), pin.expires_at.timestamp()
                wanted[key] = max(until, wanted.get(key, until))
            for key in self._engine.pins.keys() - wanted.keys() - self._deciding.keys():
                self._engine.unpin(*key)
            for key, until in wanted.items():
                is_known = until in (self._engine.pins.get(key), self._asked.get(key))
                if not is_known and key not in self._deciding:
                    self._engine.pin(*key, until)
            self._asked = wanted

    async def follow(self) -> None:
        """For ever: what other servers pin, what they unpin, and what was deleted."""
        while True:
            self._changed.clear()
            try:
                await self.sync()
            except (OSError, SQLAlchemyError) as error:
                logger.warning("cannot read the pins; trying again", error=str(error))
            try:
                await asyncio.wait_for(self._changed.wait(), SYNC_SECONDS)
            except TimeoutError:
                self._asked = {}

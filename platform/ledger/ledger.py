"""The usage ledger of this server: what was handed to clients is in the database in the end, each request once.

A request takes a slot before it runs (`slots`), and what it hands over is noted there before it is sent. When it ends,
its record is appended to the spool and the slot is free. Once a second the spool goes into the database, up to
BATCH_RECORDS a transaction, which adds what is new of them alone; then its files are deleted. So

- a server that is killed leaves records and slots behind, and the next one in the same folder adds both: of a request
  that ran it bills what its client had, and at most the one event more that was about to be sent;
- while the database is away, records wait in the spool; when that has `max_bytes`, or the disk is full, new requests
  are refused, and those that run are still noted. Nothing is given away and nothing is dropped;
- a machine that loses its power loses the records of the last SYNC_SECONDS, and what was running;
- records that are added again are known by their ids, as long as their rows are kept.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from uuid import uuid4

import structlog
from anyio import to_thread
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from loraplex.adapters.database import Database
from loraplex.platform.errors import unavailable
from loraplex.platform.ledger.record import Tokens, UsageRecord, to_line
from loraplex.platform.ledger.rows import UsageRows
from loraplex.platform.ledger.slots import RunningSlots, lost_requests
from loraplex.platform.ledger.spool import Spool, batches, end_segment, keep_aside, read_segment, segments_of

SYNC_SECONDS = 0.5
WRITE_SECONDS = 1.0
ADOPT_SECONDS = 60.0
BATCH_RECORDS = 500
CLOSE_SECONDS = 5.0
REFUSALS_PER_SECOND = 10
"""Of one tenant, refused requests that become records: they cost it nothing, so nothing else would bound them."""

SLOTS = "running.slots"
LOCK = "lock"

logger = structlog.get_logger(__name__)


class Ledger:
    """For the tasks of one event loop. folder: of all servers that share a data folder; each has one of its own in it,
    and a lock by which others see that it lives. records_written: into the database, by this server. epoch: of what is
    settled now; that of the epochs before `epochs_written` the database has."""

    def __init__(self, folder: Path, database: Database, *, max_bytes: int) -> None:
        """Raises OSError."""
        self.server_id = uuid4().hex[:12]
        self.records_written = 0
        self.epoch = 0
        self.epochs_written = 0
        self._folder = folder / self.server_id
        self._all = folder
        self._max_bytes = max_bytes
        self._rows = UsageRows(database)
        self._lock = _make_locked(self._folder)
        self._slots = RunningSlots(self._folder / SLOTS)
        self._spool = Spool(self._folder)
        self._unspooled: list[tuple[int | None, UsageRecord]] = []
        self._writing = asyncio.Lock()
        self._syncing = asyncio.Lock()
        self._refusals: dict[str, int] = {}
        self._refusals_since = 0.0
        self._written_at = time.monotonic()
        self._is_closed = False

    @property
    def waiting_bytes(self) -> int:
        """Of records that the database does not have, of this life of the server."""
        return self._spool.bytes

    @property
    def waiting_seconds(self) -> float:
        """For how long the oldest of them waits, at most."""
        return time.monotonic() - self._written_at if self._spool.bytes else 0.0

    def require_room(self) -> None:
        """Raises ApiError 503 where another request could not be billed."""
        if self._unspooled or self._spool.bytes >= self._max_bytes:
            raise _full()

    def open(self, record: UsageRecord) -> int:
        """A slot for a request that is about to run. Raises as `require_room`."""
        self.require_room()
        try:
            return self._slots.take(record)
        except OSError as error:
            logger.error("the usage ledger cannot be written", error=str(error))
            raise _full() from error

    def note(self, slot: int, tokens: Tokens) -> None:
        """What the client is about to have in all. Raises OSError, and then it must not be sent."""
        self._slots.note(slot, tokens)

    def settle(self, slot: int | None, record: UsageRecord) -> None:
        """A request has ended. Where the record cannot be written its slot stays as it is, and this is tried again."""
        try:
            self._spool.append(record)
        except OSError as error:
            logger.error("the usage ledger cannot be written; trying again", error=str(error))
            self._unspooled.append((slot, record))
        else:
            self._free(slot)

    def refuse(self, slot: int | None, record: UsageRecord) -> None:
        """A request that did not run: told where that is cheap, and lost where it is not."""
        now = time.monotonic()
        if now - self._refusals_since >= 1:
            self._refusals, self._refusals_since = {}, now
        told = self._refusals.get(record.tenant_id, 0)
        self._refusals[record.tenant_id] = told + 1
        if told < REFUSALS_PER_SECOND and self._spool.bytes < self._max_bytes // 2:
            with suppress(OSError):
                self._spool.append(record)
        self._free(slot)

    async def follow(self) -> None:
        """For ever: sync what was appended, write it into the database, and take over what dead servers left."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._every(SYNC_SECONDS, self._sync))
            tasks.create_task(self._every(WRITE_SECONDS, self.write))
            tasks.create_task(self._every(ADOPT_SECONDS, self.adopt))

    async def write(self) -> None:
        """Have the database take all that is in the spool. Raises its errors and OSError; what was taken stays so."""
        async with self._writing:
            self._append_unspooled()
            began_at = time.monotonic()
            if not self._spool.bytes:
                self._written_at = began_at
                return
            async with self._syncing:
                ended = self._spool.rotate()
                self.epoch = epoch = self.epoch + 1
                await to_thread.run_sync(end_segment, ended)
            for segment in self._spool.full_segments:
                await self._write_segment(segment)
                await self._spool.drop(segment)
            self.epochs_written = epoch
            self._written_at = began_at

    async def adopt(self) -> None:
        """Have the database take what servers left in this folder that are gone. Raises as `write` does."""
        for folder in sorted(self._all.iterdir()):
            if folder == self._folder or folder.name.startswith(".") or (lock := _locked(folder)) is None:
                continue
            try:
                for segment in segments_of(folder):
                    await self._write_segment(segment)
                lost = await to_thread.run_sync(lambda path: list(lost_requests(path)), folder / SLOTS)
                for batch in batches(lost, BATCH_RECORDS):
                    await self._add(batch, folder / SLOTS)
                await to_thread.run_sync(partial(shutil.rmtree, folder, ignore_errors=True))
                logger.info("took over the usage ledger of a server that is gone", server_id=folder.name, ran=len(lost))
            finally:
                os.close(lock)

    async def close(self) -> None:
        """Have the database take the rest, if it is there; else the next server does."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.write()
        except (TimeoutError, OSError, SQLAlchemyError) as error:
            logger.warning("the next server writes what is left of the usage", error=_line(error))
        is_empty = not self._spool.bytes and not self._slots.taken
        self._slots.close()
        self._spool.close()
        if is_empty:
            shutil.rmtree(self._folder)
        os.close(self._lock)

    async def _sync(self) -> None:
        async with self._syncing:
            if self._spool.has_unsynced:
                await to_thread.run_sync(self._spool.sync)

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except (OSError, SQLAlchemyError) as error:
                logger.warning("usage waits to be written", bytes=self._spool.bytes, error=_line(error))
            await asyncio.sleep(seconds)

    def _append_unspooled(self) -> None:
        while self._unspooled:
            slot, record = self._unspooled[0]
            self._spool.append(record)
            del self._unspooled[0]
            self._free(slot)

    def _free(self, slot: int | None) -> None:
        if slot is not None:
            with suppress(OSError):  # then its request is told again, under the same id
                self._slots.free(slot)

    async def _write_segment(self, segment: Path) -> None:
        records = await to_thread.run_sync(read_segment, segment)
        for batch in batches(records, BATCH_RECORDS):
            await self._add(batch, segment)

    async def _add(self, records: list[UsageRecord], source: Path) -> None:
        """Records that the database refuses for what they are must not keep the others waiting: they go aside."""
        try:
            self.records_written += await self._rows.add(records)
        except (DataError, IntegrityError) as error:
            if len(records) > 1:
                middle = len(records) // 2
                await self._add(records[:middle], source)
                await self._add(records[middle:], source)
                return
            logger.error("the database refuses a record of the usage ledger", id=records[0].id, error=str(error))
            keep_aside(source, [to_line(records[0])])

    async def drop_expired(self, records: timedelta, hours: timedelta) -> None:
        """Raises the database's errors."""
        await self._rows.drop_expired(records, hours)


def _full() -> Exception:
    message = "Usage cannot be written down now, so nothing is served; try again shortly."
    return unavailable("ledger_full", message, retry_after_seconds=5)


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _make_locked(folder: Path) -> int:
    """A new folder, and its lock. It has its name once it is locked, so nobody can take it for a dead server's."""
    unnamed = folder.with_name(f".{folder.name}")
    unnamed.mkdir(parents=True)
    (unnamed / LOCK).touch()
    lock = _locked(unnamed)
    assert lock is not None
    unnamed.rename(folder)
    return lock


def _locked(folder: Path) -> int | None:
    """The lock of a server's folder, held; None: its server lives, or another one is at it."""
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock

"""Records that the database does not have yet, in files of one server: appended to one, taken from the others.

What is appended is the kernel's at once, so it outlives a process that is killed; `sync` makes it outlive the machine.
Knows files; knows no database.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import structlog
from anyio import to_thread

from loraplex.platform.ledger.record import Damaged, UsageRecord, from_line, to_line

SUFFIX = ".log"
DAMAGED = ".damaged"

logger = structlog.get_logger(__name__)


class Spool:
    """Of a folder that is this process's alone. For the tasks of one event loop, but for `sync`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self._size = 0
        self._synced = 0
        self._file = self._create()
        self.bytes = 0
        """Of what was appended and not taken out."""

    def append(self, record: UsageRecord) -> None:
        """Raises OSError, and then it is not there."""
        line = to_line(record)
        try:
            written = os.write(self._file, line)
        except OSError:
            self._cut()
            raise
        if written < len(line):
            self._cut()
            raise OSError(f"{written} of {len(line)} bytes were written: the disk is full")
        self._size += len(line)
        self.bytes += len(line)

    @property
    def has_unsynced(self) -> bool:
        return self._synced < self._size

    def sync(self) -> None:
        """Waits for the disk. Not beside `rotate`."""
        size = self._size
        os.fdatasync(self._file)
        self._synced = size

    def rotate(self) -> int:
        """From here on append to a new file. The one before is to be ended by `end_segment`, not beside `sync`."""
        before, self._file = self._file, self._create()
        self._size = self._synced = 0
        return before

    @property
    def full_segments(self) -> list[Path]:
        """Those that nothing is appended to any more, oldest first."""
        return segments_of(self._folder)[:-1]

    async def drop(self, segment: Path) -> None:
        """The database has all of it."""
        size = segment.stat().st_size  # noqa: ASYNC240  microseconds
        try:
            await to_thread.run_sync(segment.unlink)  # takes milliseconds where the disk is busy
        finally:  # and when this is cancelled meanwhile, the file is gone all the same
            if not segment.exists():  # noqa: ASYNC240
                self.bytes -= size

    def close(self) -> None:
        """Waits for the disk."""
        end_segment(self._file)

    def _create(self) -> int:
        self._number += 1
        path = self._folder / f"{self._number:012d}{SUFFIX}"
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def _cut(self) -> None:
        """Take away what was written of a line."""
        os.ftruncate(self._file, self._size)


def end_segment(file: int) -> None:
    """Waits for the disk."""
    try:
        os.fdatasync(file)
    finally:
        os.close(file)


def segments_of(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(folder.glob(f"*{SUFFIX}"))


def read_segment(segment: Path) -> list[UsageRecord]:
    """What is whole in it. A last line that a crash cut off was never acknowledged; of any other that is wrong the file
    is kept aside, for people."""
    with segment.open("rb") as file:
        lines = file.readlines()
    records: list[UsageRecord] = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(from_line(line))
        except Damaged as error:
            if number < len(lines) or line.endswith(b"\n"):
                logger.error("a line of the usage ledger is damaged", segment=str(segment), line=number, why=str(error))
                keep_aside(segment, [line])
    return records


def keep_aside(segment: Path, lines: list[bytes]) -> None:
    """Lines that no database will take, beside the folder that they were in."""
    with (segment.parent.parent / f"{segment.parent.name}{DAMAGED}").open("ab") as file:
        file.writelines(lines)


def batches(records: list[UsageRecord], size: int) -> Iterator[list[UsageRecord]]:
    return (records[start : start + size] for start in range(0, len(records), size))

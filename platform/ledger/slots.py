"""The requests that run, in a file: what each has handed to its client is written there before it is handed over.

A write into the file is the kernel's as soon as it returns, so it outlives a process that is killed. It is never
synced: a machine that loses its power may lose what its running requests handed out.

The file is an array of slots, allocated ahead, so that a full disk refuses new requests and not the notes of those that
run. A slot is one page and written by one system call, so a kill leaves it as it was before or after:

    [ 0:  8)  length and CRC-32 of the record; the length is 0 where nothing runs
    [ 8: 20)  prompt, cached and completion tokens that were handed over
    [20:...)  the record, as it is to be told if the server is lost
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from loraplex.platform.ledger.record import NO_TOKENS, Damaged, Tokens, UsageRecord, decode, encode

SLOT_BYTES = 4096
GROWTH = 64
"""Slots that are allocated at a time."""

_HEAD = struct.Struct("<II")
_COUNTS = struct.Struct("<III")
_COUNTS_AT = _HEAD.size
_RECORD_AT = _COUNTS_AT + _COUNTS.size
MAX_RECORD_BYTES = SLOT_BYTES - _RECORD_AT


class RunningSlots:
    """A file that is created for one life of a server. Every method raises OSError when the file cannot be written."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._size = 0
        self._free: list[int] = []

    def take(self, record: UsageRecord) -> int:
        """A slot for a request that is about to run."""
        if not self._free:
            self._grow()
        data = encode(_fitting(record))
        slot = self._free.pop()
        try:
            os.pwrite(
                self._file, _HEAD.pack(len(data), zlib.crc32(data)) + _COUNTS.pack(*NO_TOKENS) + data, slot * SLOT_BYTES
            )
        except OSError:
            self._free.append(slot)
            raise
        return slot

    def note(self, slot: int, tokens: Tokens) -> None:
        """What the client is about to have in all. To be called before it is sent."""
        os.pwrite(self._file, _COUNTS.pack(*tokens), slot * SLOT_BYTES + _COUNTS_AT)

    def free(self, slot: int) -> None:
        """Its record is safe elsewhere."""
        os.pwrite(self._file, bytes(_HEAD.size), slot * SLOT_BYTES)
        self._free.append(slot)

    @property
    def taken(self) -> int:
        """How many are."""
        return self._size - len(self._free)

    def close(self) -> None:
        os.close(self._file)

    def _grow(self) -> None:
        os.posix_fallocate(self._file, self._size * SLOT_BYTES, GROWTH * SLOT_BYTES)
        self._free.extend(reversed(range(self._size, self._size + GROWTH)))
        self._size += GROWTH


def lost_requests(path: Path) -> Iterator[UsageRecord]:
    """Of a server that is gone: what ran when it went. Where there is no file, nothing did."""
    data = path.read_bytes() if path.exists() else b""
    for start in range(0, len(data), SLOT_BYTES):
        length, crc = _HEAD.unpack_from(data, start)
        written = data[start + _RECORD_AT : start + _RECORD_AT + min(length, MAX_RECORD_BYTES)]
        if not length or zlib.crc32(written) != crc:
            continue
        try:
            record = decode(written)
        except Damaged:
            continue
        tokens = Tokens(*_COUNTS.unpack_from(data, start + _COUNTS_AT))
        yield msgspec.structs.replace(record, **tokens._asdict())


def _fitting(record: UsageRecord) -> UsageRecord:
    """Without what is only told: a slot has no room for the longest names in the longest spelling."""
    if len(encode(record)) <= MAX_RECORD_BYTES:
        return record
    return msgspec.structs.replace(record, asked="", model="")

"""A file on its way from elsewhere into staging: written in order, hashed, and never larger than it may be.

Knows one file. Knows nothing of where it comes from.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

from anyio import to_thread

from loraplex.platform.errors import ApiError


class Source(Protocol):
    """Something that files of an adapter are fetched from."""

    async def fetch(self, file: str, download: Download) -> None:
        """Bring the whole file. Raises ApiError; 5xx: trying again later may help."""


class Download:
    """A context manager that closes the file. `total_bytes`: None until it is known."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.name = path.name
        self.received_bytes = 0
        self.total_bytes: int | None = None
        self._max_bytes = max_bytes
        self._file = path.open("xb")
        self._hash = hashlib.sha256()

    def __enter__(self) -> Download:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def sha256(self) -> str:
        """Of what was received."""
        return self._hash.hexdigest()

    def expect(self, total_bytes: int) -> None:
        """The size of the whole file, as its source tells. Raises ApiError 413."""
        self._require_room(total_bytes)
        self.total_bytes = total_bytes

    async def write(self, block: bytes) -> None:
        """Raises ApiError 413, OSError."""
        self._require_room(self.received_bytes + len(block))
        await to_thread.run_sync(self._write, block)

    def restart(self) -> None:
        """Forget what was received."""
        self._file.seek(0)
        self._file.truncate()
        self._hash = hashlib.sha256()
        self.received_bytes = 0

    def _write(self, block: bytes) -> None:
        self._file.write(block)
        self._hash.update(block)
        self.received_bytes += len(block)

    def _require_room(self, size_bytes: int) -> None:
        if size_bytes > self._max_bytes:
            message = f"{self.name} is larger than {self._max_bytes} bytes, which is the most this server accepts."
            raise ApiError(413, "source_too_large", message, param="source")

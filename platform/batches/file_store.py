"""The bytes of tenants' files: content/<id> below one folder, which all servers on a database share.

A file is there whole or not at all. Knows ids and bytes; knows no row and no tenant: what no row names is swept.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from loraplex.adapters.blobs import fsync


@dataclass(frozen=True, slots=True)
class KeptFile:
    """A file that is whole and synced, and of which no row knows yet."""

    id: str
    size_bytes: int
    sha256: str


class FileStore:
    """Methods may be called from several threads and processes at once. They raise OSError."""

    def __init__(self, root: Path) -> None:
        self._content, self._staging = root / "content", root / "staging"
        for folder in (self._content, self._staging):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fsync(root)

    def path(self, file_id: str) -> Path:
        return self._content / file_id

    @contextmanager
    def stage(self) -> Iterator[Path]:
        """An empty folder for files that are to be kept; gone afterwards."""
        folder = self._staging / uuid4().hex
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def keep(self, staged: Path, size_bytes: int, sha256: str) -> KeptFile:
        """Give a staged file an id. The row that names it must follow within the sweep's grace period."""
        file_id = f"file-{uuid4().hex}"
        fsync(staged)
        staged.rename(self._content / file_id)
        fsync(self._content)
        return KeptFile(file_id, size_bytes, sha256)

    def discard(self, file_id: str) -> None:
        """Remove a file; again is fine."""
        with suppress(FileNotFoundError):
            self.path(file_id).unlink()

    def sweep(self, live: Collection[str], grace_seconds: float) -> None:
        """Remove what is not live, and what was staged and forgotten, once it is older than that."""
        oldest = time.time() - grace_seconds
        for path in (*self._content.iterdir(), *self._staging.iterdir()):
            with suppress(FileNotFoundError):
                if path.name in live or path.stat().st_mtime > oldest:
                    continue
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()


class StagedFile:
    """A file that is written line by line into a staging folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = 0
        self._sha256 = hashlib.sha256()
        self._file = path.open("xb")

    def __enter__(self) -> StagedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self.size_bytes += len(data)

    def keep(self, store: FileStore) -> KeptFile | None:
        """None for an empty one, which nobody needs."""
        self._file.close()
        return store.keep(self.path, self.size_bytes, self._sha256.hexdigest()) if self.size_bytes else None

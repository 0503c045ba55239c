"""The bytes of uploads that come in pieces: uploads/<id>/<file> under the root of the blob store.

How much of a file is there is its size on disk, so there is nothing else to keep in step with it: bytes are only ever
appended, and no size is told before it is synced. Knows ids, names and bytes; knows no row and no tenant.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from loraplex.adapters.blobs import Staging, fsync, locked
from loraplex.adapters.errors import ChecksumMismatch, UploadBusy, UploadIncomplete, UploadNotFound


@dataclass(frozen=True, slots=True)
class AnnouncedFile:
    """One of ADAPTER_FILES or of PROMPT_FILES as it is to be once it is whole."""

    name: str
    size_bytes: int
    sha256: str


class GrowingFile:
    """A file of an upload, while nobody else may write to that upload. `offset`: the bytes that are there."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.offset = _size_bytes(path)
        self._path = path
        self._size_bytes = size_bytes

    @property
    def missing_bytes(self) -> int:
        return self._size_bytes - self.offset

    def append(self, block: bytes) -> None:
        """Up to `missing_bytes`. Raises UploadNotFound when the upload was dropped meanwhile, OSError when the disk is
        full; what is written stays."""
        assert len(block) <= self.missing_bytes
        try:
            with self._path.open("ab", buffering=0) as file:
                rest = memoryview(block)
                while rest:
                    written = file.write(rest)
                    self.offset += written
                    rest = rest[written:]
        except FileNotFoundError as error:
            raise UploadNotFound("the upload was dropped or has expired; begin it again") from error


class UploadFiles:
    """Any number of processes on one machine may use it. Methods may be called from several threads."""

    def __init__(self, root: Path) -> None:
        self._uploads = root / "uploads"
        self._uploads.mkdir(parents=True, exist_ok=True)
        fsync(root)

    def offset(self, upload_id: str, name: str) -> int:
        """How many bytes of a file are there, and stay even if the power goes."""
        path = self._uploads / upload_id / name
        try:
            size_bytes = path.stat().st_size
            for written in (path, path.parent, self._uploads):
                fsync(written)
        except FileNotFoundError:
            return 0
        return size_bytes

    @contextmanager
    def growing(self, upload_id: str, announced: AnnouncedFile) -> Iterator[GrowingFile]:
        """One of the upload's files, to be continued. Raises UploadBusy while any file of it is being continued."""
        directory = self._uploads / upload_id
        directory.mkdir(mode=0o700, exist_ok=True)
        with ExitStack() as held:
            try:
                held.enter_context(locked(directory))
            except BlockingIOError as error:
                message = "another request is writing to this upload; try again when it has ended"
                raise UploadBusy(message) from error
            yield GrowingFile(directory / announced.name, announced.size_bytes)

    def stage(self, upload_id: str, files: Sequence[AnnouncedFile], staging: Staging) -> None:
        """Put the files of a whole upload into `staging` too; here they stay until they are discarded.

        Raises UploadIncomplete; ChecksumMismatch for a file of other content than was announced, which is dropped.
        """
        try:
            for announced in files:
                _check(self._uploads / upload_id / announced.name, announced)
                staging.path(announced.name).hardlink_to(self._uploads / upload_id / announced.name)
        except FileNotFoundError as error:
            raise UploadIncomplete("the files of the upload went away; look at it again") from error

    def ids(self) -> set[str]:
        """The uploads of which there are files."""
        return {directory.name for directory in self._uploads.iterdir()}

    def discard(self, upload_id: str) -> None:
        """Remove all files of an upload; again is fine."""
        shutil.rmtree(self._uploads / upload_id, ignore_errors=True)


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _check(path: Path, announced: AnnouncedFile) -> None:
    offset = _size_bytes(path)
    if offset != announced.size_bytes:
        raise UploadIncomplete(f"{announced.name} has {offset} of {announced.size_bytes} bytes; send the rest first")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != announced.sha256:
        path.unlink()
        message = f"{announced.name} came in with the SHA-256 {sha256}, not the announced one; send it again"
        raise ChecksumMismatch(message)

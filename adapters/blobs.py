"""Adapters on disk, named by their content: blobs/<first two digits>/<digest>/ holds one version, whole and read-only.

A version appears by one atomic rename, so whatever moment the process dies at, it is there whole or not at all.
Engines keep what they derive from a version in its directory too (`packed_files`): it is removed with the version.
Knows files and digests; knows no tenant, no database and no tensor.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from loraplex.adapters.errors import AdapterNotFound, AdapterUnavailable
from loraplex.adapters.types import AdapterSpec, adapter_digest, is_digest

SPEC_FILE = "adapter.json"
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
TOKENIZER_FILE = "tokenizer.json"

ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE)
"""What an adapter comes as."""

PROMPT_FILES = (TEMPLATE_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE)
"""May come with it and say how it is asked. They are taken out before the commit."""


@dataclass(frozen=True, slots=True)
class StoredAdapter:
    """An adapter version on disk. `size_bytes` is that of the weights file."""

    spec: AdapterSpec
    weights_path: Path
    config_path: Path
    size_bytes: int


@dataclass(frozen=True, slots=True)
class DiskUse:
    """Of all adapter versions, with what engines keep beside them."""

    adapters: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Staging:
    """A private directory for one upload."""

    directory: Path

    def path(self, name: str) -> Path:
        """Where to write one of ADAPTER_FILES or of PROMPT_FILES. Nothing else may be staged."""
        if name not in ADAPTER_FILES + PROMPT_FILES:
            raise ValueError(f"{name!r} is no file of an adapter")
        return self.directory / name


class BlobStore:
    """Any number of processes on one machine may write and open. Methods may be called from several threads."""

    def __init__(self, root: Path) -> None:
        self._staging = root / "staging"
        self._blobs = root / "blobs"
        self._staging.mkdir(parents=True, exist_ok=True)
        self._blobs.mkdir(exist_ok=True)
        fsync(root)

    @contextmanager
    def stage(self) -> Iterator[Staging]:
        """A directory that is gone on exit, unless it was committed."""
        directory = self._staging / uuid.uuid4().hex
        with ExitStack() as held:
            with self._exclusively():
                directory.mkdir(mode=0o700)
                held.enter_context(locked(directory))
            held.callback(shutil.rmtree, directory, ignore_errors=True)
            yield Staging(directory)

    def commit(self, staging: Staging, spec: AdapterSpec, weights_sha256: str) -> str:
        """Make the staged files an adapter version that survives a crash, and return its digest.

        If the same content is there already, and whole, that one is kept and its grace period starts anew. Raises
        FileNotFoundError if a file was not staged.
        """
        digest = adapter_digest(spec, weights_sha256)
        spec_path = staging.directory / SPEC_FILE
        spec_path.write_bytes(spec.to_json())
        for path in (spec_path, *map(staging.path, ADAPTER_FILES)):
            path.chmod(0o444)
            fsync(path)
        fsync(staging.directory)
        target = self._directory(digest)
        target.parent.mkdir(exist_ok=True)
        with self._exclusively():
            if target.exists() and not _has_files_of(target, staging):
                target.rename(self._trash())  # which the next sweep empties
            if not target.exists():
                staging.directory.rename(target)
            os.utime(target)
        fsync(target.parent)
        fsync(self._blobs)
        return digest

    def keep(self, digest: str) -> None:
        """Start the grace period of a version anew, since a row is about to name it. Raises as `open` does."""
        if is_digest(digest):
            with self._exclusively(), suppress(FileNotFoundError):
                os.utime(self._directory(digest))
        self.open(digest)

    def open(self, digest: str) -> StoredAdapter:
        """Raises AdapterNotFound if `digest` is none, AdapterUnavailable if its files are missing or damaged."""
        if not is_digest(digest):
            raise AdapterNotFound("no such adapter version")
        directory = self._directory(digest)
        try:
            spec = AdapterSpec.from_json((directory / SPEC_FILE).read_bytes())
            size_bytes = (directory / WEIGHTS_FILE).stat().st_size
        except OSError as error:
            raise AdapterUnavailable("the files of this adapter version are missing; upload it again") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AdapterUnavailable("the files of this adapter version are damaged; upload it again") from error
        return StoredAdapter(spec, directory / WEIGHTS_FILE, directory / CONFIG_FILE, size_bytes)

    def sizes(self, digests: Iterable[str]) -> list[int]:
        """Bytes that each of these versions takes on the disk, with what engines keep beside it; 0 where it is not."""
        return [_size_of(self._directory(digest)) for digest in digests]

    def disk_use(self) -> DiskUse:
        """Looks at every file: for operators, and off the event loop."""
        sizes = [_size_of(directory) for directory in self._blobs.glob("*/*")]
        return DiskUse(len(sizes), sum(sizes))

    def sweep(self, live: Collection[str], grace_seconds: float) -> list[str]:
        """Remove staging whose process is gone, and old blobs that nothing refers to.

        Returns the digests removed. live: digests that something refers to. The grace period covers versions that are
        committed but not yet in the registry, and those that waiting requests may still load.
        """
        oldest = time.time() - grace_seconds
        removed = []
        for directory in self._blobs.glob("*/*"):
            if is_digest(directory.name) and directory.name not in live and self._retire(directory, oldest):
                removed.append(directory.name)
        for directory in self._staging.iterdir():
            with suppress(OSError), ExitStack() as held:
                with self._exclusively():  # so that an owner who is alive has its lock by now
                    held.enter_context(locked(directory))
                shutil.rmtree(directory, ignore_errors=True)
        return removed

    def _retire(self, directory: Path, oldest: float) -> bool:
        """Take a blob out of sight in one rename, then delete it: `open` never sees half of one."""
        trash = self._trash()
        try:
            with self._exclusively():
                if directory.stat().st_mtime >= oldest:
                    return False
                directory.rename(trash)
        except FileNotFoundError:
            return False  # another server's sweep was quicker
        shutil.rmtree(trash, ignore_errors=True)
        return True

    def _trash(self) -> Path:
        return self._staging / f"removed-{uuid.uuid4().hex}"

    def _exclusively(self) -> AbstractContextManager[None]:
        """For the moment in which a directory appears or goes: no other thread or process is in one."""
        return locked(self._blobs, wait=True)

    def _directory(self, digest: str) -> Path:
        return self._blobs / digest[:2] / digest


def _has_files_of(directory: Path, staging: Staging) -> bool:
    """Whether no file of the same content, in staging, is missing or cut off there."""
    try:
        same_spec = (directory / SPEC_FILE).read_bytes() == (staging.directory / SPEC_FILE).read_bytes()
        sizes = [(place / WEIGHTS_FILE).stat().st_size for place in (directory, staging.directory)]
        return same_spec and sizes[0] == sizes[1] and (directory / CONFIG_FILE).exists()
    except FileNotFoundError:
        return False


def _size_of(directory: Path) -> int:
    """Of the files in it. One that goes meanwhile is left out."""
    total = 0
    with suppress(OSError), os.scandir(directory) as files:
        for file in files:
            with suppress(OSError):
                total += file.stat().st_size
    return total


@contextmanager
def locked(directory: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the directory's lock, which ends with the process however it dies. Raises BlockingIOError if it is held,
    unless told to wait."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def fsync(path: Path) -> None:
    """Have what was written to a file, or the names in a directory, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

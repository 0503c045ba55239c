"""The bytes of an upload: appended by one at a time, told once they are safe, and there until they are dropped."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from loraplex.adapters.blobs import CONFIG_FILE, WEIGHTS_FILE, BlobStore
from loraplex.adapters.errors import ChecksumMismatch, UploadBusy, UploadIncomplete, UploadNotFound
from loraplex.adapters.upload_files import AnnouncedFile, UploadFiles

UPLOAD = "0" * 32


def announced(name: str, content: bytes) -> AnnouncedFile:
    return AnnouncedFile(name, len(content), hashlib.sha256(content).hexdigest())


CONFIG, WEIGHTS = announced(CONFIG_FILE, b"{}"), announced(WEIGHTS_FILE, b"weights")


@pytest.fixture
def files(tmp_path: Path) -> UploadFiles:
    return UploadFiles(tmp_path)


def append(files: UploadFiles, file: AnnouncedFile, content: bytes) -> int:
    with files.growing(UPLOAD, file) as growing:
        growing.append(content)
        return growing.missing_bytes


def test_a_file_grows_to_its_size(files: UploadFiles, tmp_path: Path) -> None:
    """Whoever opens it later finds what was appended."""
    assert files.offset(UPLOAD, CONFIG_FILE) == 0
    assert append(files, WEIGHTS, b"wei") == 4
    again = UploadFiles(tmp_path)
    assert again.offset(UPLOAD, WEIGHTS_FILE) == 3
    assert append(again, WEIGHTS, b"ghts") == 0
    assert again.ids() == {UPLOAD}


def test_one_at_a_time_writes(files: UploadFiles) -> None:
    """Also to another file of the upload; when it has ended the next one may."""
    with files.growing(UPLOAD, CONFIG), pytest.raises(UploadBusy):
        append(files, WEIGHTS, b"x")
    assert append(files, WEIGHTS, b"x") == 6


def test_what_is_dropped_amid_a_write_stays_dropped(files: UploadFiles) -> None:
    """The writer is told, and brings nothing back."""
    with files.growing(UPLOAD, CONFIG) as growing:
        growing.append(b"{")
        files.discard(UPLOAD)
        with pytest.raises(UploadNotFound):
            growing.append(b"}")
    files.discard(UPLOAD)
    assert files.ids() == set()


def test_only_the_announced_files_are_staged(files: UploadFiles, tmp_path: Path) -> None:
    """Whole ones of the right content; they stay for another try until they are discarded, and in staging after it."""
    blobs = BlobStore(tmp_path)
    append(files, CONFIG, b"{}")
    with blobs.stage() as staging, pytest.raises(UploadIncomplete, match="0 of 7 bytes"):
        files.stage(UPLOAD, (CONFIG, WEIGHTS), staging)
    append(files, WEIGHTS, b"wEIGHTS")
    with blobs.stage() as staging, pytest.raises(ChecksumMismatch):
        files.stage(UPLOAD, (CONFIG, WEIGHTS), staging)
    assert (files.offset(UPLOAD, CONFIG_FILE), files.offset(UPLOAD, WEIGHTS_FILE)) == (2, 0)
    append(files, WEIGHTS, b"weights")
    for _ in range(2):
        with blobs.stage() as staging:
            files.stage(UPLOAD, (CONFIG, WEIGHTS), staging)
            last = staging.path(WEIGHTS_FILE).read_bytes(), staging.path(CONFIG_FILE).read_bytes()
    assert last == (b"weights", b"{}")
    assert files.offset(UPLOAD, WEIGHTS_FILE) == 7

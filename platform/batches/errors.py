"""What can go wrong with files and batches, as callers tell it apart. Every message is fit for the user."""

from __future__ import annotations


class BatchError(Exception):
    """Base of all of them."""


class NoSuchFile(BatchError):
    """No such file for this caller. Absent, foreign and expired read the same. `field`: that named it."""

    def __init__(self, file_id: str, field: str = "file_id") -> None:
        super().__init__(f"No such File object: {ascii(file_id)[1:60]}. GET /v1/files lists yours.")
        self.field = field


class FileInUse(BatchError):
    """A batch that has not ended reads the file."""


class FileLimitReached(BatchError):
    """The tenant has as many files, or as many bytes in them, as it may."""


class NoSuchBatch(BatchError):
    """No such batch for this caller. Absent and foreign read the same."""


class BatchEnded(BatchError):
    """The batch cannot be cancelled any more."""


class TooManyBatches(BatchError):
    """The tenant has as many batches open as it may."""

"""What can go wrong with adapters, as callers tell it apart. Every message is fit for the user who caused it.

Knows no HTTP status and no storage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class AdapterError(Exception):
    """Base of all of them."""


class InvalidName(AdapterError):
    """A name breaks the rules of `names`; the message gives the field and the rule."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class AdapterNotFound(AdapterError):
    """No such adapter, version or alias for this caller. Absent and foreign read the same."""


class VersionNotFound(AdapterNotFound):
    """The adapter is there, the version or alias of it that was named is not."""


class StorageLimitReached(AdapterError):
    """The tenant keeps as many adapters, versions or bytes as it may."""


class AdapterExists(AdapterError):
    """The tenant has an adapter of that name already."""


class VersionInUse(AdapterError):
    """The version cannot be deleted while an alias points at it."""


class VersionNotReady(AdapterError):
    """The version cannot serve: its validation has not ended, or it was rejected or quarantined."""


class AliasMoved(AdapterError):
    """The alias is not at the revision that the caller has seen: somebody else moved it."""


class ProfileChanged(AdapterError):
    """The profile is not at the revision that the caller has seen: somebody else changed it."""


class NothingToRestore(AdapterError):
    """There is no revision of the alias to go back to, or a version of it is gone."""


class BaseModelUnknown(AdapterError):
    """No base model of that name is registered."""


class BaseModelConflict(AdapterError):
    """A base model of that name is registered with another shape."""


class AdapterInvalid(AdapterError):
    """The upload failed its checks. `report` has one entry per failed check: code, message, and where it was seen."""

    def __init__(self, report: Sequence[dict[str, Any]]) -> None:
        super().__init__("; ".join(str(check.get("message", check)) for check in report))
        self.report = list(report)


class ImportNotFound(AdapterError):
    """No such import for this caller. Absent and foreign read the same."""


class ImportEnded(AdapterError):
    """The import cannot be cancelled: it has ended, or its version is published."""


class TooManyImports(AdapterError):
    """The tenant has as many imports open as it may have."""


class LeaseLost(AdapterError):
    """An import is not its server's any more: it was cancelled, or another server has taken it up."""


class UploadNotFound(AdapterError):
    """No such upload, or no such file of it, for this caller. It may have expired."""


class UploadLimitReached(AdapterError):
    """The tenant has as many uploads open, or as many bytes announced in them, as it may."""


class UploadBusy(AdapterError):
    """Another request is writing to the upload."""


class UploadIncomplete(AdapterError):
    """Bytes of the upload are still to come."""


class ChecksumMismatch(AdapterError):
    """A file of the upload is not the one that was announced."""


class AdapterUnavailable(AdapterError):
    """A registered version cannot be used now: its bytes are missing, damaged, or do not fit in memory."""

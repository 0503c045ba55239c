"""The bodies of uploads that come in pieces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta, Struct

from loraplex.adapters.registry import VersionInfo
from loraplex.adapters.upload_files import AnnouncedFile
from loraplex.adapters.upload_sessions import UploadInfo
from loraplex.platform.manage.adapter_schemas import Name
from loraplex.platform.manage.version_schemas import VersionView

MAX_FILES = 16


class AnnounceFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`sha256`: of the whole file, in hexadecimal."""

    name: Annotated[str, Meta(min_length=1, max_length=100)]
    size_bytes: Annotated[int, Meta(ge=1, le=1 << 50)]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$", max_length=64)]


class OpenUpload(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`files`: every file of the adapter, once."""

    adapter: Name
    files: Annotated[list[AnnounceFile], Meta(min_length=1, max_length=MAX_FILES)]

    def announced(self) -> tuple[AnnouncedFile, ...]:
        return tuple(AnnouncedFile(file.name, file.size_bytes, file.sha256) for file in self.files)


class UploadFileView(Struct, frozen=True, kw_only=True):
    """`offset`: the bytes that are there; the rest is to be sent from here on."""

    name: str
    size_bytes: int
    sha256: str
    offset: int


class UploadView(Struct, frozen=True, kw_only=True):
    """`state` is published once there is a `version`. `id` is null where that was there before: send nothing."""

    id: str | None
    adapter: str
    state: Literal["uploading", "published"]
    files: list[UploadFileView]
    expires_at: datetime | None
    version: VersionView | None

    @classmethod
    def under_way(cls, upload: UploadInfo, offsets: Mapping[str, int]) -> UploadView:
        """offsets: by file name."""
        return cls(
            id=upload.id,
            adapter=upload.adapter,
            state="uploading",
            files=[UploadFileView(**asdict(file), offset=offsets[file.name]) for file in upload.files],
            expires_at=upload.expires_at,
            version=None,
        )

    @classmethod
    def over(
        cls, files: tuple[AnnouncedFile, ...], version: VersionInfo, upload: UploadInfo | None = None
    ) -> UploadView:
        """upload: if it took one to get these files here."""
        return cls(
            id=upload.id if upload else None,
            adapter=version.name,
            state="published",
            files=[UploadFileView(**asdict(file), offset=file.size_bytes) for file in files],
            expires_at=upload.expires_at if upload else None,
            version=VersionView.of(version),
        )


class UploadList(Struct, frozen=True):
    data: list[UploadView]

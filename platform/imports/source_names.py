"""Where an import comes from, as people write it, and whether the operator lets a tenant import from there.

Knows forms only: neither whether there is such a place nor how to reach it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from loraplex.platform.errors import ApiError

MAX_SOURCE_CHARS = 500

_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPO = re.compile(r"hf://([a-z0-9][\w.-]{0,95}/[a-z0-9][\w.-]{0,95})(?:@([a-z0-9][\w./-]{0,199}))?", re.ASCII | re.I)
_FOLDER = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])((?:/(?!\.{1,2}(?:/|$))[\w.=+@-]+)*)/?", re.ASCII)


@dataclass(frozen=True, slots=True)
class HubRepo:
    """`repo` is org/name. `revision`: a commit, or the name of a branch or a tag, which may move."""

    repo: str
    revision: str

    def __str__(self) -> str:
        return f"{self.place}@{self.revision}"

    @property
    def place(self) -> str:
        return f"hf://{self.repo}"

    @property
    def is_pinned(self) -> bool:
        return _COMMIT.fullmatch(self.revision) is not None


@dataclass(frozen=True, slots=True)
class BucketFolder:
    """`prefix`: the keys of the files up to the slash before their names; empty: they are at the top."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return self.place

    @property
    def place(self) -> str:
        return f"s3://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


SourceName = HubRepo | BucketFolder


def parse_source(text: str) -> SourceName:
    """Raises ApiError 400. Without a revision the branch `main` is meant."""
    if len(text) <= MAX_SOURCE_CHARS:
        if match := _REPO.fullmatch(text):
            return HubRepo(match[1], match[2] or "main")
        if match := _FOLDER.fullmatch(text):
            return BucketFolder(match[1], match[2].removeprefix("/"))
    forms = "hf://org/repo@COMMIT, hf://org/repo@BRANCH or s3://bucket/prefix"
    raise ApiError(400, "invalid_value", f"{ascii(text)[:100]} is no source. Give {forms}.", param="source")


def require_allowed(source: SourceName, allowed: Iterable[str], tenant: str) -> None:
    """Raises ApiError 403 unless the source lies in a place of the setting `import_sources`."""
    for entry in allowed:
        # Whole parts of a path are compared: hf://acme/ is no prefix of hf://acme-fakes/, and hf:/ is one of all hf://.
        folder = entry.replace("{tenant}", tenant).removesuffix("*").rstrip("/") + "/"
        if f"{source.place}/".startswith(folder):
            return
    if not allowed:
        message = (
            "This server imports from nowhere. Its operator allows it with the setting import_sources, "
            "for instance LORAPLEX_IMPORT_SOURCES=hf://acme/"
        )
        raise ApiError(403, "imports_disabled", message, param="source")
    message = (
        f"You may not import from {source.place}. The operator allows it by adding it to the setting import_sources."
    )
    raise ApiError(403, "source_not_allowed", message, param="source")

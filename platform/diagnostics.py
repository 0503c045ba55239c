"""What one asks when something is wrong: settings, versions of libraries, the device, the database, disk use.

For the page of settings and for the bundle that is sent along with a question. Never a secret: what is one is masked
where it is read, and what looks like one is taken out of every text.
"""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
from anyio import to_thread
from pydantic import SecretStr
from sqlalchemy import text

from loraplex import __version__
from loraplex.adapters.blobs import BlobStore
from loraplex.adapters.database import Database, normalise_url
from loraplex.engine.client import EngineClient
from loraplex.platform.migrate import head_revision
from loraplex.platform.redaction import REDACTED, without_secrets
from loraplex.platform.settings import Settings

LIBRARIES = (
    "litestar", "uvicorn", "sqlalchemy", "alembic", "aiosqlite", "psycopg", "msgspec", "pydantic-settings", "jinja2",
    "structlog", "tokenizers", "llguidance", "torch", "triton", "transformers", "safetensors", "obstore",
)  # fmt: skip
HIDDEN = "••••••••"


class SettingView(msgspec.Struct, frozen=True):
    """`is_set`: by an option or a variable; else it is the default."""

    name: str
    value: str
    is_set: bool
    description: str


class DatabaseView(msgspec.Struct, frozen=True):
    """`revision`: of its tables; `head`: the one that this release needs."""

    url: str
    revision: str
    head: str


class DiskView(msgspec.Struct, frozen=True):
    """Of the disk that the data folder is on. Adapters and files of all tenants, in bytes."""

    folder: str
    adapters: int
    adapter_bytes: int
    file_bytes: int
    free_bytes: int
    total_bytes: int


class Report(msgspec.Struct, frozen=True):
    """`status`: the engine's counters; null: it does not run. `libraries`: null for one that is not installed."""

    version: str
    python: str
    model: str
    model_digest: str
    architecture: str
    device: str
    dtype: str
    kernels: str
    kv_cache_bytes: int
    adapter_device_bytes: int
    max_model_len: int
    status: dict[str, Any] | None
    database: DatabaseView
    disk: DiskView
    libraries: dict[str, str | None]
    settings: list[SettingView]


class Diagnostics:
    """Of this server."""

    def __init__(self, database: Database, settings: Settings, engine: EngineClient, blobs: BlobStore) -> None:
        self._database = database
        self._settings = settings
        self._engine = engine
        self._blobs = blobs

    async def report(self) -> Report:
        """As things are now. Raises OSError and the database's errors."""
        ready, status = self._engine.ready, self._engine.status
        return Report(
            version=__version__,
            python=sys.version.split()[0],
            model=self._settings.base_model_name,
            model_digest=ready.model_digest,
            architecture=ready.architecture,
            device=ready.device,
            dtype=ready.dtype,
            kernels=ready.kernels,
            kv_cache_bytes=ready.kv_cache_bytes,
            adapter_device_bytes=ready.adapter_device_bytes,
            max_model_len=ready.max_model_len,
            status=None if status is None else msgspec.to_builtins(status),
            database=await self._database_view(),
            disk=await to_thread.run_sync(self._disk),
            libraries={name: _version(name) for name in LIBRARIES},
            settings=[self._told(name) for name in Settings.model_fields],
        )

    async def _database_view(self) -> DatabaseView:
        url = normalise_url(self._settings.resolved_database_url)
        masked = url.set(query={name: HIDDEN if "pass" in name else value for name, value in url.query.items()})
        async with self._database.read() as session:
            revision = await session.scalar(text("SELECT version_num FROM alembic_version"))
        return DatabaseView(masked.render_as_string(hide_password=True), str(revision), head_revision())

    def _disk(self) -> DiskView:
        use, folder = self._blobs.disk_use(), self._settings.data_dir
        total, _, free = shutil.disk_usage(folder)
        return DiskView(str(folder), use.adapters, use.size_bytes, _bytes_below(self._settings.files_dir), free, total)

    def _told(self, name: str) -> SettingView:
        value, field = getattr(self._settings, name), Settings.model_fields[name]
        is_set = name in self._settings.model_fields_set
        return SettingView(
            name, without_secrets(_text(value)).replace(REDACTED, HIDDEN), is_set, field.description or ""
        )


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        return HIDDEN
    if isinstance(value, msgspec.Struct):
        limits = msgspec.to_builtins(value)
        return ", ".join(f"{name}={limit}" for name, limit in limits.items() if limit is not None)
    if isinstance(value, tuple | list):
        return ", ".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

"""Static files: those that came with the release, under URLs that change with them, and no others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from api_running import Api, run_api
from database_fixtures import on_sqlite

from loraplex.adapters.database import Database
from loraplex.platform.web.assets import STATIC_DIR, Assets, assets

VENDOR = STATIC_DIR / "vendor"


@pytest.fixture
async def api(database: Database, tmp_path: Path, tiny_model_dir: Path) -> AsyncIterator[Api]:
    async with run_api(database, tmp_path, tiny_model_dir) as running:
        yield running


@pytest.mark.anyio
@on_sqlite
async def test_files_are_kept_for_ever_under_their_own_hash(api: Api) -> None:
    """Without signing in; another hash, or a way out of the folder, leads nowhere."""
    for name, kind in (("app.css", "text/css"), ("vendor/htmx.min.js", "text/javascript"), ("icons.svg", "image/svg")):
        answer = await api.client.get(assets().url(name))
        assert (answer.status_code, answer.content) == (200, (STATIC_DIR / name).read_bytes())
        assert kind in answer.headers["content-type"]
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    digest = assets().digest
    for path in (
        "0" * 16 + "/app.css",
        f"{digest}/none.css",
        f"{digest}/..%2fassets.py",
        f"{digest}/vendor/manifest.json",
    ):
        assert (await api.client.get(f"/admin/assets/{path}")).status_code == 404, path


def test_the_hash_changes_with_any_file(tmp_path: Path) -> None:
    """With its content, and with its name."""
    (tmp_path / "a.css").write_text("a")
    first = Assets.read(tmp_path).digest
    (tmp_path / "a.css").write_text("b")
    second = Assets.read(tmp_path).digest
    (tmp_path / "a.css").rename(tmp_path / "b.css")
    assert len({first, second, Assets.read(tmp_path).digest}) == 3


def test_what_others_wrote_is_what_the_manifest_says() -> None:
    """Each file with its version, licence and hash; no file that is not in it."""
    manifest = json.loads((VENDOR / "manifest.json").read_text())
    for name, facts in manifest.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == facts["sha256"], name
        assert facts["version"]
        assert facts["licence"]
        assert (VENDOR / facts["licence_file"]).is_file()
    licences = {facts["licence_file"] for facts in manifest.values()}
    assert {path.name for path in VENDOR.iterdir()} == {"manifest.json", *manifest, *licences}

"""What was begun and not ended goes, in its time; what somebody may come back for stays."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from api_running import Api, bad_files, run_api, stored_digests
from sqlalchemy import select, update

from loraplex.adapters.blobs import ADAPTER_FILES
from loraplex.adapters.database import Database
from loraplex.adapters.leases import JANITOR
from loraplex.adapters.schema import Upload, now
from loraplex.platform.janitor import clean_up, clean_up_in_turn
from loraplex.platform.schema import IdempotencyKey

pytestmark = pytest.mark.anyio


async def open_upload(api: Api, key: str) -> str:
    headers = api.auth("acme") | {"idempotency-key": key}
    response = await api.client.post("/api/v1/uploads", json={"adapter": "bot", "files": bad_files()}, headers=headers)
    upload_id = response.json()["id"]
    headers |= {"content-type": "application/offset+octet-stream", "upload-offset": "0"}
    path = f"/api/v1/uploads/{upload_id}/files/{ADAPTER_FILES[0]}"
    assert (await api.client.patch(path, content=b"half", headers=headers)).status_code == 204
    return str(upload_id)


async def test_only_what_nobody_comes_back_for_goes(
    database: Database, tmp_path: Path, tiny_model_dir: Path, make_adapter: Callable[..., Path]
) -> None:
    """Expired uploads and names with all that belongs to them, files without rows, blobs that have been without a
    version for long; twice is as good as once."""
    async with run_api(database, tmp_path, tiny_model_dir, orphan_blob_seconds=3600) as api:
        services = api.services
        await api.client.post("/api/v1/adapters", json={"name": "bot"}, headers=api.auth("acme"))
        folders = [make_adapter(tmp_path / str(rank), rank=rank, modules=["q_proj"]) for rank in (1, 2, 3)]
        live, orphan, young = [(await api.upload("acme", "bot", folder)).json()["digest"] for folder in folders]
        for number in (2, 3):
            await api.client.delete(f"/api/v1/adapters/bot/versions/{number}", headers=api.auth("acme"))
        for digest in (live, orphan):
            aged = time.time() - 3700
            os.utime(services.blobs.open(digest).weights_path.parent, (aged, aged))
        kept, expired = [await open_upload(api, key) for key in ("kept", "expired")]
        async with database.transaction() as session:
            await session.execute(update(Upload).where(Upload.id == expired).values(expires_at=now()))
            named = update(IdempotencyKey).where(IdempotencyKey.name == "expired")
            await session.execute(named.values(expires_at=now()))
        (services.settings.adapters_dir / "uploads" / "of-no-row").mkdir()

        for _ in range(2):
            await clean_up(services)

        assert services.upload_files.ids() == {kept}
        assert stored_digests(services) == {live, young}
        uploads = (await api.client.get("/api/v1/uploads", headers=api.auth("acme"))).json()["data"]
        assert [(upload["id"], upload["files"][0]["offset"]) for upload in uploads] == [(kept, 4)]
        async with database.read() as session:
            assert list(await session.scalars(select(IdempotencyKey.name))) == ["kept"]


async def test_while_another_server_cleans_up_this_one_does_not(
    database: Database, tmp_path: Path, tiny_model_dir: Path
) -> None:
    """It says so, and does once the other one is through or has died."""
    async with run_api(database, tmp_path, tiny_model_dir) as api:
        services = api.services
        (services.settings.adapters_dir / "uploads" / "of-no-row").mkdir()
        async with services.leases.hold(JANITOR, timedelta(minutes=1)):
            assert not await clean_up_in_turn(services)
            assert services.upload_files.ids() == {"of-no-row"}
        async with services.leases.hold(JANITOR, timedelta(seconds=-1)):
            assert await clean_up_in_turn(services)
        assert services.upload_files.ids() == set()
        assert await clean_up_in_turn(services)

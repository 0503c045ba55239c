"""Imports from buckets: a real S3 server, which checks signatures and policies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from api_running import run_api
from bucket_server import Bucket
from database_fixtures import on_sqlite

from loraplex.adapters.database import Database
from loraplex.platform.imports import worker

pytestmark = [pytest.mark.anyio, on_sqlite]


@pytest.fixture
def reader(bucket: Bucket) -> dict[str, Any]:
    """Settings of a server that may read the bucket `models`."""
    places = {"import_sources": "s3://models/ s3://others/", "max_adapter_bytes": "256KiB"}
    return places | {"s3_endpoint": bucket.url} | bucket.credentials


async def imported(
    database: Database, tmp_path: Path, model: Path, settings: dict[str, Any], *sources: str
) -> list[dict[str, Any]]:
    """Jobs for these sources, one after the other, each after its first attempt."""
    async with run_api(database, tmp_path, model, **settings) as api:
        auth = api.auth("acme")
        await api.client.post("/api/v1/adapters", json={"name": "bot"}, headers=auth)
        jobs = []
        for source in sources:
            body = {"adapter": "bot", "source": source}
            asked = await api.client.post("/api/v1/imports", json=body, headers=auth)
            assert await worker.run_next(api.services)
            jobs.append((await api.client.get(f"/api/v1/imports/{asked.json()['id']}", headers=auth)).json())
        assert list(api.services.settings.adapters_dir.rglob("staging/*")) == []
        return jobs


async def test_a_folder_of_a_bucket_becomes_a_version(database, tmp_path, tiny_model_dir, reader, bucket):
    """Read by a key that may not list, for which what is missing is forbidden; the same folder is the same version."""
    sources = ("s3://models/bot/v1", "s3://models/bot/v1/")
    first, again = await imported(database, tmp_path, tiny_model_dir, reader, *sources)
    assert (first["state"], first["version"], first["version_state"], first["error"]) == ("succeeded", 1, "ready", None)
    size = sum((bucket.folder / name).stat().st_size for name in ("adapter_config.json", "adapter_model.safetensors"))
    assert (first["bytes_done"], first["bytes_total"]) == (size, size)
    assert (again["state"], again["version"], again["source"]) == ("succeeded", 1, "s3://models/bot/v1")


async def test_what_a_bucket_refuses_is_told_without_its_words(database, tmp_path, tiny_model_dir, reader):
    """Missing, forbidden and too large are final; each says what to do, and none quotes the service."""
    jobs = await imported(
        database, tmp_path, tiny_model_dir, reader,
        "s3://models/nothing", "s3://models/empty", "s3://others/bot", "s3://models/large",
    )  # fmt: skip
    assert [(job["state"], job["error"]["code"]) for job in jobs] == [
        ("failed", "source_not_found"),
        ("failed", "source_not_found"),
        ("failed", "source_forbidden"),
        ("failed", "source_too_large"),
    ]
    assert "adapter_model.safetensors" in jobs[1]["error"]["message"]
    assert jobs[3]["bytes_done"] < 64 << 10


async def test_wrong_credentials_are_final(database, tmp_path, tiny_model_dir, reader):
    """And neither the key nor the service's answer is told."""
    wrong = reader | {"s3_secret_access_key": "wrong" * 8}
    [refused] = await imported(database, tmp_path, tiny_model_dir, wrong, "s3://models/bot/v1")
    assert (refused["state"], refused["error"]["code"]) == ("failed", "source_forbidden")
    assert reader["s3_access_key_id"] not in json.dumps(refused)
    assert "Signature" not in json.dumps(refused)


async def test_a_service_that_is_away_is_asked_again_later(database, tmp_path, tiny_model_dir, reader):
    """Its job waits in the queue."""
    away = reader | {"s3_endpoint": "http://127.0.0.1:1"}
    [waiting] = await imported(database, tmp_path, tiny_model_dir, away, "s3://models/bot/v1")
    assert (waiting["state"], waiting["error"]["code"]) == ("queued", "source_unavailable")
    assert "127.0.0.1" not in json.dumps(waiting)

"""The page of jobs: what goes on beside requests is seen, ended and begun again there, by those whose it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from api_running import Api, bad_files, run_api
from batch_files import COMPLETIONS, jsonl, request
from browsing import signed_in, text_of
from database_fixtures import on_sqlite

from loraplex.adapters.database import Database
from loraplex.platform.batches import worker
from loraplex.platform.batches.room import Room
from loraplex.platform.janitor import clean_up_in_turn

pytestmark = pytest.mark.anyio

SOURCE = "hf://models/bot"
ROOM = Room(4, 8, lambda: 0)


@pytest.fixture
async def api(database: Database, tmp_path: Path, tiny_model_dir: Path) -> AsyncIterator[Api]:
    options = {"import_sources": "hf://models/", "hf_endpoint": "http://127.0.0.1:9", "max_imports_per_tenant": 1}
    async with run_api(database, tmp_path, tiny_model_dir, **options) as running:
        await running.client.post("/api/v1/adapters", json={"name": "bot"}, headers=running.auth("acme"))
        yield running


async def begin_batch(api: Api) -> str:
    file = await api.client.post(
        "/v1/files",
        files={"file": jsonl([request("one"), request("two")])},
        data={"purpose": "batch"},
        headers=api.auth("acme"),
    )
    body = {"input_file_id": file.json()["id"], "endpoint": COMPLETIONS, "completion_window": "24h"}
    return (await api.client.post("/v1/batches", json=body, headers=api.auth("acme"))).json()["id"]


@on_sqlite
async def test_an_import_is_cancelled_and_begun_again(api: Api) -> None:
    """As a new job of the same source; more than may be open are refused on the page."""
    body = {"adapter": "bot", "source": SOURCE}
    job = (await api.client.post("/api/v1/imports", json=body, headers=api.auth("acme"))).json()
    wile, path = await signed_in(api, "wile", "acme"), f"/admin/jobs/acme/imports/{job['id']}"
    page = await wile.get("/admin/jobs")
    assert (SOURCE in page.text, f"{path}/cancel" in page.text, "waiting" in text_of(page)) == (True, True, True)
    cancelled = await wile.submit("/admin/jobs", f"{path}/cancel")
    assert "The import is cancelled" in text_of(cancelled)
    assert f"{path}/again" in cancelled.text
    again = await wile.submit("/admin/jobs", f"{path}/again")
    assert "begins again" in text_of(again)
    states = [job.state for job in await api.services.imports.newest(None, 10)]
    assert states == ["queued", "cancelled"]
    refused = await wile.submit("/admin/jobs", f"{path}/again")
    assert (refused.status_code, 'role="alert"' in refused.text) == (429, True)


@on_sqlite
async def test_a_batch_shows_how_far_it_is_and_what_came_of_it(api: Api) -> None:
    """Cancelled while it runs; of one that has ended the answers are there to be loaded, once."""
    wile = await signed_in(api, "wile", "acme")
    first = await begin_batch(api)
    cancelled = await wile.submit("/admin/jobs", f"/admin/jobs/acme/batches/{first}/cancel")
    assert "cancelling" in text_of(cancelled)
    await worker.run_next(api.services, api.app, ROOM)
    second = await begin_batch(api)
    await worker.run_next(api.services, api.app, ROOM)
    page = await wile.get("/admin/jobs")
    assert "2 of 2" in text_of(page)
    refused = await wile.submit("/admin/jobs", f"/admin/jobs/acme/batches/{second}/cancel")
    assert (refused.status_code, "cannot be cancelled" in text_of(refused)) == (409, True)
    batch = await api.services.batches.get(await api.tenant_id("acme"), second)
    answers = f"/admin/script/acme/files/{batch.output_file_id}/content"
    assert f'href="{answers}"' in page.text
    assert '"custom_id":"one"' in (await wile.get(answers)).text.replace(" ", "")


@on_sqlite
async def test_an_upload_in_pieces_is_dropped(api: Api) -> None:
    """With what had come of it."""
    body = {"adapter": "bot", "files": bad_files(2048)}
    upload = (await api.client.post("/api/v1/uploads", json=body, headers=api.auth("acme"))).json()["id"]
    headers = api.auth("acme") | {"content-type": "application/offset+octet-stream", "upload-offset": "0"}
    piece = f"/api/v1/uploads/{upload}/files/adapter_config.json"
    assert (await api.client.patch(piece, content=b"{" * 1024, headers=headers)).status_code == 204
    ada = await signed_in(api, "ada")
    assert "1.0 KiB of 4.0 KiB" in text_of(await ada.get("/admin/jobs"))
    dropped = await ada.submit("/admin/jobs", f"/admin/jobs/acme/uploads/{upload}/drop")
    assert "The upload is dropped" in text_of(dropped)
    assert api.services.upload_files.ids() == set()


async def test_operators_see_all_tenants_jobs_and_the_cleaning(api: Api, folder: Path) -> None:
    """Or one tenant's; a version that was taken out with its reason. A tenant's people see nothing of it."""
    empty = text_of(await (ada := await signed_in(api, "ada")).get("/admin/jobs"))
    assert "Nothing to wait for" in empty
    assert "Nothing was cleaned up yet" in empty
    assert await clean_up_in_turn(api.services)
    digest = (await api.upload("acme", "bot", folder)).json()["digest"]
    await api.services.quarantine.begin(digest, "it talks too much")
    page = text_of(await ada.get("/admin/jobs"))
    assert "Cleaned up just now" in page
    assert "acme/ bot v1" in page
    assert "it talks too much" in page
    assert "bot v1" in text_of(await ada.get("/admin/jobs?tenant=acme"))
    assert "bot v1" not in text_of(await ada.get("/admin/jobs?tenant=globex"))
    assert (await ada.get("/admin/jobs?tenant=nobody")).status_code == 404
    eve = text_of(await (await signed_in(api, "eve", "globex")).get("/admin/jobs?tenant=acme"))
    assert "Nothing to wait for" in eve
    assert "leaned up" not in eve
    part = await ada.get("/admin/jobs", headers={"hx-request": "true"})
    assert ("<h1>" in part.text, "it talks too much" in part.text) == (False, True)

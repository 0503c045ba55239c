"""Whatever step of an upload, a move, a deletion or a collection a server dies at: nothing half done is seen later,
nothing that was answered is lost, and doing it again ends as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from api_running import Api, run_api, stored_digests
from dying import BOT, STEPS, Death

from loraplex.adapters.database import Database
from loraplex.platform.janitor import clean_up

pytestmark = pytest.mark.anyio

ON_POSTGRES = ("pieces published", "alias written")
"""Where the database has a part in it; files are the same beside both."""

CASES = [("sqlite", step) for step in STEPS if not step.startswith("import ")]
CASES += [pytest.param("postgres", step, marks=pytest.mark.postgres) for step in ON_POSTGRES]


@pytest.mark.parametrize(("database_url", "step"), CASES, indirect=["database_url"])
async def test_a_server_that_died_at_any_step_goes_on_after_it(
    step: str,
    database_url: str,
    database: Database,
    tmp_path: Path,
    tiny_model_dir: Path,
    make_adapter: Callable[..., Path],
    die: Callable[[Death], None],
) -> None:
    """Version 1 serves as before; version 2 comes to be, is pointed at, or goes, once, when it is asked for again."""
    first, second = [make_adapter(tmp_path / f"rank-{rank}", rank=rank) for rank in (1, 2)]
    die(death := Death(step, database_url, str(tmp_path), str(tiny_model_dir), str(first), str(second)))
    answers = death.answers()
    async with run_api(database, tmp_path, tiny_model_dir, keys=answers["keys"]) as api:
        await check_sound(api, answers)
        await AGAIN[step.split()[0]](api, second, answers, step)
        await check_sound(api, answers)


async def check_sound(api: Api, answers: dict[str, Any]) -> None:
    """Before and after a sweep that spares nothing."""
    for _ in range(2):
        versions = await get(api, f"{BOT}/versions")
        live = {version["digest"] for version in versions["data"]}
        assert live <= stored_digests(api.services)
        first = await get(api, f"{BOT}/versions/1")
        assert first == answers["version"]
        await clean_up(api.services)
        api.services.blobs.sweep(await api.services.registry.live_digests(), grace_seconds=-60)
    root = api.services.settings.adapters_dir
    assert stored_digests(api.services) == live
    assert list((root / "staging").iterdir()) == []
    assert api.services.upload_files.ids() <= await api.services.uploads.open_ids()


async def get(api: Api, path: str) -> Any:
    response = await api.client.get(path, headers=api.auth("acme"))
    assert response.status_code == 200, response.text
    return response.json()


async def upload_again(api: Api, second: Path, answers: dict[str, Any], step: str) -> None:
    uploaded = await api.upload("acme", "bot", second)
    assert (uploaded.status_code, uploaded.json()["version"]) == (201, 2)


async def resume(api: Api, second: Path, answers: dict[str, Any], step: str) -> None:
    """With the upload that the client knows of; from the offset that is there."""
    upload = answers.get("upload")
    if upload is None:
        upload = (await api.open_upload("acme", "bot", second)).json()["id"]
    offsets = [file["offset"] for file in (await get(api, f"/api/v1/uploads/{upload}"))["files"]]
    assert any(offsets) == (step != "pieces opened")
    for _ in range(2):
        completed = await api.finish_upload("acme", upload, second)
        assert (completed.status_code, completed.json()["version"]) == (201, 2)


async def move_again(api: Api, second: Path, answers: dict[str, Any], step: str) -> None:
    prod = (await get(api, BOT))["aliases"]["prod"]
    moves = (await get(api, f"{BOT}/aliases/prod/history"))["data"]
    assert prod["split"] == moves[0]["split"] == ({"1": 1} if step == "alias written" else {"2": 1})
    assert prod["revision"] == len(moves)
    moved = await api.client.put(f"{BOT}/aliases/prod", json={"version": 2}, headers=api.auth("acme"))
    assert moved.json()["split"] == {"2": 1}


async def delete_again(api: Api, second: Path, answers: dict[str, Any], step: str) -> None:
    deleted = await api.client.delete(f"{BOT}/versions/2", headers=api.auth("acme"))
    assert deleted.status_code == (204 if step == "deletion written" else 404)
    assert [version["version"] for version in (await get(api, f"{BOT}/versions"))["data"]] == [1]


AGAIN = {
    "upload": upload_again,
    "pieces": resume,
    "alias": move_again,
    "deletion": delete_again,
    "blob": delete_again,
}

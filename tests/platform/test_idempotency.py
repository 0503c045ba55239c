"""A request that is sent twice under one name is done once, and answered alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from api_running import Api, bad_files, code, run_api
from clock import Clock
from sqlalchemy import update

from loraplex.adapters.database import Database
from loraplex.adapters.schema import now
from loraplex.platform import idempotency_keys
from loraplex.platform.idempotency_keys import IN_FLIGHT, KEPT, IdempotencyKeyInUse, KeptAnswer, NamedRequest
from loraplex.platform.schema import IdempotencyKey

pytestmark = pytest.mark.anyio

ADAPTERS = "/api/v1/adapters"


@pytest.fixture
async def api(database: Database, tmp_path: Path, tiny_model_dir: Path) -> AsyncIterator[Api]:
    async with run_api(database, tmp_path, tiny_model_dir) as running:
        yield running


async def create(api: Api, name: str, key: str | None, who: str = "acme") -> Any:
    headers = api.auth(who) | ({} if key is None else {"idempotency-key": key})
    return await api.client.post(ADAPTERS, json={"name": name}, headers=headers)


async def test_the_same_request_gets_the_first_answer(api: Api, database: Database) -> None:
    """With quotes or without, even when what it made is gone; another body is 422; other keys know nothing of it."""
    first = await create(api, "bot", "k-1")
    await api.client.delete(f"{ADAPTERS}/bot", headers=api.auth("acme"))

    for again in (await create(api, "bot", "k-1"), await create(api, "bot", '"k-1"')):
        assert (again.status_code, again.content) == (201, first.content)
        assert again.headers["idempotency-replayed"] == "true"
        assert again.headers["content-type"] == first.headers["content-type"]
    assert (await api.client.get(f"{ADAPTERS}/bot", headers=api.auth("acme"))).status_code == 404
    assert code(await create(api, "other", "k-1")) == (422, "idempotency_key_reused")
    for who in ("acme-adapters", "globex"):
        assert "idempotency-replayed" not in (await create(api, "bot", "k-1", who)).headers

    async with database.transaction() as session:
        await session.execute(update(IdempotencyKey).values(expires_at=now()))
    assert code(await create(api, "bot", "k-1")) == (409, "adapter_exists")


async def test_what_failed_made_nothing_and_may_be_sent_again(api: Api) -> None:
    """After an error the name is free, for a mended request too."""
    await create(api, "bot", None)
    for _ in range(2):
        assert code(await create(api, "bot", "k")) == (409, "adapter_exists")
    assert code(await create(api, "B O T", "k")) == (400, "invalid_value")
    assert (await create(api, "bot-2", "k")).status_code == 201


async def test_a_name_is_short_and_printable(api: Api) -> None:
    """Anything else is 400, and nothing is made."""
    for key in ("", "x" * 65, '"open', "a b", '""', 'a"b', "a\\b"):
        refused = await create(api, "bot", key)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "Idempotency-Key"), key
    assert (await create(api, "bot", "x" * 64)).status_code == 201


async def test_requests_at_the_same_time_are_done_once(api: Api) -> None:
    """One is at work, the others are 409 or get its answer; while one is at work, a second claim is refused."""
    answers = await asyncio.gather(*(create(api, "bot", "k") for _ in range(6)))
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert {code(answer) for answer in answers if answer.status_code == 409} <= {(409, "idempotency_key_in_use")}
    assert len({answer.content for answer in answers if answer.status_code == 201}) == 1

    request = NamedRequest(api.keys["acme"].split("_")[1], "at-work", "0" * 64)
    keys = api.services.idempotency
    assert await keys.claim(request) is None
    with pytest.raises(IdempotencyKeyInUse):
        await keys.claim(request)


async def test_a_name_whose_request_died_at_work_is_free_again(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """After IN_FLIGHT, for any request; if it was only slow, its late end changes nothing of what the next one does.

    An answer is kept for longer."""
    clock, begun, keys = Clock(), now(), api.services.idempotency
    monkeypatch.setattr(idempotency_keys, "now", lambda: begun + timedelta(seconds=clock.now))
    api_key_id = api.keys["acme"].split("_")[1]
    slow, other = [NamedRequest(api_key_id, "k", digit * 64) for digit in "01"]
    late, answer = KeptAnswer(201, b"late"), KeptAnswer(201, b"first")
    assert await keys.claim(slow) is None
    clock.now = IN_FLIGHT.total_seconds() - 1
    with pytest.raises(IdempotencyKeyInUse):
        await keys.claim(slow)

    clock.now += 2
    assert await keys.claim(other) is None
    await keys.keep(slow, late)
    await keys.release(slow)
    with pytest.raises(IdempotencyKeyInUse):
        await keys.claim(other)
    await keys.keep(other, answer)
    await keys.keep(other, late)
    await keys.release(other)

    clock.now += KEPT.total_seconds() - 1
    assert await keys.claim(other) == answer
    clock.now += 2
    assert await keys.claim(slow) is None


async def test_the_names_of_a_key_are_bounded(api: Api, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is 429, and no retry helps soon; other keys have room, and this one when a name is forgotten."""
    monkeypatch.setattr(idempotency_keys, "MAX_KEPT", 2)
    created = [await create(api, f"bot-{n}", f"k-{n}") for n in range(3)]
    assert [answer.status_code for answer in created] == [201, 201, 429]
    assert created[2].headers["x-should-retry"] == "false"
    assert (await create(api, "bot-2", "k-2", "globex")).status_code == 201
    async with database.transaction() as session:
        await session.execute(update(IdempotencyKey).where(IdempotencyKey.name == "k-0").values(expires_at=now()))
    assert [(await create(api, f"bot-{n}", f"k-{n}")).status_code for n in (2, 3)] == [201, 429]


async def test_an_upload_is_the_same_by_its_files(api: Api, make_adapter: Callable[..., Path], tmp_path: Path) -> None:
    """The same files under the same name get the first answer, whatever the form looks like; other files are 422."""
    await create(api, "bot", None)
    url, headers = f"{ADAPTERS}/bot/versions", api.auth("acme") | {"idempotency-key": "v"}
    files = []
    for rank in (1, 2):
        folder = make_adapter(tmp_path / str(rank), rank=rank, modules=["q_proj"])
        config, weights = "adapter_config.json", "adapter_model.safetensors"
        files.append({"config": (folder / config).read_bytes(), "weights": (folder / weights).read_bytes()})

    first = await api.client.post(url, files=files[0], headers=headers)
    await api.client.delete(f"{url}/1", headers=api.auth("acme"))
    again = await api.client.post(url, files=dict(reversed(files[0].items())), headers=headers)
    other = await api.client.post(url, files=files[1], headers=headers)

    assert (first.status_code, again.status_code, again.content) == (201, 201, first.content)
    assert code(other) == (422, "idempotency_key_reused")


async def test_an_upload_in_pieces_is_opened_once(api: Api) -> None:
    """The second answer is the first one's upload."""
    await create(api, "bot", None)
    body = {"adapter": "bot", "files": bad_files()}
    headers = api.auth("acme") | {"idempotency-key": "u"}
    ids = {(await api.client.post("/api/v1/uploads", json=body, headers=headers)).json()["id"] for _ in range(2)}
    assert len(ids) == 1
    assert len((await api.client.get("/api/v1/uploads", headers=headers)).json()["data"]) == 1

"""Responses that are stored: gone on from, looked at and deleted, by their tenant alone and within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from api_running import Api, StandingEngine, code, ready_of, refusal, run_api
from database_fixtures import on_sqlite
from openai.types.responses import Response
from openai.types.responses.response_item_list import ResponseItemList
from sqlalchemy import delete, func, select, update

from loraplex.adapters.database import Database
from loraplex.adapters.schema import now
from loraplex.engine.generation import Generation
from loraplex.engine.messages import Generate
from loraplex.engine.models.config import ModelConfig, lora_shape
from loraplex.platform.janitor import clean_up
from loraplex.platform.openai.responses import store
from loraplex.platform.schema import StoredResponse, Tenant

pytestmark = pytest.mark.anyio


@pytest.fixture
async def api(database: Database, tmp_path: Path, tiny_model_dir: Path) -> AsyncIterator[Api]:
    async with run_api(database, tmp_path, tiny_model_dir) as running:
        yield running


async def send(api: Api, text: Any = "hello", who: str = "acme", **fields: Any) -> Any:
    body = {"model": "tiny", "input": text} | fields
    return await api.client.post("/v1/responses", json=body, headers=api.auth(who))


async def create(api: Api, text: Any = "hello", **fields: Any) -> dict[str, Any]:
    response = await send(api, text, **fields)
    assert response.status_code == 200, response.text
    return response.json()


async def get(api: Api, path: str, who: str = "acme") -> Any:
    return await api.client.get(f"/v1/responses/{path}", headers=api.auth(who))


async def remove(api: Api, response_id: str, who: str = "acme") -> Any:
    return await api.client.delete(f"/v1/responses/{response_id}", headers=api.auth(who))


async def stored_ids(database: Database) -> list[str]:
    async with database.read() as session:
        return list(await session.scalars(select(StoredResponse.id).order_by(StoredResponse.created_at)))


def asked(api: Api) -> list[int]:
    """The prompt that the engine was given last."""
    engine: Any = api.services.engine
    return engine.asked[-1].prompt


async def test_a_response_is_read_as_it_was_answered_until_it_is_deleted(api: Api) -> None:
    """By every key of the tenant; then it is as if it had never been."""
    created = await create(api, "\0 \u2028", metadata={"a": "b"}, instructions="Be.")

    found = await get(api, created["id"], "acme-chat")

    assert found.json() == created
    assert list(found.json()) == list(created)
    Response.model_validate_json(found.content, strict=True)
    gone = await remove(api, created["id"])
    assert (gone.status_code, gone.json()) == (200, {"id": created["id"], "object": "response", "deleted": True})
    for answer in (await get(api, created["id"]), await remove(api, created["id"])):
        assert code(answer) == (404, "response_not_found")


async def test_a_response_goes_on_from_another(api: Api) -> None:
    """All items from the first one on are the conversation; instructions are the last request's alone."""
    first = await create(api, "one", instructions="Obey.")
    second = await create(api, "two", previous_response_id=first["id"])
    await create(api, "three", previous_response_id=second["id"], store=False)
    gone_on = asked(api)

    said = [response["output"][0] for response in (first, second)]
    await create(api, [{"role": "user", "content": "one"}, said[0], {"role": "user", "content": "two"}, said[1],
                       {"role": "user", "content": "three"}], store=False)  # fmt: skip

    assert gone_on == asked(api)
    assert second["previous_response_id"] == first["id"]


@on_sqlite
async def test_what_a_response_was_made_from_comes_in_pages(api: Api) -> None:
    """Its own input after all that it goes on from, the last first or the first first."""
    first = await create(api, [{"role": "user", "content": f"{n}"} for n in range(3)])
    second = await create(api, "last", previous_response_id=first["id"])
    path = f"{second['id']}/input_items"

    async def texts(order: str) -> list[str]:
        found: list[str] = []
        after = ""
        while True:
            page = (await get(api, f"{path}?limit=2&order={order}{after}")).json()
            ResponseItemList.model_validate(page, strict=True)
            assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
            found += [item["content"][0]["text"] for item in page["data"]]
            if not page["has_more"]:
                return found
            after = f"&after={page['last_id']}"

    said = first["output"][0]["content"][0]["text"]
    assert await texts("asc") == ["0", "1", "2", said, "last"]
    assert await texts("desc") == ["last", said, "2", "1", "0"]
    assert refusal(await get(api, f"{path}?after=msg_x")) == (400, "invalid_value", "after")
    assert refusal(await get(api, f"{path}?limit=101")) == (400, "invalid_value", "limit")
    assert refusal(await get(api, f"{path}?include[]=message.output_text.logprobs"))[2] == "include"


@on_sqlite
async def test_items_are_referred_to_by_their_ids(api: Api) -> None:
    """Those of stored responses, sent and answered; they are the conversation as if they had been sent."""
    first = await create(api, "one")
    page = (await get(api, f"{first['id']}/input_items")).json()
    sent, said = page["data"][0], first["output"][0]
    references = [{"type": "item_reference", "id": sent["id"]}, {"id": said["id"]}]

    await create(api, [*references, {"role": "user", "content": "two"}])
    referred = asked(api)
    await create(api, "two", previous_response_id=first["id"])

    assert referred == asked(api)
    assert refusal(await send(api, [*references, {"id": said["id"]}])) == (400, "invalid_value", "input")
    unknown = [{"type": "item_reference", "id": f"msg_{'0' * 36}"}]
    assert refusal(await send(api, unknown)) == (404, "item_not_found", "input")
    assert refusal(await send(api, references, who="globex")) == (404, "item_not_found", "input")


@on_sqlite
async def test_items_that_come_again_are_listed_each_time(api: Api) -> None:
    """Under ids of their own, by which the pages of a list go on to its end."""
    first = await create(api, "one")
    said = first["output"][0]
    mine = [{"role": "user", "content": text, "id": "mine"} for text in ("two", "three")]
    second = await create(api, [{"id": said["id"]}, said, *mine])
    third = await create(api, [said], previous_response_id=second["id"])

    ids: list[str] = []
    while len(ids) < 10:
        after = f"&after={ids[-1]}" if ids else ""
        page = (await get(api, f"{third['id']}/input_items?limit=1&order=asc{after}")).json()
        ids += [item["id"] for item in page["data"]]
        if not page["has_more"]:
            break
    assert len(ids) == len(set(ids)) == 6
    assert (ids[0], ids[2], ids[4]) == (said["id"], "mine", second["output"][0]["id"])


async def test_foreign_responses_are_as_absent_ones(api: Api) -> None:
    """Whatever is asked of them, the answers are equal but for the id, and nothing happens to them."""
    created = await create(api)
    absent = f"resp_{'0' * 32}"

    async def answers(response_id: str) -> list[Any]:
        headers = api.auth("globex")
        responses = [
            await get(api, response_id, "globex"),
            await get(api, f"{response_id}/input_items", "globex"),
            await remove(api, response_id, "globex"),
            await api.client.post(f"/v1/responses/{response_id}/cancel", headers=headers),
            await send(api, previous_response_id=response_id, who="globex"),
        ]
        assert {response.status_code for response in responses} == {404}
        return [response.text.replace(response_id, "") for response in responses]

    assert await answers(created["id"]) == await answers(absent)
    assert refusal(await send(api, previous_response_id=absent))[1:] == (
        "previous_response_not_found", "previous_response_id",
    )  # fmt: skip
    assert (await get(api, created["id"])).status_code == 200


@on_sqlite
async def test_a_conversation_with_a_gap_is_not_gone_on_from(api: Api) -> None:
    """What was deleted is missing, and a model should not be asked as if it had never been."""
    first = await create(api, "one")
    second = await create(api, "two", previous_response_id=first["id"])
    await remove(api, first["id"])

    refused = await send(api, previous_response_id=second["id"])

    assert refusal(refused) == (404, "previous_response_not_found", "previous_response_id")
    assert "deleted" in refused.json()["error"]["message"]
    left = (await get(api, f"{second['id']}/input_items")).json()["data"]
    assert [item["content"][0]["text"] for item in left] == ["two"]


async def test_a_conversation_is_kept_as_long_as_it_goes_on(api: Api, database: Database) -> None:
    """What has had its time is gone for its tenant at once and from the database with the next cleaning up; what is
    gone on from has its time anew."""
    first, other = await create(api, "one"), await create(api, "other")
    soon = now() + timedelta(minutes=1)
    async with database.transaction() as session:
        await session.execute(update(StoredResponse).values(expires_at=soon))
    await create(api, "two", previous_response_id=first["id"])
    async with database.transaction() as session:
        expired = update(StoredResponse).where(StoredResponse.expires_at == soon)
        await session.execute(expired.values(expires_at=now()))

    assert code(await get(api, other["id"])) == (404, "response_not_found")
    assert (await get(api, first["id"])).status_code == 200
    assert len(await stored_ids(database)) == 3
    await clean_up(api.services)
    assert len(await stored_ids(database)) == 2


async def test_the_oldest_make_room(database: Database, tmp_path: Path, tiny_model_dir: Path) -> None:
    """Where a tenant has too many, or too large ones; nobody else's, and never the one that is new."""
    async with run_api(database, tmp_path, tiny_model_dir, max_responses_per_tenant=3) as api:
        others = [(await create(api, who="globex"))["id"] for _ in range(2)]
        mine = [(await create(api))["id"] for _ in range(5)]
        assert await stored_ids(database) == others + mine[2:]
        keys = api.keys
    async with database.read() as session:
        size_bytes = await session.scalar(select(func.max(StoredResponse.size_bytes))) or 0
    limits = {"max_response_bytes_per_tenant": 2 * size_bytes + 100}
    async with run_api(database, tmp_path, tiny_model_dir, keys=keys, **limits) as api:
        small = (await create(api))["id"]
        assert await stored_ids(database) == [*others, mine[-1], small]
        large = (await create(api, metadata={str(n): "v" * 500 for n in range(16)}))["id"]
        assert await stored_ids(database) == [*others, large]


@on_sqlite
async def test_a_conversation_is_bounded(
    database: Database, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has at most so many responses, and as many bytes as a body may have."""
    monkeypatch.setattr(store, "MAX_CHAIN", 2)
    async with run_api(database, tmp_path, tiny_model_dir, max_body_bytes=900) as api:
        last = (await create(api, "one"))["id"]
        for text in ("two", "three"):
            last = (await create(api, text, previous_response_id=last))["id"]
        too_long = await send(api, "four", previous_response_id=last)
        last = (await create(api, "x" * 200))["id"]
        last = (await create(api, "x" * 200, previous_response_id=last))["id"]
        too_large = await send(api, "y", previous_response_id=last)
        large = [(await create(api, "x" * 300))["output"][0]["id"] for _ in range(2)]
        references = [{"type": "item_reference", "id": name} for name in large]
        assert refusal(await send(api, references)) == (400, "context_length_exceeded", "input")
        assert refusal(await send(api, references, who="globex")) == (404, "item_not_found", "input")

    for refused in (too_long, too_large):
        assert refusal(refused) == (400, "context_length_exceeded", "previous_response_id")
    assert "3 responses" in too_long.json()["error"]["message"]


@on_sqlite
async def test_nothing_is_stored_that_is_not_to_be(database: Database, tmp_path: Path, tiny_model_dir: Path) -> None:
    """Neither with `store` false nor by a server that stores none, which says so to those who ask for it."""
    async with run_api(database, tmp_path, tiny_model_dir) as api:
        assert (await create(api, store=False))["store"] is False
        assert (await create(api))["store"] is (await create(api, store=True))["store"] is True
        keys = api.keys
    async with database.transaction() as session:
        await session.execute(delete(StoredResponse))
    async with run_api(database, tmp_path, tiny_model_dir, keys=keys, store_responses=False) as api:
        assert (await create(api))["store"] is False
        assert refusal(await send(api, store=True)) == (400, "unsupported_value", "store")
    assert await stored_ids(database) == []


@dataclass
class SilentEngine(StandingEngine):
    """Says nothing."""

    is_asked: asyncio.Event = field(default_factory=asyncio.Event)

    def generate(self, request: Generate) -> Generation:
        self.is_asked.set()
        return Generation(request, lambda request_id: None)


@on_sqlite
@pytest.mark.parametrize("stream", [False, True])
async def test_nothing_is_stored_for_a_client_that_has_gone(
    database: Database, tmp_path: Path, tiny_model_dir: Path, stream: bool
) -> None:
    """Its answer ends with it."""
    engine = SilentEngine(ready_of(lora_shape(ModelConfig.from_folder(tiny_model_dir))))
    async with run_api(database, tmp_path, tiny_model_dir, engine=engine) as api:
        waiting = asyncio.create_task(send(api, stream=stream))
        await engine.is_asked.wait()
        waiting.cancel()
        await asyncio.wait([waiting])
    assert await stored_ids(database) == []


@on_sqlite
async def test_a_stream_ends_once_its_response_is_stored(api: Api, database: Database) -> None:
    """So that a client that goes on from it at once finds it; where it cannot be stored, the stream ends with that."""
    told = (await send(api, stream=True)).text

    assert [(await get(api, stored)).status_code for stored in await stored_ids(database)] == [200]
    assert told.rindex("event: ") == told.index("event: response.incomplete")
    async with database.transaction() as session:
        await (await session.connection()).exec_driver_sql("DROP TABLE responses")
    failed = (await send(api, stream=True)).text
    assert "event: response.incomplete" not in failed
    assert failed.rindex("event: ") == failed.index("event: response.failed")


@on_sqlite
async def test_only_what_runs_in_the_background_is_cancelled(api: Api) -> None:
    """Of which there is nothing; nor is a stored response told as a stream."""
    created = await create(api)
    refused = await api.client.post(f"/v1/responses/{created['id']}/cancel", headers=api.auth("acme"))
    assert refused.status_code == 400
    assert "Cannot cancel a synchronous response" in refused.json()["error"]["message"]
    assert refusal(await get(api, f"{created['id']}?stream=true")) == (400, "unsupported_parameter", "stream")


async def test_a_tenants_responses_go_with_it(database: Database) -> None:
    """In the transaction that deletes it."""
    async with database.transaction() as session:
        session.add(Tenant(id="t", slug="t", name="t"))
        await session.flush()
        session.add(
            StoredResponse(id="resp_1", tenant_id="t", expires_at=now(), size_bytes=0, head=b"", input=b"", output=b"")
        )
        await session.flush()
        await session.execute(delete(Tenant))
    assert await stored_ids(database) == []

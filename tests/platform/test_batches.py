"""Files and batches over the API, on both databases: what is refused, how a batch ends, and that every line is answered
once whoever works on it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from api_running import Api, StandingEngine, code, ready_of, refusal, run_api
from batch_files import CHAT, by_custom_id, jsonl, request
from database_fixtures import on_sqlite
from sqlalchemy import update

from loraplex.adapters.database import Database
from loraplex.adapters.errors import LeaseLost
from loraplex.adapters.schema import now
from loraplex.engine.client import EngineUnavailable
from loraplex.engine.generation import Generation
from loraplex.engine.messages import Generate
from loraplex.engine.models.config import ModelConfig, lora_shape
from loraplex.platform.batches.leases import Answered, BatchLeases
from loraplex.platform.batches.room import Room
from loraplex.platform.batches.rows import WINDOW
from loraplex.platform.batches.run import MAX_ATTEMPTS
from loraplex.platform.batches.worker import run_next
from loraplex.platform.janitor import clean_up
from loraplex.platform.openai.generation_types import MAX_PRIORITY
from loraplex.platform.schema import StoredFile

pytestmark = pytest.mark.anyio

ROOM = Room(16, 64, lambda: 0)


@dataclass
class PausingEngine(StandingEngine):
    """Answers `answered` requests, then keeps all others waiting and says so in `paused`."""

    answered: int = 1 << 30
    refused: int = 0

    def __post_init__(self) -> None:
        self.paused = asyncio.Event()

    def generate(self, request: Generate) -> Generation:
        if self.refused:
            self.refused -= 1
            raise EngineUnavailable("full", retry_after_seconds=0)
        if self.answered == 0:
            self.asked.append(request)
            self.paused.set()
            return Generation(request, lambda request_id: None)
        self.answered -= 1
        return super().generate(request)


@pytest.fixture
def engine(tiny_model_dir: Path) -> PausingEngine:
    return PausingEngine(ready_of(lora_shape(ModelConfig.from_folder(tiny_model_dir))))


@pytest.fixture
async def api(database: Database, tmp_path: Path, tiny_model_dir: Path, engine: PausingEngine) -> AsyncIterator[Api]:
    settings = {"max_file_bytes": 4096, "max_file_bytes_per_tenant": 12_000, "max_batches_per_tenant": 3}
    async with run_api(database, tmp_path, tiny_model_dir, engine=engine, batch_concurrency=3, **settings) as running:
        yield running


async def upload(api: Api, content: bytes, who: str = "acme", **fields: str) -> Any:
    form = {"purpose": "batch"} | fields
    files = {"file": ("in.jsonl", content)}
    return await api.client.post("/v1/files", data=form, files=files, headers=api.auth(who))


async def create(api: Api, entries: list[Any], who: str = "acme", **changes: Any) -> Any:
    file = (await upload(api, jsonl(entries), who)).json()
    body = {"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"} | changes
    return await api.client.post("/v1/batches", json=body, headers=api.auth(who))


async def get(api: Api, path: str, who: str = "acme") -> Any:
    return await api.client.get(path, headers=api.auth(who))


async def look(api: Api, batch: dict[str, Any]) -> dict[str, Any]:
    return (await get(api, f"/v1/batches/{batch['id']}")).json()


async def results(api: Api, batch: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The lines of output and errors."""
    both = []
    for file_id in (batch["output_file_id"], batch["error_file_id"]):
        content = b"" if file_id is None else (await get(api, f"/v1/files/{file_id}/content")).content
        both.append(by_custom_id(content))
    return both[0], both[1]


async def work(api: Api, **changes: Any) -> bool:
    return await run_next(replace(api.services, **changes), api.app, ROOM)


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.shift = timedelta()

    def leases(self, api: Api) -> BatchLeases:
        return BatchLeases(api.services.batch_leases._database, lambda: now() + self.shift)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def content(api: Api, file_id: str | None) -> dict[str, Any]:
    """As it lies on the disk."""
    return {} if file_id is None else by_custom_id(api.services.file_store.path(file_id).read_bytes())


async def test_a_batch_is_answered_line_by_line(api: Api, engine: PausingEngine) -> None:
    """Good lines in the output and bad ones in the errors, each as the endpoint answers it; what may pass is tried
    again; empty lines are none; the files are the tenant's. All stand behind live requests."""
    entries = [request("a"), b"", request("b", "none"), request("c", max_tokens=-1), b"  ", request("d", priority=3)]
    engine.refused = 1
    created = (await create(api, entries, metadata={"night": "1"})).json()
    assert (created["status"], created["request_counts"]["total"]) == ("validating", 0)
    assert await work(api)
    assert not await work(api)

    batch = await look(api, created)
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 4, "completed": 2, "failed": 2}
    assert batch["metadata"] == {"night": "1"}
    moments = ("created_at", "in_progress_at", "finalizing_at", "completed_at")
    assert [batch[moment] for moment in moments] == sorted(batch[moment] for moment in moments)
    assert batch["expires_at"] - batch["created_at"] == WINDOW.total_seconds()
    assert [asked.priority for asked in engine.asked] == [MAX_PRIORITY] * 2
    output, errors = await results(api, batch)
    assert set(output) == {"a", "d"}
    response = output["a"]["response"]
    assert (response["status_code"], response["body"]["object"], output["a"]["error"]) == (200, "text_completion", None)
    assert response["request_id"].startswith("req_")
    assert {name: line["response"]["status_code"] for name, line in errors.items()} == {"b": 404, "c": 400}
    assert errors["b"]["response"]["body"]["error"]["code"] == "model_not_found"
    files = (await get(api, "/v1/files?purpose=batch_output&order=asc")).json()["data"]
    assert {file["id"] for file in files} == {batch["output_file_id"], batch["error_file_id"]}
    assert {file["filename"] for file in files} == {f"{batch['id']}_{part}.jsonl" for part in ("output", "error")}


@on_sqlite
async def test_a_batch_makes_responses(api: Api) -> None:
    """Which are stored and found, as those that are made one by one."""
    line = {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": {"model": "tiny", "input": "x"}}
    created = (await create(api, [line], endpoint="/v1/responses")).json()
    assert await work(api)

    output, _ = await results(api, await look(api, created))
    response = output["a"]["response"]["body"]
    assert response["object"] == "response"
    assert (await get(api, f"/v1/responses/{response['id']}")).json() == response


@on_sqlite
async def test_prompts_that_a_batch_embeds_stand_behind_live_ones(api: Api, engine: PausingEngine) -> None:
    """As those that it has answered do."""
    body = {"model": "tiny", "input": ["a", "b"]}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": body}
    await create(api, [line], endpoint="/v1/embeddings")
    engine.answered = 0
    working = asyncio.create_task(work(api))
    await engine.paused.wait()
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)

    assert {asked.priority for asked in engine.asked} == {MAX_PRIORITY}


@on_sqlite
async def test_lines_run_one_adapter_after_the_other(
    api: Api, engine: PausingEngine, tmp_path: Path, make_adapter: Callable[..., Path]
) -> None:
    """However they are mixed in the input, so that few adapters are in use at a time; whichever field names them."""
    digests = {}
    for rank, name in enumerate(("b", "a"), start=1):
        await api.client.post("/api/v1/adapters", json={"name": name}, headers=api.auth("acme"))
        folder = make_adapter(tmp_path / name, rank=rank, modules=["q_proj"])
        digests[name] = (await api.upload("acme", name, folder)).json()["digest"]
    engine.asked.clear()
    entries = [request(str(n), ["a", "tiny", "b"][n % 3]) for n in range(9)]
    entries += [request(f"{name}{n}", lora_path=name) for n in range(2) for name in "ab"]
    await create(api, entries)
    one_at_a_time = api.services.settings.model_copy(update={"batch_concurrency": 1})
    assert await work(api, settings=one_at_a_time)

    used = [[use.digest for use in asked.adapters] for asked in engine.asked]
    runs = [digests for digests, _ in groupby(used)]
    assert len(used) == 13
    assert sorted(runs) == sorted([[], *([digest] for digest in digests.values() for _ in range(2))])


async def test_every_wrong_line_is_told(api: Api) -> None:
    """The batch fails as a whole, and `errors` has the number of each line, what is wrong with it and where."""
    entries = [
        request("a"),
        b"{",
        b"[1]",
        request("a"),
        request("b", url=CHAT, model="tiny"),
        request("c") | {"method": "GET"},
        request("d") | {"body": 1},
        request("e") | {"extra": 1},
        request(""),
        request("f", stream=True),
        {key: value for key, value in request("g").items() if key != "custom_id"},
        {**request("h"), "body": {}},
        b"\xff",
    ]
    created = (await create(api, entries)).json()
    assert await work(api)
    batch = await look(api, created)

    assert (batch["status"], batch["output_file_id"], batch["in_progress_at"]) == ("failed", None, None)
    assert batch["failed_at"] >= batch["created_at"]
    assert [(error["line"], error["code"], error["param"]) for error in batch["errors"]["data"]] == [
        (2, "invalid_json", None),
        (3, "invalid_type", None),
        (4, "duplicate_custom_id", "custom_id"),
        (5, "mismatched_endpoint", "url"),
        (6, "invalid_method", "method"),
        (7, "invalid_body", "body"),
        (8, "unknown_parameter", "extra"),
        (9, "invalid_value", "custom_id"),
        (10, "unsupported_value", "body.stream"),
        (11, "missing_required_parameter", "custom_id"),
        (12, "missing_required_parameter", "body.model"),
        (13, "invalid_json", None),
    ]


@on_sqlite
async def test_an_input_as_a_whole_is_bounded(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """No line, too many lines, a line that is too long, and a file that has gone from the disk."""
    monkeypatch.setattr("loraplex.platform.batches.lines.MAX_LINES", 2)
    small = replace(api.services, settings=api.services.settings.model_copy(update={"max_body_bytes": 200}))

    async def failure(entries: list[Any], *, is_gone: bool = False) -> tuple[str, int | None]:
        created = (await create(api, entries)).json()
        if is_gone:
            api.services.file_store.discard(created["input_file_id"])
        assert await run_next(small, api.app, ROOM)
        [error] = (await look(api, created))["errors"]["data"]
        return error["code"], error["line"]

    assert await failure([b"", b" "]) == ("empty_file", None)
    assert await failure([request(str(number)) for number in range(3)]) == ("too_many_requests", None)
    assert await failure([request("a"), request("b", prompt="x" * 999)]) == ("request_too_large", 2)
    assert await failure([request("a"), b" " * 999 + jsonl([request("b")]).strip()]) == ("request_too_large", 2)
    assert await failure([request("a")], is_gone=True) == ("input_file_missing", None)


@on_sqlite
async def test_an_input_that_cannot_be_read_is_given_up_in_the_end(api: Api, clock: Clock) -> None:
    """It may be another disk's fault, and pass; but the batch does not wait for ever."""
    created = (await create(api, [request("a")])).json()
    path = api.services.file_store.path(created["input_file_id"])
    path.unlink()
    path.mkdir()
    for _ in range(MAX_ATTEMPTS + 1):
        assert (await look(api, created))["status"] == "validating"
        assert await work(api, batch_leases=clock.leases(api))
        clock.shift += timedelta(minutes=1)
    [error] = (await look(api, created))["errors"]["data"]
    assert error["code"] == "input_file_missing"


ENDS = {
    "cancelled": ("cancelled", "batch_cancelled"),
    "expired": ("expired", "batch_expired"),
    "key revoked": ("completed", "invalid_api_key"),
    "tenant suspended": ("completed", "invalid_api_key"),
    "abandoned": ("completed", "batch_abandoned"),
}


@pytest.mark.parametrize("end", ENDS)
async def test_what_ends_a_batch_half_way_answers_its_rest(
    api: Api, engine: PausingEngine, end: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was answered stays; every other line is told why it was not run."""
    monkeypatch.setattr("loraplex.platform.job_workers.RENEW_SECONDS", 0.01)
    created = (await create(api, [request(str(number)) for number in range(8)])).json()
    engine.answered = 0 if end == "abandoned" else 2
    for _ in range(MAX_ATTEMPTS if end == "abandoned" else 0):
        assert await clock.leases(api).claim("tiny")
        clock.shift += timedelta(minutes=1)
    working = asyncio.create_task(work(api, batch_leases=clock.leases(api)))
    if end != "abandoned":
        await engine.paused.wait()
    if end == "cancelled":
        path = f"/v1/batches/{created['id']}/cancel"
        assert (await api.client.post(path, headers=api.auth("acme"))).json()["status"] == "cancelling"
    elif end == "expired":
        clock.shift = WINDOW
    elif end == "key revoked":
        keys = {key.name: key.id for key in await api.services.tenants.list_keys("acme")}
        await api.services.tenants.revoke_key(keys["acme"])
    elif end == "tenant suspended":
        await api.services.tenants.set_suspended("acme", True)
    assert await working

    batch = await api.services.batches.get(await api.tenant_id("acme"), created["id"])
    status, reason = ENDS[end]
    done = 0 if end == "abandoned" else 2
    assert (batch.status, batch.total, batch.completed, batch.failed) == (status, 8, done, 8 - done)
    assert getattr(batch, f"{status}_at") is not None
    output = content(api, batch.output_file_id)
    errors = content(api, batch.error_file_id)
    assert len(output) == done
    assert output.keys() | errors.keys() == {str(number) for number in range(8)}
    assert {(line["response"], line["error"]["code"]) for line in errors.values()} == {(None, reason)}


async def test_a_server_that_stops_half_way_leaves_what_it_has_answered(api: Api, engine: PausingEngine) -> None:
    """The next one runs the other lines only, one adapter after the other, and each is answered once."""
    entries = [request(str(number), "tiny" if number % 3 else "none") for number in range(20)]
    created = (await create(api, entries)).json()
    engine.answered = 7
    working = asyncio.create_task(work(api))
    await engine.paused.wait()
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    half = await look(api, created)
    counted = half["request_counts"]["completed"] + half["request_counts"]["failed"]
    assert half["status"] == "in_progress"

    engine.answered, before = 1 << 30, len(engine.asked)
    assert await work(api)
    batch = await look(api, created)
    assert (batch["status"], batch["request_counts"]["total"]) == ("completed", 20)
    output, errors = await results(api, batch)
    assert output.keys() | errors.keys() == {str(number) for number in range(20)}
    assert not output.keys() & errors.keys()
    assert len(engine.asked) - before <= 20 - counted


async def test_an_answer_of_a_server_that_was_thought_dead_does_not_count(
    api: Api, engine: PausingEngine, clock: Clock
) -> None:
    """Once another one has taken the batch up, it can write nothing; and whose turn it is works on undisturbed."""
    created = (await create(api, [request("a"), request("b")])).json()
    stale = await api.services.batch_leases.claim("tiny")
    assert stale is not None
    assert not await work(api), "somebody holds it"
    clock.shift = timedelta(minutes=5)
    assert await work(api, batch_leases=clock.leases(api))

    leases = api.services.batch_leases
    for write in (
        leases.record(stale, [Answered(1, False, b"{}")]),
        leases.finish(stale, "completed", 2, None, None),
        leases.fail(stale, []),
        leases.renew(stale),
        leases.release(stale),
    ):
        with pytest.raises(LeaseLost):
            await write
    batch = await look(api, created)
    assert (batch["status"], batch["request_counts"]["completed"]) == ("completed", 2)


async def test_foreign_files_and_batches_are_as_absent_ones(api: Api) -> None:
    """The same 404, whatever is done to them."""
    batch = (await create(api, [request("a")])).json()
    file_id, batch_id = batch["input_file_id"], batch["id"]
    absent_file, absent_batch = f"file-{'0' * 32}", f"batch_{'0' * 32}"
    globex = api.auth("globex")

    async def answers(file_id: str, batch_id: str) -> list[Any]:
        body = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
        sent = [
            await api.client.get(f"/v1/files/{file_id}", headers=globex),
            await api.client.get(f"/v1/files/{file_id}/content", headers=globex),
            await api.client.delete(f"/v1/files/{file_id}", headers=globex),
            await api.client.get(f"/v1/files?after={file_id}", headers=globex),
            await api.client.post("/v1/batches", json=body, headers=globex),
            await api.client.get(f"/v1/batches/{batch_id}", headers=globex),
            await api.client.get(f"/v1/batches?after={batch_id}", headers=globex),
            await api.client.post(f"/v1/batches/{batch_id}/cancel", headers=globex),
        ]
        assert {response.status_code for response in sent} == {404}
        return [response.text.replace(file_id, "ID").replace(batch_id, "ID") for response in sent]

    assert await answers(file_id, batch_id) == await answers(absent_file, absent_batch)
    for path in ("/v1/files", "/v1/batches"):
        assert (await get(api, path, "globex")).json()["data"] == []


async def test_lists_come_in_pages(api: Api) -> None:
    """Files in either order and by purpose; batches newest first; each id once."""
    files = [(await upload(api, b"x" * size)).json()["id"] for size in (1, 2, 3)]

    async def all_ids(path: str) -> list[str]:
        ids: list[str] = []
        page = (await get(api, path)).json()
        while page["data"]:
            ids += [entry["id"] for entry in page["data"]]
            assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], ids[-1])
            if not page["has_more"]:
                return ids
            page = (await get(api, f"{path}&after={ids[-1]}")).json()
        return ids

    assert await all_ids("/v1/files?limit=2&order=asc") == files
    assert await all_ids("/v1/files?limit=2") == files[::-1]
    assert await all_ids("/v1/files?limit=2&purpose=batch_output") == []
    assert await all_ids("/v1/files?limit=2&purpose=batch%00") == []
    batches = [(await create(api, [request("a")])).json()["id"] for _ in range(3)]
    assert await all_ids("/v1/batches?limit=2") == batches[::-1]


@on_sqlite
async def test_files_are_bounded_and_kept_as_long_as_they_are_needed(api: Api, database: Database) -> None:
    """Each by its size, all of a tenant by their sum; one that a batch reads stays; what expired or has no row goes."""
    assert code(await upload(api, b"x" * 4097)) == (413, "request_too_large")
    assert list((api.services.settings.files_dir / "content").iterdir()) == []
    kept, *_ = [(await upload(api, b"x" * 4000)).json() for _ in range(2)]
    used = (await create(api, [request("a")])).json()["input_file_id"]
    assert code(await upload(api, b"x" * 4000)) == (429, "too_many_files")
    assert (await get(api, f"/v1/files/{kept['id']}/content")).content == b"x" * 4000
    assert code(await api.client.delete(f"/v1/files/{used}", headers=api.auth("acme"))) == (409, "file_in_use")
    deleted = await api.client.delete(f"/v1/files/{kept['id']}", headers=api.auth("acme"))
    assert deleted.json() == {"id": kept["id"], "object": "file", "deleted": True}
    assert code(await get(api, f"/v1/files/{kept['id']}")) == (404, "file_not_found")

    async with database.transaction() as session:
        await session.execute(update(StoredFile).values(expires_at=now()))
    young = api.services.file_store.path("file-young")
    for path in (young, api.services.file_store.path("file-old")):
        path.write_bytes(b"of no row")
    for path in (api.services.settings.files_dir / "content").iterdir():
        if path != young:
            os.utime(path, (0, 0))
    await clean_up(api.services)
    left = {path.name for path in (api.services.settings.files_dir / "content").iterdir()}
    assert left == {used, young.name}
    assert (await get(api, "/v1/files")).json()["data"] == []
    assert await work(api), "what a batch reads is there although its time is up"


@on_sqlite
async def test_what_is_asked_for_wrongly_is_refused(api: Api) -> None:
    """Every field of both resources, by its name."""
    day = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "86400"}
    file = (await upload(api, b"{}", **day)).json()
    assert file["expires_at"] - file["created_at"] == 86400
    anchor, seconds = day
    for fields, param in (
        ({"purpose": "fine-tune"}, "purpose"),
        ({anchor: "now", seconds: "86400"}, anchor),
        ({anchor: "created_at"}, seconds),
        ({**day, seconds: "60"}, seconds),
        ({**day, seconds: "1e9"}, seconds),
    ):
        assert refusal(await upload(api, b"{}", **fields)) == (400, "invalid_value", param)
    assert refusal(await upload(api, b"{}", other="1")) == (400, "unknown_parameter", "other")
    nothing = await api.client.post("/v1/files", files={"file": b"x"}, headers=api.auth("acme"))
    assert refusal(nothing) == (400, "missing_required_parameter", "purpose")
    assert code(await api.client.post("/v1/files", json={}, headers=api.auth("acme"))) == (
        415,
        "unsupported_media_type",
    )
    for changes, param in (
        ({"endpoint": "/v1/models"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
    ):
        assert refusal(await create(api, [request("a")], **changes)) == (400, "invalid_value", param)

    created = [(await create(api, [request("a")])).json() for _ in range(3)]
    assert code(await create(api, [request("a")])) == (429, "too_many_batches")
    assert await work(api)
    answer = (await look(api, created[0]))["output_file_id"]
    assert refusal(await create(api, [], input_file_id=answer)) == (400, "invalid_value", "input_file_id")
    cancelled = await api.client.post(f"/v1/batches/{created[0]['id']}/cancel", headers=api.auth("acme"))
    assert code(cancelled) == (409, "batch_ended")


async def test_batches_take_turns() -> None:
    """However many lines one has, and however it was there first; a line that is given up leaves no trace."""
    room = Room(2, 64, lambda: 0)
    order: list[str] = []

    async def line(batch_id: str) -> None:
        async with room.enter(batch_id):
            order.append(batch_id)
            await asyncio.sleep(0)

    async def run(batch_id: str, lines: int) -> None:
        for _ in range(lines):
            await line(batch_id)

    runs = [asyncio.create_task(run("a", 20)) for _ in range(9)]
    given_up = asyncio.create_task(line("c"))
    runs += [asyncio.create_task(run("b", 20)) for _ in range(3)]
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.gather(*runs)
    assert (order.count("a"), order.count("b"), order.count("c")) == (180, 60, 0)
    assert abs(order[:100].count("a") - order[:100].count("b")) <= 2
    assert not room._batches


async def test_the_next_batch_is_of_the_tenant_with_the_fewest_under_way(api: Api) -> None:
    """Many batches of one do not keep another waiting for all of them."""
    for _ in range(3):
        await create(api, [request("a")])
    await create(api, [request("b")], who="globex")
    globex = await api.tenant_id("globex")
    taken = [await api.services.batch_leases.claim("tiny") for _ in range(5)]

    assert [lease and lease.batch.tenant_id == globex for lease in taken] == [False, True, False, False, None]


async def test_lines_leave_room_for_live_traffic() -> None:
    """Half of what live requests leave, and one when they leave nothing."""
    pending = 0
    room = Room(4, 8, lambda: pending)
    most = 0

    async def line() -> None:
        nonlocal most, pending, running
        async with room.enter("a"):
            running, pending = running + 1, pending + 1
            most = max(most, running)
            await asyncio.sleep(0)
            running, pending = running - 1, pending - 1

    for live, expected in ((0, 4), (4, 2), (100, 1)):
        most, running, pending = 0, 0, live
        await asyncio.gather(*(line() for _ in range(10)))
        assert most == expected

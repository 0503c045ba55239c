"""Usage as it is told: what is billed to whom, what it cost, whose it is, and what was said."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from api_running import Api, StandingEngine, code, ready_of, run_api
from database_fixtures import on_sqlite

from loraplex.adapters.database import Database
from loraplex.engine.models.config import ModelConfig, lora_shape

pytestmark = pytest.mark.anyio

PROMPT = [5, 6, 7, 8]
COMPLETION = {"model": "tiny", "prompt": PROMPT, "max_tokens": 6}
PRICES = {
    "currency": "EUR",
    "default": {"prompt": 500_000, "cached": 50_000, "completion": 2_000_000},
    "adapters": {},
}


@pytest.fixture
async def api(database: Database, tmp_path: Path, tiny_model_dir: Path) -> AsyncIterator[Api]:
    engine = StandingEngine(ready_of(lora_shape(ModelConfig.from_folder(tiny_model_dir))))
    async with run_api(database, tmp_path, tiny_model_dir, engine=engine) as running:
        yield running


async def ask(api: Api, who: str = "acme", body: Any = COMPLETION, **headers: str) -> Any:
    return await api.client.post("/v1/completions", json=body, headers=api.auth(who) | headers)


async def read(api: Api, who: str, path: str = "", **params: Any) -> Any:
    await api.services.ledger.write()
    root = "/api/v1/admin/usage" if who == "operator" else "/api/v1/usage"
    response = await api.client.get(root + path, params=params, headers=api.auth(who))
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_request_is_told_once_with_all_that_it_used(api: Api) -> None:
    """With the client's own id; summed up for its tenant alone, and for the operator."""
    answered = await ask(api, **{"x-request-id": "mine"})
    assert answered.json()["usage"]["total_tokens"] == 5
    await ask(api, "globex")

    [entry] = (await read(api, "acme", "/requests"))["data"]
    assert entry["request_id"] == answered.headers["x-request-id"] == "mine"
    told = {
        name: entry[name] for name in ("tenant", "endpoint", "asked", "model", "adapter", "finish_reason", "status")
    }
    assert told == {
        "tenant": "acme",
        "endpoint": "completions",
        "asked": "tiny",
        "model": "tiny",
        "adapter": "",
        "finish_reason": "length",
        "status": 200,
    }
    assert (entry["prompt_tokens"], entry["cached_tokens"], entry["completion_tokens"]) == (4, 0, 1)
    assert 0 <= entry["ttft_ms"] <= entry["total_ms"]

    [own] = (await read(api, "acme", step="hour"))["data"]
    assert (own["requests"], own["errors"], own["prompt_tokens"], own["completion_tokens"]) == (1, 0, 4, 1)
    both = (await read(api, "operator", by="tenant", step="all"))["data"]
    assert {each["tenant"]: each["completion_tokens"] for each in both} == {"acme": 1, "globex": 1}
    assert len((await read(api, "operator", "/requests", tenant="globex"))["data"]) == 1


async def test_written_twice_is_counted_once(api: Api) -> None:
    """What a crash between the database and the spool leads to: the same records again, beside a new one."""
    await ask(api)
    segment = api.services.ledger._spool
    before = [path.read_bytes() for path in sorted(segment._folder.glob("*.log"))]
    await api.services.ledger.write()
    await ask(api)
    (segment._folder / "000000000000.log").write_bytes(b"".join(before))

    [summed] = (await read(api, "acme"))["data"]
    assert (summed["requests"], summed["completion_tokens"]) == (2, 2)
    assert len((await read(api, "acme", "/requests"))["data"]) == 2


async def test_what_was_refused_is_told_and_costs_nothing(api: Api) -> None:
    """A request that did not run is told with its status; one without a key is nobody's."""
    assert (await ask(api, body=COMPLETION | {"model": "nothing"})).status_code == 404
    api.keys["nobody"] = "lk_nobody"
    assert (await ask(api, "nobody")).status_code == 401

    [entry] = (await read(api, "acme", "/requests", errors=True))["data"]
    assert (entry["asked"], entry["status"], entry["finish_reason"]) == ("nothing", 404, "refused")
    assert entry["prompt_tokens"] == entry["completion_tokens"] == entry["cost_micros"] == 0
    assert len((await read(api, "operator", "/requests"))["data"]) == 1


@on_sqlite
async def test_refusals_are_told_ten_times_a_second(api: Api) -> None:
    """They cost a client nothing, so they are a sample; what ran is told without exception."""
    for _ in range(15):
        await ask(api, body=COMPLETION | {"model": "nothing"})
    for _ in range(15):
        await ask(api)

    finished = [entry["finish_reason"] for entry in (await read(api, "acme", "/requests"))["data"]]
    assert 10 <= finished.count("refused") <= 15
    assert finished.count("length") == 15


async def test_a_price_holds_for_what_comes_after_it(api: Api) -> None:
    """In millionths, of the adapter's own price or the default; what is written keeps the price that it had."""
    await ask(api)
    await api.services.ledger.write()
    path = "/api/v1/admin/usage/prices"
    put = await api.client.put(path, json=PRICES, headers=api.auth("operator"))
    assert (put.status_code, put.json()) == (200, PRICES)
    await ask(api)
    await api.services.ledger.write()
    dearer = PRICES | {"adapters": {"acme/": PRICES["default"] | {"prompt": 10**12}}}
    assert code(await api.client.put(path, json=dearer, headers=api.auth("operator"))) == (400, "invalid_value")
    doubled = PRICES | {"default": PRICES["default"] | {"completion": 4_000_000}}
    await api.client.put(path, json=doubled, headers=api.auth("operator"))
    await ask(api)

    entries = (await read(api, "acme", "/requests"))["data"]
    assert [(entry["cost_micros"], entry["currency"]) for entry in entries] == [(6, "EUR"), (4, "EUR"), (0, "")]
    sums = (await read(api, "acme", step="all"))["data"]
    assert [(each["currency"], each["requests"], each["cost_micros"]) for each in sums] == [("", 1, 0), ("EUR", 2, 10)]
    assert (await read(api, "operator", "/prices"))["default"]["completion"] == 4_000_000


async def test_pages_follow_each_other_without_gaps(api: Api) -> None:
    """The newest first, each once, whatever the size of a page."""
    for number in range(5):
        await ask(api, **{"x-request-id": f"r{number}"})
    seen: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = await read(api, "acme", "/requests", limit=2, **after)
        seen += [entry["request_id"] for entry in page["data"]]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert seen == ["r4", "r3", "r2", "r1", "r0"]


async def test_an_export_is_no_formula(api: Api) -> None:
    """In CSV a cell that a spreadsheet would run begins with an apostrophe; JSON has what was sent."""
    await ask(api, body=COMPLETION | {"model": "=cmd|' /C calc'!A0"})
    await ask(api)
    await api.services.ledger.write()
    exported = await api.client.get("/api/v1/usage/export", headers=api.auth("acme"))
    rows = list(csv.DictReader(io.StringIO(exported.text)))
    assert exported.headers["content-type"].startswith("text/csv")
    assert [row["asked"] for row in rows] == ["tiny", "'=cmd|' /C calc'!A0"]
    assert datetime.fromisoformat(rows[0]["started_at"]) < datetime.now(UTC)

    as_json = await read(api, "acme", "/export", format="json")
    assert [entry["asked"] for entry in as_json] == ["tiny", "=cmd|' /C calc'!A0"]
    sums = await read(api, "operator", "/export", format="json", what="sums", by="key")
    assert [each["requests"] for each in sums] == [2]
    assert await read(api, "globex", "/export", format="json") == []


async def test_contents_are_kept_for_those_who_ask_for_it(api: Api) -> None:
    """Never by default; read and deleted by the tenant and by operators, by nobody else; gone when their time is up."""
    await ask(api)
    path = "/api/v1/admin/usage/contents/acme"
    put = await api.client.put(path, json={"days": 7}, headers=api.auth("operator"))
    assert put.json() == {"days": 7}
    await ask(api, body=COMPLETION | {"prompt": "a secret plan"})
    await ask(api, "globex", body=COMPLETION | {"prompt": "another"})

    kept, plain = (await read(api, "acme", "/requests"))["data"]
    assert (kept["has_contents"], plain["has_contents"]) == (True, False)
    contents = f"/requests/{kept['id']}/contents"
    said = await read(api, "acme", contents)
    assert said["request"] == '["a secret plan"]'
    assert await read(api, "operator", contents) == said
    absent = [f"/api/v1/usage/requests/{record}/contents" for record in (kept["id"], "0" * 32)]
    refusals = [await api.client.get(url, headers=api.auth("globex")) for url in absent]
    assert refusals[0].status_code == refusals[1].status_code == 404
    assert refusals[0].content == refusals[1].content
    assert (await api.client.delete(absent[0], headers=api.auth("globex"))).status_code == 404
    assert (await api.client.delete(absent[0], headers=api.auth("acme"))).status_code == 204
    assert code(await api.client.get(absent[0], headers=api.auth("acme"))) == (404, "contents_not_found")
    assert len((await read(api, "acme", "/requests"))["data"]) == 2


async def test_the_janitor_forgets_requests_before_sums(api: Api) -> None:
    """Each after its own time; contents with their days."""
    await api.client.put("/api/v1/admin/usage/contents/acme", json={"days": 1}, headers=api.auth("operator"))
    await ask(api)
    [entry] = (await read(api, "acme", "/requests"))["data"]
    await api.services.ledger.drop_expired(timedelta(days=1), timedelta(days=1))
    assert (await read(api, "acme", "/requests"))["data"] == [entry]
    await api.services.ledger.drop_expired(timedelta(0), timedelta(days=1))
    assert (await read(api, "acme", "/requests"))["data"] == []
    assert len((await read(api, "acme"))["data"]) == 1
    await api.services.ledger.drop_expired(timedelta(0), timedelta(hours=-1))
    assert (await read(api, "acme"))["data"] == []


@on_sqlite
@pytest.mark.parametrize(
    ("path", "params", "param"),
    [
        ("", {"start": "2026-01-02T00:00:00Z", "end": "2026-01-01T00:00:00Z"}, "start"),
        ("", {"start": "2026-01-01T00:00:00Z", "end": "2026-06-01T00:00:00Z", "step": "hour"}, "start"),
        ("", {"step": "minute"}, "step"),
        ("/requests", {"after": "9" * 18 + "-" + "0" * 32}, "after"),
        ("/requests", {"limit": 0}, "limit"),
        ("/export", {"format": "xml"}, "format"),
    ],
)
async def test_what_is_wrong_with_a_question_is_told(api: Api, path: str, params: Any, param: str) -> None:
    """By the field's name."""
    response = await api.client.get(f"/api/v1/usage{path}", params=params, headers=api.auth("acme"))
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@on_sqlite
async def test_whose_usage_it_is_comes_from_the_key(api: Api) -> None:
    """A tenant's key is told of no other tenant, nor whether there is one; inference alone shows no costs."""
    for tenant in ("globex", "absent"):
        response = await api.client.get("/api/v1/usage", params={"tenant": tenant}, headers=api.auth("acme"))
        assert response.status_code == 404
    assert (await api.client.get("/api/v1/usage", headers=api.auth("acme-chat"))).status_code == 403
    assert (await api.client.get("/api/v1/admin/usage", headers=api.auth("acme"))).status_code == 403

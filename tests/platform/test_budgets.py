"""Budgets as operators set them and as clients meet them, over HTTP, and together on several servers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from alembic import command
from api_running import Api, code, run_api
from click.testing import CliRunner
from clock import Clock
from database_fixtures import on_sqlite
from sqlalchemy import select, text

from loraplex.adapters.database import Database
from loraplex.platform.batches.requests import OwnRequests
from loraplex.platform.budgets.keeper import FRESH_SECONDS
from loraplex.platform.budgets.rules import period_start, renewal
from loraplex.platform.cli.main import main
from loraplex.platform.ledger.schema import SpendingDay
from loraplex.platform.migrate import alembic_config, locked_connection, upgrade_database

pytestmark = pytest.mark.anyio

ADMIN = "/api/v1/admin"
COMPLETION = {"model": "tiny", "prompt": [5, 6, 7, 8], "max_tokens": 6}
NEEDED, USED = 10, 5
"""Tokens of such a request: it may need that many, and the engine answers with one."""

PRICES = {"currency": "EUR", "default": {"prompt": 1_000_000, "cached": 0, "completion": 2_000_000}}
"""A token of a prompt is a millionth, of an answer two."""


@pytest.fixture
async def api(database: Database, tmp_path: Path, tiny_model_dir: Path) -> AsyncIterator[Api]:
    """With a clock that stands, so what others spend is read when it is asked for."""
    async with run_api(database, tmp_path, tiny_model_dir) as running:
        running.services.budgets._clock = Clock()
        yield running


async def budget(api: Api, whose: str, **fields: Any) -> dict[str, Any]:
    answer = await api.client.put(f"{ADMIN}/{whose}/budget", json=fields, headers=api.auth("operator"))
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


async def ask(api: Api, who: str = "acme", path: str = "completions", body: Any = COMPLETION) -> httpx.Response:
    return await api.client.post(f"/v1/{path}", json=body, headers=api.auth(who))


def key_id(api: Api, who: str) -> str:
    return api.keys[who].split("_")[1]


async def test_what_does_not_fit_is_refused_before_it_runs(api: Api) -> None:
    """By what was used and not by what was asked for; the database's sums take over without counting anything twice; a
    larger budget holds at once."""
    await budget(api, "tenants/acme", tokens=NEEDED + 2 * USED, period="total")
    assert (await ask(api)).status_code == 200
    assert (await ask(api, body=COMPLETION | {"stream": True})).status_code == 200
    await api.services.ledger.write()
    await api.services.budgets.refresh()
    assert (await ask(api)).status_code == 200
    engine: Any = api.services.engine
    ran = len(engine.asked)
    refused = await ask(api)
    assert (code(refused), refused.json()["error"]["type"]) == ((429, "insufficient_quota"), "insufficient_quota")
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers
    assert refused.json()["error"]["message"] == (
        "The total budget of the tenant `acme` is 20 tokens, of which 15 are used or held by running requests; this "
        "request may need 10. It does not start anew. Ask for less in 'max_tokens', or ask the operator for a larger "
        "budget."
    )
    assert len(engine.asked) == ran
    assert (await ask(api, "globex")).status_code == 200
    assert (await ask(api, body=COMPLETION | {"max_tokens": 1})).status_code == 200, "it fits, so it runs"

    await api.services.ledger.write()
    shown = await budget(api, "tenants/acme", tokens=20 + NEEDED, period="total")
    assert (shown["used_tokens"], shown["renews_at"]) == (4 * USED, None)
    assert (await ask(api)).status_code == 200


@on_sqlite
async def test_money_is_counted_by_the_price_table(api: Api) -> None:
    """As the ledger charges it; and answers warn from 80% on."""
    await api.client.put(f"{ADMIN}/usage/prices", json=PRICES, headers=api.auth("operator"))
    await budget(api, "tenants/acme", cost_micros=20, period="month")
    first, second = await ask(api), await ask(api, body=COMPLETION | {"max_tokens": 4})
    assert [answer.headers["x-loraplex-budget-used"] for answer in (first, second)] == ["80%", "90%"]
    refused = await ask(api)
    assert "is 0.00002 EUR, of which 0.000012 EUR are used" in refused.json()["error"]["message"]
    await api.services.ledger.write()
    shown = (await api.client.get("/api/v1/budget", headers=api.auth("acme"))).json()["tenant"]
    assert (shown["used_cost_micros"], shown["currency"], shown["used_tokens"]) == (12, "EUR", 10)


@on_sqlite
@pytest.mark.parametrize("path", ["chat/completions", "embeddings", "messages", "responses"])
async def test_it_holds_for_every_endpoint(api: Api, path: str) -> None:
    """Each in the shape of its errors."""
    await budget(api, "tenants/acme", tokens=1)
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 6}
    bodies = {"embeddings": {"input": [5, 6]}, "responses": {"input": "hi"}}
    refused = await ask(api, path=path, body={"model": "tiny"} | bodies.get(path, chat))
    assert refused.status_code == 429, refused.text
    assert "monthly budget of the tenant `acme` is 1 tokens, of which 0 are used" in refused.text


@on_sqlite
async def test_a_key_and_its_tenant_both_hold(api: Api) -> None:
    """The key's is a part of the tenant's; a budget that is taken away holds nobody."""
    await budget(api, f"keys/{key_id(api, 'acme-chat')}", tokens=NEEDED)
    await budget(api, "tenants/acme", tokens=NEEDED + USED)
    assert (await ask(api, "acme-chat")).status_code == 200
    assert "budget of this API key is 10 tokens" in (await ask(api, "acme-chat")).text
    assert (await ask(api, "acme")).status_code == 200
    assert "budget of the tenant `acme` is 15 tokens" in (await ask(api, "acme")).text
    await budget(api, "tenants/acme")
    assert (await ask(api, "acme")).status_code == 200
    assert code(await ask(api, "acme-chat")) == (429, "insufficient_quota")


@on_sqlite
async def test_requests_at_the_same_time_do_not_overspend(api: Api) -> None:
    """Each holds the most that it may need: of 20 that come at once those run that fit."""
    await budget(api, "tenants/acme", tokens=7 * NEEDED + 1)
    answers = await asyncio.gather(*(ask(api) for _ in range(20)))
    ran = sum(answer.status_code == 200 for answer in answers)
    await api.services.ledger.write()
    shown = (await api.client.get(f"{ADMIN}/tenants/acme/budget", headers=api.auth("operator"))).json()
    assert ran >= 7
    assert shown["used_tokens"] == ran * USED <= 7 * NEEDED + 1


async def test_servers_see_what_the_others_have_written(
    api: Api, database: Database, tmp_path: Path, tiny_model_dir: Path
) -> None:
    """At their next look: until then each goes by its own. What an operator changes on one holds on the others."""
    await budget(api, "tenants/acme", tokens=NEEDED + USED)
    async with run_api(database, tmp_path, tiny_model_dir, keys=api.keys) as other:
        other.services.budgets._clock = clock = Clock()
        assert (await ask(other, "acme")).status_code == 200
        assert [(await ask(api)).status_code for _ in range(3)] == [200, 200, 429]
        await api.services.ledger.write()
        assert (await ask(other)).status_code == 200, "that is the error"
        clock.now += FRESH_SECONDS
        refused = await ask(other)
        assert "of which 20 are used" in refused.text, "both servers', its own not twice"
        await budget(api, "tenants/acme", tokens=20 + NEEDED)
        assert (await ask(other)).status_code == 200


@on_sqlite
async def test_it_starts_anew_with_the_period(api: Api) -> None:
    """A month's at midnight of the first, in UTC, a day's every midnight; what was used in all is never forgotten."""
    keeper = api.services.budgets
    await budget(api, "tenants/acme", tokens=NEEDED)
    assert (await ask(api)).status_code == 200
    refused = await ask(api)
    anew = renewal("month", period_start("month", datetime.now(UTC)))
    assert anew is not None
    assert f"It starts anew at {anew:%Y-%m}-01T00:00:00Z" in refused.json()["error"]["message"]
    await api.services.ledger.write()
    keeper._calendar = lambda: anew - timedelta(microseconds=1)
    assert code(await ask(api)) == (429, "insufficient_quota")
    keeper._calendar = lambda: anew
    assert (await ask(api)).status_code == 200
    await budget(api, "tenants/acme", tokens=NEEDED, period="total")
    assert code(await ask(api)) == (429, "insufficient_quota")
    await budget(api, "tenants/acme", tokens=NEEDED, period="day")
    keeper._calendar = lambda: anew + timedelta(days=1)
    assert (await ask(api)).status_code == 200


@on_sqlite
async def test_lines_of_batches_spend_it_too(api: Api) -> None:
    """Limits they pass by; the budget of their key and tenant they do not, and a refused line is not tried again."""
    await api.client.put(f"{ADMIN}/tenants/acme/limits", json={"requests_per_minute": 1}, headers=api.auth("operator"))
    await budget(api, "tenants/acme", tokens=NEEDED + USED)
    principal = await api.services.tenants.principal_of(key_id(api, "acme"))
    async with OwnRequests(api.app, lambda: principal) as requests:
        answers = [await requests.post("/v1/completions", json.dumps(COMPLETION).encode(), f"b/{i}") for i in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert json.loads(answers[2].body)["error"]["code"] == "insufficient_quota"
    assert answers[2].retry_after_seconds is None


@on_sqlite
async def test_what_did_not_run_gives_back_what_it_held(api: Api) -> None:
    """Refused by a limit, by a ledger that is full: all that was held is there again."""
    await budget(api, "tenants/acme", tokens=NEEDED)
    headers = api.auth("operator")
    await api.client.put(f"{ADMIN}/tenants/acme/limits", json={"tokens_per_minute": 1}, headers=headers)
    assert [code(await ask(api)) for _ in range(2)] == [(429, "rate_limit_exceeded")] * 2
    await api.client.put(f"{ADMIN}/tenants/acme/limits", json={}, headers=headers)
    ledger = api.services.ledger
    most, ledger._max_bytes = ledger._max_bytes, 0
    assert [code(await ask(api)) for _ in range(2)] == [(503, "ledger_full")] * 2
    ledger._max_bytes = most
    assert (await ask(api)).status_code == 200


@on_sqlite
async def test_operators_set_it_by_command(api: Api, database_url: str) -> None:
    """In whole units of money; what is not named stays; a tenant's client sees it and cannot set it."""

    async def run(*words: str) -> str:
        done = await asyncio.to_thread(CliRunner().invoke, main, [*words, "--database-url", database_url])
        return done.output

    assert (await ask(api)).status_code == 200
    await api.services.ledger.write()
    assert "12.5 USD" in await run("tenant", "budget", "acme", "--tokens", "5", "--cost", "12.5", "--period", "day")
    shown = json.loads(await run("tenant", "budget", "acme", "--cost", "none", "--json"))
    assert (shown["tokens"], shown["cost_micros"], shown["period"], shown["used_tokens"]) == (5, None, "day", USED)
    assert code(await ask(api)) == (429, "insufficient_quota")
    assert "give a number such as 250.50, or none" in await run(
        "key", "budget", key_id(api, "acme"), "--cost", "0.0000001"
    )
    refused = await api.client.put(f"{ADMIN}/tenants/acme/budget", json={"tokens": 9}, headers=api.auth("acme"))
    assert refused.status_code == 403
    missing = await api.client.get(f"{ADMIN}/tenants/none/budget", headers=api.auth("operator"))
    assert code(missing) == (404, "tenant_not_found")


async def test_what_was_used_before_there_were_budgets_counts(empty_database_url: str) -> None:
    """The migration makes the days of the hours."""
    await asyncio.to_thread(migrate, empty_database_url, "0018")
    values = "'t', :hour, 'k', 'chat', :adapter, 0, '', 'EUR', 1, 0, 1, 4, 2, 3, 10, 0, 0, 0, 0"
    insert = text(f"INSERT INTO usage_hours VALUES ({values})")
    database = Database(empty_database_url)
    async with database.transaction() as session:
        for hour in (47, 48, 49):
            for adapter in ("", "bot"):
                await session.execute(insert, {"hour": hour, "adapter": adapter})
    await asyncio.to_thread(upgrade_database, empty_database_url)
    async with database.read() as session:
        days = await session.execute(select(*SpendingDay.__table__.columns))
        assert sorted(tuple(row) for row in days) == [
            ("key/k", 1, "EUR", 14, 20),
            ("key/k", 2, "EUR", 28, 40),
            ("tenant/t", 1, "EUR", 14, 20),
            ("tenant/t", 2, "EUR", 28, 40),
        ]
    await database.dispose()


def migrate(url: str, revision: str) -> None:
    with locked_connection(url) as connection:
        command.upgrade(alembic_config(connection), revision)

"""Usage, requests and prices as pages: the ledger's numbers, whose they are, and what forms change."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from api_running import Api, run_api
from browsing import Visitor, signed_in, text_of
from database_fixtures import on_sqlite
from usage_records import record_id, this_hour, write_records

from loraplex.adapters.database import Database

pytestmark = [pytest.mark.anyio, on_sqlite]

EUROS = {"currency": "eur", "prompt": "0.5", "cached": "0.05", "completion": "2"}


@pytest.fixture
async def api(database: Database, tmp_path: Path, tiny_model_dir: Path) -> AsyncIterator[Api]:
    async with run_api(database, tmp_path, tiny_model_dir) as running:
        await write_records(running, database)
        yield running


@pytest.fixture
async def operator(api: Api) -> Visitor:
    return await signed_in(api, "ada")


@pytest.fixture
async def acme_admin(api: Api) -> Visitor:
    return await signed_in(api, "wile", "acme")


async def chart_of(visitor: Visitor, query: str) -> Any:
    shown = await visitor.get(f"/admin/usage?{query}")
    assert shown.status_code == 200
    found = re.search(r'data-chart="([^"]*)"', shown.text)
    return json.loads(unescape(found[1])) if found else None


async def test_the_chart_has_the_ledgers_numbers(operator: Visitor) -> None:
    """By hours up to a week, by days beyond, with nothing where nothing was used."""
    day = await chart_of(operator, "range=24h")
    assert (day["step"], len(day["times"]), day["times"][-1]) == ("hour", 24, this_hour().timestamp())
    assert (day["computed"][-1], day["cached"][-1], day["completion"][-1]) == (1060, 1040, 60)
    assert (day["computed"][-6], day["completion"][-6]) == (7, 3)
    assert (sum(day["computed"]), sum(day["cached"]), sum(day["completion"])) == (1067, 1040, 63)
    month = await chart_of(operator, "range=30d")
    assert (month["step"], len(month["times"]), sum(month["completion"])) == ("day", 30, 563)
    first = (this_hour() - timedelta(days=10)).date()
    [only] = [
        tokens
        for tokens in (await chart_of(operator, f"range=custom&start={first}&end={first}"))["completion"]
        if tokens
    ]
    assert only == 500


async def test_totals_and_tables_say_who_used_what(api: Api, operator: Visitor) -> None:
    """Rates over all requests, and a line for each tenant, adapter and key, the largest first."""
    shown = text_of(await operator.get("/admin/usage"))
    for figure in ("4 requests", "49.4% of them cached", "1 failed, 25.0%", "200 ms to first token"):
        assert figure in shown.replace("\u202f", " "), figure
    assert re.search(r"By tenant .* globex 1 2 000 50.0% 50 0 200 ms acme 3 107", shown.replace("\u202f", " "))
    assert re.search(r"By adapter .* globex/ bot .* acme/ bot .* acme/ base model", shown)
    assert "cost" not in shown


@pytest.mark.parametrize(
    ("query", "completion"),
    [
        ("tenant=acme", 13),
        ("adapter=bot", 60),
        ("tenant=acme&adapter=bot", 10),
        ("adapter=-", 3),
        ("key=KKKKKKKKKKKK", 3),
    ],
)
async def test_filters_leave_out_what_is_not_meant(operator: Visitor, query: str, completion: int) -> None:
    """Of a tenant, of an adapter, of the base, of a key; what is chosen is chosen in the form as well."""
    assert sum((await chart_of(operator, query))["completion"]) == completion
    shown = await operator.get(f"/admin/usage?{query}")
    assert len(re.findall(r"<option[^>]* selected>", shown.text)) == query.count("=")


async def test_tenants_see_their_own_usage_only(api: Api, operator: Visitor, acme_admin: Visitor) -> None:
    """Another tenant's name, key or request is told as one that there is not."""
    assert sum((await chart_of(acme_admin, "range=30d"))["completion"]) == 13
    theirs = f"{(await api.tenant_id('globex'))[:8]}-key"
    for path in ("/admin/usage", "/admin/requests"):
        page = await acme_admin.get(f"{path}?range=30d")
        assert "globex" not in page.text
        assert theirs not in page.text
        told = [await acme_admin.get(f"{path}?tenant={tenant}") for tenant in ("globex", "nobody")]
        assert [answer.status_code for answer in told] == [404, 404]
        assert told[0].text == told[1].text
        by_key = [(await acme_admin.get(f"{path}?key={key}")).text.replace(key, "") for key in (theirs, "x" * 12)]
        assert len({re.sub(r'<select id="key".*?</select>', "", text) for text in by_key}) == 1
    exported = await acme_admin.get("/admin/usage/export?range=30d&what=requests&format=json")
    assert {entry["tenant"] for entry in exported.json()} == {"acme"}
    assert (await acme_admin.get(f"/admin/requests/{record_id(1)}")).status_code == 200
    assert (await operator.get(f"/admin/requests/{record_id(5)}")).status_code == 200


async def test_exports_are_the_apis(api: Api, operator: Visitor) -> None:
    """As files, of what the page shows."""
    first, last = (datetime.now(UTC) - timedelta(days=20)).date(), datetime.now(UTC).date()
    query = f"what=requests&format=csv&tenant=acme&range=custom&start={first}&end={last}"
    own = await operator.get(f"/admin/usage/export?{query}")
    params = {"tenant": "acme", "format": "csv", "start": f"{first}T00:00:00Z", "end": f"{last}T23:59:59Z"}
    theirs = await api.client.get("/api/v1/admin/usage/export", params=params, headers=api.auth("operator"))
    assert own.content == theirs.content
    assert own.headers["content-type"] == theirs.headers["content-type"]
    assert "attachment" in own.headers["content-disposition"]
    assert len((await operator.get("/admin/usage/export?what=sums&format=json&range=30d")).json()) == 4


async def test_the_log_shows_the_newest_first_a_page_at_a_time(
    operator: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older ones follow without gaps; only those that failed, where that is asked for."""
    monkeypatch.setattr("loraplex.platform.web.requests.PAGE_SIZE", 2)
    path, seen = "/admin/requests?range=30d", []
    while path:
        text = (await operator.get(path)).text
        seen += re.findall(r"/admin/requests/0+(\d)", text)
        older = re.search(r'href="([^"]+)">Older', text)
        path = unescape(older[1]) if older else ""
    assert seen == ["5", "2", "1", "3", "4"]
    failed = await operator.get("/admin/requests?errors=1")
    assert re.findall(r"/admin/requests/0+(\d)", failed.text) == ["2"]
    assert "error 503" in text_of(failed)
    part = await operator.get("/admin/requests", headers={"hx-request": "true", "hx-target": "found"})
    assert "<html" not in part.text
    assert "req_5" in part.text
    assert (await operator.get("/admin/requests?after=x")).status_code == 400


async def test_a_request_tells_its_times_and_what_was_said(operator: Visitor, acme_admin: Visitor) -> None:
    """Contents stand there as text, whatever they are, until they are deleted."""
    url = f"/admin/requests/{record_id(1)}"
    shown = await acme_admin.get(url)
    told = text_of(shown).replace("\u202f", " ")
    assert "Queue 20 ms Adapter load 60 ms To the first token 120 ms Decode 800 ms" in told
    assert "acme/bot@3" in told
    assert "&lt;b&gt;Where is it?" in shown.text
    assert "<i>On its way" not in shown.text
    deleted = await acme_admin.submit(url, f"{url}/contents/delete")
    assert "is deleted" in text_of(deleted)
    assert "Nothing is kept" in text_of(deleted)
    assert (await acme_admin.submit(url, f"{url}/contents/delete")).status_code == 404
    assert "no first token" in text_of(await operator.get(f"/admin/requests/{record_id(2)}"))


async def test_prices_are_set_by_forms(api: Api, operator: Visitor) -> None:
    """One price for all, others for some; what makes no sense is refused, and stays in the form."""
    url = "/admin/prices"
    for wrong in (
        {"prompt": "-1"},
        {"prompt": "1e3"},
        {"cached": "0.0000001"},
        {"completion": ""},
        {"currency": "E1R"},
        {"prompt": "", "cached": "", "completion": ""},
    ):
        refused = await operator.submit(url, url, **EUROS | wrong)
        assert refused.status_code == 400, wrong
        assert 'value="0.5"' in refused.text or "prompt" in wrong
    assert (await api.services.prices.get()).default is None
    assert "prices are set" in text_of(await operator.submit(url, url, **EUROS))
    own = {"adapter": "acme/bot", "prompt": "1.25", "cached": "0", "completion": "1000000"}
    assert (await operator.submit(url, f"{url}/adapters", **own | {"adapter": "bot"})).status_code == 400
    shown = text_of(await operator.submit(url, f"{url}/adapters", **own))
    assert "acme/bot 1.25 0.00 1000000.00" in shown
    table = await api.services.prices.get()
    assert (table.currency, table.default.cached, table.adapters["acme/bot"].completion) == ("EUR", 50_000, 10**12)
    await operator.submit(url, f"{url}/adapters/delete", adapter="acme/bot")
    await operator.submit(url, url, currency="EUR")
    assert await api.services.prices.get() == type(table)()


async def test_contents_are_kept_as_long_as_operators_say(api: Api, operator: Visitor, acme_admin: Visitor) -> None:
    """A tenant's people see what holds for them."""
    page, url = "/admin/tenants/acme", "/admin/tenants/acme/contents"
    assert "Nothing is kept" in text_of(await acme_admin.get(page))
    assert "from now on" in text_of(await operator.submit(page, url, days="7"))
    assert "kept for 7 days" in text_of(await acme_admin.get(page))
    assert (await operator.submit(page, url, days="0")).status_code == 400
    await operator.submit(page, f"{url}/delete")
    assert "Nothing is kept" in text_of(await acme_admin.get(f"/admin/requests/{record_id(1)}"))
    await operator.submit(page, url, days="")
    assert await api.services.tenants.content_days("acme") is None


async def test_tenants_and_adapters_show_their_last_month(api: Api, operator: Visitor, acme_admin: Visitor) -> None:
    """With a way to the usage and the requests of theirs alone."""
    for who in ("acme", "globex"):
        await api.client.post("/api/v1/adapters", json={"name": "bot"}, headers=api.auth(who))
    tenant = await operator.get("/admin/tenants/acme")
    assert "Requests 3 Tokens in 107" in text_of(tenant)
    assert "/admin/usage?range=30d&amp;tenant=acme" in tenant.text
    adapter = await acme_admin.get("/admin/adapters/acme/bot")
    assert "Requests 2 Tokens in 100" in text_of(adapter)
    [link] = re.findall(r'href="(/admin/usage\?[^"]+)"', adapter.text)
    assert sum((await chart_of(acme_admin, unescape(link).partition("?")[2]))["completion"]) == 10


@pytest.mark.parametrize("days", ["start=2026-02-30", "start=2026-01-02&end=2026-01-01", "start=2020-01-01", "end=x"])
async def test_days_that_make_no_range_are_refused(operator: Visitor, days: str) -> None:
    """With the field that is wrong."""
    for path in ("/admin/usage", "/admin/requests", "/admin/usage/export"):
        assert (await operator.get(f"{path}?range=custom&{days}")).status_code == 400

"""The story of a first day, in a real browser: what a person reads, presses and types, with no barrier on any page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from api_running import Api, run_api
from browsing import PASSWORD
from chromium import Tab, listening, running_chromium
from database_fixtures import on_sqlite
from usage_records import write_records

from loraplex.adapters.database import Database
from loraplex.engine.client import EngineClient

pytestmark = [pytest.mark.anyio, on_sqlite]


@pytest.fixture
async def api(database: Database, tmp_path: Path, tiny_model_dir: Path) -> AsyncIterator[Api]:
    async with run_api(database, tmp_path, tiny_model_dir) as running:
        yield running


@pytest.fixture
async def tab(api: Api) -> AsyncIterator[Tab]:
    async with listening(api.app) as url, running_chromium() as browser:
        yield Tab(await browser.new_page(), url)


async def test_from_the_set_up_to_the_log_out(
    api: Api, tab: Tab, folder: Path, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    """Set-up, tenant, key, adapter, alias, jobs, log out; each page by axe, nothing in the console."""
    page = tab.page
    await tab.open("/admin")
    await tab.check()
    await tab.fill(token=api.services.setup_token.issue(), login="ada", password=PASSWORD)
    await tab.press("Create account")
    await page.get_by_text("Your account is there").wait_for()
    await tab.check()

    await tab.press("Live engine")
    await page.get_by_text("The engine does not answer").wait_for()
    await tab.check()

    await tab.press("Tenants")
    await tab.check()
    await tab.press("New tenant")
    await tab.check()
    await tab.fill(slug="initech", name="Initech")
    await tab.press("Create tenant")
    await page.get_by_text("The tenant is there").wait_for()
    await tab.check()

    await tab.press("New key")
    await tab.check()
    await tab.fill(name="ci")
    await page.get_by_label("upload and manage adapters").check()
    await tab.press("Create key")
    secret = await page.get_by_label("API key", exact=True).input_value()
    api.keys["initech"] = secret
    await tab.check()
    await tab.press("Done")
    assert secret not in await page.content()
    await tab.check()
    await tab.press("Rotate")
    await tab.check()
    await tab.press("Make a new secret")
    api.keys["initech"] = await page.get_by_label("API key", exact=True).input_value()
    await tab.check()
    await tab.press("Done")
    await tab.press("End now")
    await tab.check()
    await tab.press("End the old secret")
    await page.get_by_text("The old secret has ended").wait_for()
    await tab.press("Edit")
    await tab.check()
    await page.get_by_label("Expires").select_option("in 90 days")
    await tab.press("Save")
    await page.get_by_text("The key is changed").wait_for()

    await tab.press("Limits")
    await tab.check()
    await tab.open("/admin/limits/initech")
    await tab.check()
    await tab.fill(weight="2")
    await page.get_by_label("Adapters kept").fill("20")
    await tab.press("Save")
    await page.get_by_text("Limits and weight hold").wait_for()
    await tab.check()

    await tab.press("People")
    await tab.check()
    await tab.press("New account")
    await tab.check()
    await tab.fill(login="wile")
    await tab.page.get_by_label("Tenant", exact=True).select_option("initech")
    await tab.press("Create account")
    await page.get_by_text("Copy the password now").wait_for()
    await tab.check()
    await tab.press("Done")
    await tab.press("Disable")
    await tab.check()

    await tab.press("Adapters")
    await tab.check()
    await tab.press("New adapter")
    await tab.check()
    await page.get_by_label("Tenant").select_option("initech")
    await tab.fill(name="bot")
    await tab.press("Create adapter")
    await page.get_by_text("No versions yet").wait_for()
    await tab.check()
    assert (await api.upload("initech", "bot", folder)).status_code == 201
    await page.reload()

    await tab.press("New alias")
    await tab.check()
    await tab.press("Create alias")
    await page.get_by_text("The alias has moved").wait_for()
    await tab.check()
    await tab.press("v1")
    await tab.check()
    await page.go_back()

    assert (await api.open_upload("initech", "bot", make_adapter(tmp_path / "next", rank=1))).status_code == 201
    await tab.press("Jobs")
    await tab.check()
    await tab.press("Drop…")
    await tab.check()
    await tab.press("Drop the upload")
    await page.get_by_text("The upload is dropped").wait_for()
    await tab.check()

    await tab.press("Adapters")
    await page.get_by_label("Name").fill("nothing like it")
    await page.get_by_text("Nothing found").wait_for()
    await page.get_by_label("Name").fill("BO")
    await page.get_by_role("link", name="initech/bot").wait_for()
    await tab.check()

    await tab.press("Audit")
    await page.get_by_text("verified to the last").wait_for()
    await page.get_by_label("What", exact=True).select_option("alias.move")
    await tab.press("Show")
    await page.get_by_role("link", name="bot@prod").wait_for()
    await page.locator("summary", has_text="Entry").click()
    await tab.check()
    await tab.press("Settings")
    await page.get_by_role("heading", name="At their defaults").wait_for()
    await tab.check()

    await tab.press("Sign out")
    await page.get_by_text("You are signed out.").wait_for()
    await tab.check()
    await tab.open("/admin/keys")
    await tab.fill(login="ada", password="not my password")
    await tab.press("Sign in")
    await page.get_by_role("alert").wait_for()
    await tab.check()


async def test_everything_is_reached_by_the_keyboard(api: Api, tab: Tab) -> None:
    """The first stop skips to the content; a panel opens by Enter, and Escape leads back to what opened it."""
    await api.services.accounts.create("ada", PASSWORD)
    await tab.open("/admin/login")
    await tab.fill(login="ada", password=PASSWORD)
    await tab.page.keyboard.press("Enter")
    await tab.page.get_by_role("heading", name="Overview").wait_for()
    await tab.page.keyboard.press("Tab")
    await tab.page.keyboard.press("Enter")
    assert await tab.page.evaluate("document.activeElement.id") == "main"
    await tab.open("/admin/tenants/acme")
    summary = tab.page.locator("summary", has_text="Suspend")
    await summary.focus()
    await tab.page.keyboard.press("Enter")
    await tab.page.get_by_role("button", name="Suspend acme").wait_for()
    await tab.page.keyboard.press("Escape")
    assert await summary.evaluate("element => element === document.activeElement")
    assert not await tab.page.get_by_role("button", name="Suspend acme").is_visible()


async def test_an_upload_by_the_page(api: Api, tab: Tab, folder: Path, tmp_path: Path) -> None:
    """Files that are dropped are hashed, sent in pieces and checked: a bad adapter is refused with every reason, a good
    one becomes a version; what was sent once is not sent again."""
    await api.services.accounts.create("wile", PASSWORD, "acme")
    await api.client.post("/api/v1/adapters", json={"name": "bot"}, headers=api.auth("acme"))
    await tab.open("/admin/login")
    await tab.fill(login="wile", password=PASSWORD)
    await tab.press("Sign in")
    await tab.press("Adapters")
    await tab.press("bot")
    await tab.press("Upload the first version")
    await tab.check()
    await tab.page.get_by_text("Drop the files").wait_for()
    bad = tmp_path / "adapter_config.json"
    bad.write_bytes((folder / bad.name).read_bytes().replace(b'"r": 2', b'"r": 3'))
    weights = folder / "adapter_model.safetensors"
    await tab.page.set_input_files("#files", [bad])
    await tab.page.get_by_text("Missing: adapter_model.safetensors").wait_for()
    await tab.page.set_input_files("#files", [bad, weights])
    await tab.page.get_by_role("button", name="Upload").click()
    await tab.page.get_by_text("The adapter was refused").wait_for()
    await tab.check()
    for _ in range(2):
        await tab.open("/admin/adapters/acme/bot/upload")
        await tab.page.set_input_files("#files", [folder / bad.name, weights])
        await tab.page.get_by_role("button", name="Upload").click()
        await tab.page.get_by_role("heading", name="Version 1").wait_for()
    await tab.check()


async def test_usage_is_looked_at_and_narrowed_down(api: Api, database: Database, tab: Tab) -> None:
    """The chart is drawn, another time or tenant is shown as soon as it is chosen, and a request leads to its times;
    operators set prices."""
    page = tab.page
    await write_records(api, database)
    await api.services.accounts.create("ada", PASSWORD)
    await tab.open("/admin/login?next=/admin/usage")
    await tab.fill(login="ada", password=PASSWORD)
    await tab.press("Sign in")
    await page.locator("#chart .u-over").hover()
    await page.locator("#over-time", has_text=":00 UTC").wait_for()
    await page.get_by_text("As a table").click()
    await tab.check()
    await page.get_by_text("30 days", exact=True).click()
    await page.get_by_role("heading", name="Tokens by day").wait_for()
    await page.locator("#chart canvas").wait_for()
    await page.get_by_label("Tenant", exact=True).select_option("acme")
    await page.wait_for_url("**/admin/usage?range=30d&tenant=acme**")
    await page.get_by_role("heading", name="By tenant").wait_for(state="detached")
    await tab.press("Export")
    await tab.check()
    await tab.open("/admin/prices")
    await page.get_by_label("Out").first.fill("free")
    await page.get_by_role("button", name="Set").first.click()
    await page.get_by_role("alert").wait_for()
    await tab.check()

    await tab.press("Requests")
    await tab.check()
    await page.get_by_label("Failed only").click()
    await page.get_by_role("row", name="req_1").wait_for(state="detached")
    await page.get_by_label("Failed only").click()
    await page.get_by_role("row", name="req_1").get_by_role("link").click()
    await page.get_by_role("heading", name="Times").wait_for()
    await tab.check()
    await tab.press("Delete")
    await tab.press("Delete the contents")
    await page.get_by_text("Nothing is kept").wait_for()
    await tab.check()


async def test_the_playground_streams_answers_side_by_side(
    database: Database,
    tiny_model_dir: Path,
    make_adapter: Callable[..., Path],
    tmp_path: Path,
    engine_dir: Path,
    engine: EngineClient,
    new_seed: Callable[[], int],
) -> None:
    """The base and a version answer the same prompt, each with its own text and what it took."""
    async with (
        run_api(database, engine_dir, tiny_model_dir, engine=engine) as api,
        listening(api.app) as url,
        running_chromium() as browser,
    ):
        await api.services.accounts.create("ada", PASSWORD)
        await api.client.post("/api/v1/adapters", json={"name": "bot"}, headers=api.auth("acme"))
        await api.upload("acme", "bot", make_adapter(tmp_path / "peft", seed=new_seed()))
        tab = Tab(await browser.new_page(), url)
        await tab.open("/admin/login?next=/admin/playground")
        await tab.fill(login="ada", password=PASSWORD)
        await tab.press("Sign in")
        await tab.check()
        await tab.page.get_by_label("As the tenant").select_option("acme")
        await tab.press("Show its models")
        await tab.page.get_by_label("Prompt", exact=True).fill("Hello")
        await tab.page.get_by_label("Most tokens").fill("8")
        await tab.press("Ask all")
        answers = tab.page.locator(".answer")
        for number in (0, 1):
            await answers.nth(number).get_by_text("tokens in").wait_for()
        texts = [await answers.nth(number).locator(".text").inner_text() for number in (0, 1)]
        assert len(texts[0]) > 0
        assert texts[0] != texts[1]
        await tab.check()

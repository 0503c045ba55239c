"""The live engine page in a real browser, in front of a real engine at work: what it shows, and that a recording of it
shows the same."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from api_running import Api, run_api
from browsing import PASSWORD
from chromium import Tab, listening, running_chromium
from database_fixtures import on_sqlite

from loraplex.adapters.database import Database
from loraplex.engine.client import EngineClient

pytestmark = [pytest.mark.anyio, on_sqlite]

PAINTED = """canvas => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return data.some((value, index) => index % 4 < 3 && value !== data[index % 4]);
}"""


@pytest.fixture
async def api(database: Database, engine_dir: Path, tiny_model_dir: Path, engine: EngineClient) -> AsyncIterator[Api]:
    async with run_api(database, engine_dir, tiny_model_dir, engine=engine) as running:
        yield running


@pytest.fixture
async def tab(api: Api) -> AsyncIterator[Tab]:
    await api.services.accounts.create("ada", PASSWORD)
    async with listening(api.app) as url, running_chromium() as browser:
        tab = Tab(await browser.new_page(), url)
        await tab.open("/admin/login?next=/admin/live")
        await tab.fill(login="ada", password=PASSWORD)
        yield tab


@asynccontextmanager
async def users(api: Api, models: list[str]) -> AsyncIterator[None]:
    """One for each model, who asks without a pause."""

    async def ask(model: str) -> None:
        body = {"model": model, "prompt": [5, 6, 7, 8], "max_tokens": 300, "ignore_eos": True}
        while True:
            answer = await api.client.post("/v1/completions", json=body, headers=api.auth("acme"))
            assert answer.status_code == 200, answer.text

    asking = [asyncio.create_task(ask(model)) for model in models]
    try:
        yield
        assert not any(task.done() for task in asking)
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


async def test_the_page_shows_the_batch_and_replays_it(
    api: Api, tab: Tab, make_adapter: Callable[..., Path], tmp_path: Path, new_seed: Callable[[], int]
) -> None:
    """Lanes by adapter with their names, pages, tiers, charts and events, without a barrier or a word in the console; a
    recording opens again, shows the same and is refused where it is none."""
    page = tab.page
    await api.client.post("/api/v1/adapters", json={"name": "bot"}, headers=api.auth("acme"))
    await api.upload("acme", "bot", make_adapter(tmp_path / "peft", seed=new_seed()))
    async with users(api, ["tiny", "bot", "bot"]):
        await tab.press("Sign in")
        await page.locator(".lane", has_text="acme/bot@1").nth(1).wait_for()
        await page.locator(".lane", has_text="tiny").first.wait_for()
        await page.locator("#tiers [data-tier=device]", has_text="acme/bot@1").wait_for()
        await page.locator("#events li", has_text="acme/bot@1").first.wait_for()
        for canvas in ("#lanes canvas", "#pages", ".chart canvas"):
            assert await page.locator(canvas).first.evaluate(PAINTED), canvas
        assert await page.locator("[data-figure=running]").inner_text() == "3 of 64"
        await page.get_by_text("Lanes as a table").click()
        await page.locator("#lanes-as-table tbody tr", has_text="acme/bot@1").first.wait_for()
        await tab.press("Pause")
        assert await page.locator("#live-state").inner_text() == "paused"
        await tab.check()
        await tab.press("Go on")
        await tab.press("Record 60 s")
        await page.get_by_text("Save now, 59 s left").wait_for()
        async with page.expect_download() as download:
            await tab.press("Save now")
        recorded = tmp_path / "recording.json"
        await (await download.value).save_as(recorded)
    frames = json.loads(recorded.read_bytes())["frames"]
    assert len(frames) >= 4
    await page.locator("#lanes-none").wait_for()

    await page.set_input_files("#live-open", recorded)
    await page.locator("#replay").wait_for()
    await page.locator(".lane", has_text="acme/bot@1").first.wait_for()
    models = {lane["model"] for frame in frames for lane in frame["lanes"]}
    assert models == {"tiny", "acme/bot@1"}
    await page.locator("#replay-play", has_text="Play").wait_for()  # it has come to the end
    await page.locator("#replay-place").focus()
    await page.keyboard.press("Home")
    assert (await page.locator("#replay-time").inner_text()).startswith("0.0 s of ")
    await page.keyboard.press("End")
    last = [lane["model"] for lane in frames[-1]["lanes"]]
    assert await page.locator(".lane:not(.ended)").count() == len(last)
    await tab.check()
    await tab.press("Back to live")
    await page.locator("#lanes-none").wait_for()

    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"format": "loraplex-live", "version": 2, "frames": []}')
    await page.set_input_files("#live-open", wrong)
    await page.get_by_text("version 2 of the format").wait_for()
    await tab.check()


async def test_a_tenants_people_see_their_part_of_it(api: Api, tab: Tab) -> None:
    """Their own lanes, nothing about memory or steps, and of others one grey part."""
    page = tab.page
    await api.services.accounts.create("road", PASSWORD, "globex")
    async with users(api, ["tiny"]):
        await tab.fill(login="road", password=PASSWORD)
        await tab.press("Sign in")
        await page.locator("#live-state", has_text="live").wait_for()
        await page.get_by_text("held by you; others hold up to 25 %").wait_for()
        assert await page.locator(".lane").count() == 0
        assert await page.locator("[data-figure=step], [data-chart=step], [data-tier=host]").count() == 0
        assert "acme" not in await page.content()
        await tab.check()

"""The live engine over HTTP and in a terminal, in front of a real engine: who may see what runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_running import Api, run_api
from browsing import signed_in
from chromium import listening
from click.testing import CliRunner
from database_fixtures import on_sqlite

from loraplex.adapters.database import Database
from loraplex.engine.client import EngineClient
from loraplex.platform.cli.main import main

pytestmark = [pytest.mark.anyio, on_sqlite]


@pytest.fixture
async def api(database: Database, engine_dir: Path, tiny_model_dir: Path, engine: EngineClient) -> AsyncIterator[Api]:
    async with run_api(database, engine_dir, tiny_model_dir, engine=engine) as running:
        yield running


@asynccontextmanager
async def asked(api: Api, who: str, model: str = "tiny") -> AsyncIterator[None]:
    """A request that runs until the block ends."""
    body = {"model": model, "prompt": [5, 6, 7, 8], "max_tokens": 400, "ignore_eos": True}
    running = asyncio.create_task(api.client.post("/v1/completions", json=body, headers=api.auth(who)))
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def frames_of(url: str, path: str, **options: Any) -> AsyncIterator[dict[str, Any]]:
    async with httpx.AsyncClient(timeout=20) as client, client.stream("GET", url + path, **options) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                yield json.loads(line[6:])


async def test_the_stream_shows_what_runs_to_those_who_may_see_it(
    api: Api, make_adapter: Callable[..., Path], tmp_path: Path, new_seed: Callable[[], int]
) -> None:
    """By an operator's key, and by a session: each tenant's people see their own lane, under the name that it has."""
    await api.client.post("/api/v1/adapters", json={"name": "bot"}, headers=api.auth("acme"))
    await api.upload("acme", "bot", make_adapter(tmp_path / "peft", seed=new_seed()))
    wile, road = await signed_in(api, "wile", "acme"), await signed_in(api, "road", "globex")
    async with listening(api.app) as url, asked(api, "acme", "bot"):
        feed = "/api/v1/admin/engine/live"
        async with aclosing(frames_of(url, feed, headers=api.auth("operator"))) as frames:
            async for frame in frames:
                if frame["lanes"] and frame["steps"]:
                    break
        [running] = frame["lanes"]
        assert (running["tenant"], running["model"]) == ("acme", "acme/bot@1")
        assert frame["adapters"][0]["names"] == ["acme/bot@1"]
        for visitor, models in ((wile, ["acme/bot@1"]), (road, [])):
            cookies = dict(visitor.client.cookies)
            async with aclosing(frames_of(url, "/admin/feeds/live", cookies=cookies)) as frames:
                seen = await anext(frames)
            assert [found["model"] for found in seen["lanes"]] == models
            assert ("bot" in json.dumps(seen)) == bool(models)
        async with httpx.AsyncClient() as client:
            assert (await client.get(url + feed, headers=api.auth("acme"))).status_code == 403
            refused = await client.get(url + "/admin/feeds/live")
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "signed_out")
    assert api.services.live.viewers == 0


async def test_a_server_that_shuts_down_ends_the_streams(api: Api) -> None:
    """So that nobody who only looks holds up its end."""
    async with listening(api.app) as url:
        frames = frames_of(url, "/api/v1/admin/engine/live", headers=api.auth("operator"))
        async with aclosing(frames), asyncio.timeout(10):
            await anext(frames)
            api.drain.set()
            assert [frame async for frame in frames][-1] == {}, "the event `end`"


async def test_top_prints_one_picture(api: Api) -> None:
    """In plain text for scripts; a key that may not see it is told so."""
    async with listening(api.app) as url, asked(api, "acme"):
        runner = CliRunner()

        def top(who: str) -> Any:
            return runner.invoke(main, ["top", "--once", "--url", url, "--key", api.keys[who]])

        shown = await asyncio.to_thread(top, "operator")
        assert shown.exit_code == 0, shown.output
        assert "running 1/64" in shown.output
        assert "KV pages  [" in shown.output
        assert "■ tiny" in shown.output
        assert "\x1b" not in shown.output
        refused = await asyncio.to_thread(top, "acme")
        assert (refused.exit_code, "admin" in refused.output) == (1, True)

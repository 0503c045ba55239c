"""What a running server does beside requests: it takes part in what the registry, its engine and other servers tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from api_running import StandingEngine, ready_of, run_api
from database_fixtures import on_sqlite

from loraplex.adapters import changes
from loraplex.adapters.database import Database
from loraplex.adapters.pin_registry import PinRegistry
from loraplex.engine.client import EngineClient
from loraplex.engine.models.config import ModelConfig, lora_shape
from loraplex.platform.quarantine import REASON
from loraplex.platform.server import bind, run_server
from loraplex.platform.services import Services
from loraplex.platform.settings import Settings

pytestmark = [pytest.mark.anyio, on_sqlite]

DEADLINE_SECONDS = 60


@asynccontextmanager
async def serving(settings: Settings, model: Path, engine: StandingEngine) -> AsyncIterator[Services]:
    """A server until its engine gives up."""
    announced = asyncio.Queue[Services]()
    async with asyncio.timeout(DEADLINE_SECONDS), asyncio.TaskGroup() as tasks:
        server = tasks.create_task(run_server(settings, model, bind("127.0.0.1", 0), announced.put_nowait))
        yield await announced.get()
        engine.given_up.set()
        assert await server == 1


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    while not await condition():  # noqa: ASYNC110 - tasks of the server bring it about
        await asyncio.sleep(0.01)


async def test_crashers_are_quarantined_and_forgiven_and_pins_followed(
    database: Database,
    database_url: str,
    tmp_path: Path,
    tiny_model_dir: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the engine tells of is taken out, what an operator releases it is told of, and it pins what the rows say."""
    async with run_api(database, tmp_path, tiny_model_dir) as api:
        await api.client.post("/api/v1/adapters", json={"name": "bot"}, headers=api.auth("acme"))
        digest = (await api.upload("acme", "bot", folder)).json()["digest"]
        acme = await api.tenant_id("acme")
    later = datetime.now(UTC) + timedelta(hours=1)
    version = await api.services.registry.get_version(acme, "bot", 1)
    await PinRegistry(database).put(version, later)
    engine = StandingEngine(ready_of(lora_shape(ModelConfig.from_folder(tiny_model_dir))))

    async def start(*_: Any, **__: Any) -> StandingEngine:
        return engine

    monkeypatch.setattr(EngineClient, "start", start)
    monkeypatch.setattr(changes, "POLL_SECONDS", 0.01)
    settings = Settings(data_dir=tmp_path, served_model_name="tiny", database_url=database_url)  # type: ignore[arg-type]
    async with serving(settings, tiny_model_dir, engine) as services:

        async def has(state: str, pins: dict[tuple[str, str], float]) -> bool:
            found = await services.registry.get_version(acme, "bot", 1)
            return (found.state, engine.pins) == (state, pins)

        await until(lambda: has("ready", {(digest, acme): later.timestamp()}))
        engine.quarantined.put_nowait(digest)
        await until(lambda: has("quarantined", {}))
        assert (await services.registry.get_version(acme, "bot", 1)).state_reason == REASON
        assert engine.forgiven == []

        await services.quarantine.end(digest, "the engine was mended")

        async def is_forgiven() -> bool:
            return engine.forgiven == [digest]

        await until(is_forgiven)

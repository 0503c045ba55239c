"""Where versions are, as their tenant and as operators see it; pins and evictions; over a real engine."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from api_running import Api, StandingEngine, run_api
from database_fixtures import on_sqlite

from loraplex.adapters.database import Database
from loraplex.adapters.pin_registry import PinInfo, PinRegistry
from loraplex.engine.client import EngineClient, EngineUnavailable
from loraplex.engine.messages import Decision, Ready, Refusal
from loraplex.engine.settings import EngineSettings
from loraplex.platform.deletions import Deletions
from loraplex.platform.manage import engine_answers
from loraplex.platform.pins import PinKeeper

pytestmark = [pytest.mark.anyio, on_sqlite]

DEADLINE_SECONDS = 60
ONE_ADAPTER = 2 * 1024 * 8 * 4  # bytes of rank 8 on all modules of the tiny model, fp32


@pytest.fixture(scope="session")
def peft(tmp_path_factory: pytest.TempPathFactory, make_adapter: Callable[..., Path]) -> list[Path]:
    """Three adapters of one size."""
    folder = tmp_path_factory.mktemp("residency")
    return [make_adapter(folder / str(seed), rank=8, seed=seed) for seed in range(3)]


@pytest.fixture
def settings(tiny_model_dir: Path, tmp_path: Path) -> EngineSettings:
    """Room for eight adapters, two of which a tenant may pin, and three all tenants."""
    return EngineSettings(
        model_path=str(tiny_model_dir),
        adapter_blobs=str(tmp_path / "adapters"),
        kv_cache_bytes=4 << 20,
        adapter_device_bytes=8 * ONE_ADAPTER,
        pinned_share=3 / 8,
        pinned_share_per_tenant=2 / 8,
        kernels="reference",
    )


@pytest.fixture
async def api(database: Database, tmp_path: Path, tiny_model_dir: Path, settings: EngineSettings) -> AsyncIterator[Api]:
    engine = await EngineClient.start(settings)
    try:
        async with run_api(database, tmp_path, tiny_model_dir, engine=engine) as running:
            yield running
    finally:
        await engine.stop()


async def publish(api: Api, who: str, name: str, *folders: Path) -> None:
    await api.client.post("/api/v1/adapters", json={"name": name}, headers=api.auth(who))
    for folder in folders:
        assert (await api.upload(who, name, folder)).status_code == 201


async def act(api: Api, who: str, method: str, path: str, **options: Any) -> Any:
    """Status and body of a call of the residency API."""
    response = await api.client.request(method, f"/api/v1/adapters/{path}", headers=api.auth(who), **options)
    return response.status_code, response.json() if response.content else None


async def view(api: Api, who: str, path: str) -> dict[str, Any]:
    status, body = await act(api, who, "GET", f"{path}/residency")
    assert status == 200
    return body


async def overview(api: Api) -> dict[str, Any]:
    response = await api.client.get("/api/v1/admin/residency", headers=api.auth("operator"))
    assert response.status_code == 200
    return response.json()


async def chat(api: Api, who: str, model: str, **options: Any) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, **options}
    response = await api.client.post("/v1/chat/completions", json=body, headers=api.auth(who))
    assert response.status_code == 200, response.text
    return response


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not await condition():  # noqa: ASYNC110 - what is polled lives in another process
            await asyncio.sleep(0.02)


def waits(response: Any) -> tuple[str | None, bool | None]:
    """The state of the adapter, and whether the request waited for it, as the headers say."""
    load_ms, queue_ms = (response.headers.get(f"x-loraplex-{kind}-ms") for kind in ("load", "queue"))
    assert (load_ms is None) == (queue_ms is None)
    if load_ms is None or queue_ms is None:
        return None, None
    assert int(queue_ms) >= 0
    return response.headers["x-loraplex-adapter-state"], int(load_ms) > 0


async def test_answers_tell_whether_their_adapter_was_there(
    api: Api, peft: list[Path], make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    """Cold at first, then warm, streamed or not; what was waited for is in the view and the metrics. Neither, of the
    base and of an adapter that the prompt does not invoke, which is not loaded."""
    await publish(api, "acme", "bot", peft[0])
    fresh = await view(api, "acme", "bot/versions/1")
    assert (fresh["tier"], fresh["device_bytes"], fresh["host_bytes"]) == ("device", ONE_ADAPTER, ONE_ADAPTER)
    assert fresh["disk_bytes"] > ONE_ADAPTER
    assert (fresh["leases"], fresh["loads"], fresh["last_used_at"], fresh["last_load_ms"]) == (0, 0, None, None)

    seen = []
    for stream in (False, True):
        status, evicted = await act(api, "acme", "POST", "bot/versions/1/evict")
        assert (status, evicted["tier"], evicted["device_bytes"], evicted["host_bytes"]) == (200, "disk", 0, 0)
        seen += [waits(await chat(api, "acme", "bot", stream=stream)) for _ in range(2)]
    waiting = make_adapter(tmp_path / "alora", rank=1, modules=["q_proj"], alora_invocation_tokens=[200, 201])
    await publish(api, "acme", "alora", waiting)
    await act(api, "acme", "POST", "alora/versions/1/evict")
    for model, version in (("tiny", None), ("alora", "acme/alora@1")):
        answer = await chat(api, "acme", model)
        assert answer.headers.get("x-adapter-version") == version
        seen.append(waits(answer))

    assert seen == [("cold", True), ("warm", False)] * 2 + [(None, None)] * 2
    assert (await view(api, "acme", "alora/versions/1"))["tier"] == "disk"
    used = await view(api, "acme", "bot/versions/1")
    assert (used["tier"], used["loads"], used["leases"]) == ("device", 2, 0)
    assert 0 < used["last_load_ms"]["read"] < used["last_load_ms"]["total"]
    metrics = (await api.client.get("/metrics")).text
    assert 'loraplex_adapter_load_seconds_bucket{le="0.0"} 2.0' in metrics
    assert "loraplex_adapter_load_seconds_count 4.0" in metrics
    assert "loraplex_queue_seconds_count 6.0" in metrics


async def test_tenants_with_the_same_bytes_do_not_learn_of_each_other(api: Api, peft: list[Path]) -> None:
    """Numbers, pins and places do not show the twin, an eviction does not take its memory; operators see both."""
    await publish(api, "acme", "mine", peft[0])
    await publish(api, "globex", "yours", peft[0])
    status, gone = await act(api, "globex", "POST", "yours/versions/1/evict")
    assert (status, gone["tier"], gone["device_bytes"], gone["host_bytes"]) == (200, "disk", 0, 0)
    assert (await view(api, "acme", "mine/versions/1"))["tier"] == "device"

    assert waits(await chat(api, "acme", "mine")) == ("warm", False)
    assert (await act(api, "acme", "PUT", "mine/versions/1/pin", json={"seconds": 600}))[0] == 200
    assert (await view(api, "globex", "yours/versions/1")) == gone
    assert (await act(api, "globex", "POST", "yours/versions/1/evict")) == (200, gone)
    assert (await act(api, "acme", "POST", "mine/versions/1/evict"))[0] == 409

    data = (await overview(api))["data"]
    assert [entry["versions"] for entry in data] == [["acme/mine@1", "globex/yours@1"]]
    assert (data[0]["tier"], data[0]["pins"], data[0]["loads"]) == ("device", 1, 1)
    await chat(api, "globex", "yours")
    brought = await view(api, "globex", "yours/versions/1")
    assert (brought["tier"], brought["pinned_until"], brought["loads"]) == ("device", None, 0)
    foreign = await act(api, "globex", "GET", "mine/versions/1/residency")
    assert foreign[0] == 404


async def test_pins_hold_as_far_as_they_may(api: Api, peft: list[Path]) -> None:
    """They are bounded for a tenant and for all, outlive the engine, and go with their version; a running request or a
    pin keeps its memory from eviction."""
    await publish(api, "acme", "bot", *peft)
    await publish(api, "globex", "bot", peft[2], peft[1])

    async def pin(who: str, number: int, seconds: Any = 600) -> tuple[int, Any]:
        return await act(api, who, "PUT", f"bot/versions/{number}/pin", json={"seconds": seconds})

    for wrong in (0, 604801, "x", 1.5, None):
        assert (await pin("acme", 1, wrong))[1]["error"]["param"] == "seconds"
    assert [(await pin("acme", number))[0] for number in (1, 2, 1)] == [200, 200, 200]
    status, refused = await pin("acme", 3)
    assert (status, refused["error"]["code"]) == (409, "pins_exceeded")
    assert "your pins would take" in refused["error"]["message"]
    assert (await pin("globex", 1))[0] == 200
    status, refused = await pin("globex", 2)
    assert (status, refused["error"]["code"]) == (409, "pins_exceeded")
    assert "all tenants' pins together" in refused["error"]["message"]
    listed = (await act(api, "acme", "GET", "bot/residency"))[1]["data"]
    assert [(entry["version"], entry["pinned_until"] is not None) for entry in listed] == [
        (3, False),
        (2, True),
        (1, True),
    ]
    status, kept = await act(api, "acme", "POST", "bot/versions/1/evict")
    assert (status, kept["error"]["code"]) == (409, "adapter_pinned")

    engine = api.services.engine
    os.kill(engine.pid, signal.SIGKILL)
    await until(lambda: has_pins(engine, 3))
    assert (await act(api, "acme", "DELETE", "bot/versions/1/pin"))[0] == 204
    assert (await act(api, "acme", "POST", "bot/versions/1/evict"))[1]["tier"] == "disk"
    assert (await act(api, "acme", "DELETE", "bot/versions/2"))[0] == 204
    await api.services.pins.sync()
    await until(lambda: has_pins(engine, 1))

    use = api.services.uses
    version = await api.services.registry.get_version(await api.tenant_id("acme"), "bot", 1)
    use.begin(version.tenant_id, [version.digest])
    status, used = await act(api, "acme", "POST", "bot/versions/1/evict")
    assert (status, used["error"]["code"]) == (409, "adapter_in_use")


async def test_another_server_pins_what_the_database_says(
    api: Api, peft: list[Path], database: Database, settings: EngineSettings
) -> None:
    """When it starts, and when it is told that something has changed."""
    await publish(api, "acme", "bot", peft[0])
    assert (await act(api, "acme", "PUT", "bot/versions/1/pin", json={"seconds": 600}))[0] == 200
    other = await EngineClient.start(settings)
    try:
        keeper = PinKeeper(PinRegistry(database), other, api.services.changes, "tiny")
        following = asyncio.create_task(keeper.follow())
        await until(lambda: has_pins(other, 1))
        assert (await act(api, "acme", "DELETE", "bot/versions/1/pin"))[0] == 204
        await api.services.changes.look()
        await until(lambda: has_pins(other, 0))
        following.cancel()
    finally:
        await other.stop()


async def test_what_is_deleted_leaves_the_memory(api: Api, peft: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Once its pin has ended, which goes with it; bytes that somebody else has a version of stay."""
    monkeypatch.setattr("loraplex.platform.deletions.RETRY_SECONDS", 0.01)
    engine, changes = api.services.engine, api.services.changes
    following = asyncio.create_task(Deletions(changes, api.services.registry, engine).follow())
    await publish(api, "acme", "bot", *peft)
    await publish(api, "globex", "twin", peft[2])
    first, second, third = (await api.services.registry.get_adapter(await api.tenant_id("acme"), "bot")).versions
    assert (await act(api, "acme", "PUT", "bot/versions/2/pin", json={"seconds": 600}))[0] == 200

    async def in_memory(*digests: str) -> bool:
        return {found.digest for found in await engine.locate()} == set(digests)

    assert await in_memory(first.digest, second.digest, third.digest)
    assert (await act(api, "acme", "DELETE", "bot"))[0] == 204
    await changes.look()
    await until(lambda: in_memory(second.digest, third.digest))
    await api.services.pins.sync()
    await until(lambda: in_memory(third.digest))
    following.cancel()


async def test_while_the_engine_is_down_versions_are_on_the_disk(
    database: Database, tmp_path: Path, tiny_model_dir: Path, peft: list[Path]
) -> None:
    """Tenants still get an answer; operators are told when to ask again; a pin is not taken, and one that holds stays
    as it was."""
    pins = PinRegistry(database)
    async with run_api(database, tmp_path, tiny_model_dir) as standing:
        await publish(standing, "acme", "bot", peft[0])
        found = await view(standing, "acme", "bot/versions/1")
        assert (found["tier"], found["is_loading"], found["disk_bytes"] > 0) == ("disk", False, True)
        down = await standing.client.get("/api/v1/admin/residency", headers=standing.auth("operator"))
        assert (down.status_code, down.json()["error"]["code"]) == (503, "engine_unavailable")
        before: list[PinInfo] = []
        for _ in range(2):
            status, refused = await act(standing, "acme", "PUT", "bot/versions/1/pin", json={"seconds": 600})
            assert (status, refused["error"]["code"]) == (503, "engine_unavailable")
            assert await pins.on_base("tiny") == before
            version = await standing.services.registry.get_version(await standing.tenant_id("acme"), "bot", 1)
            await pins.put(version, datetime.now(UTC) + timedelta(hours=1))
            before = await pins.on_base("tiny")


async def test_nobody_waits_for_an_engine_that_does_not_answer(
    database: Database, tmp_path: Path, tiny_model_dir: Path, peft: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An eviction is 503 after a while, as a look at all that is there is."""
    monkeypatch.setattr(engine_answers, "ENGINE_SECONDS", 0.01)
    async with run_api(database, tmp_path, tiny_model_dir) as stalled:
        await publish(stalled, "acme", "bot", peft[0])
        for question in ("evict", "locate"):
            monkeypatch.setattr(stalled.services.engine, question, never, raising=False)
        evicted = await act(stalled, "acme", "POST", "bot/versions/1/evict")
        seen = await stalled.client.get("/api/v1/admin/residency", headers=stalled.auth("operator"))
    for status, body in (evicted, (seen.status_code, seen.json())):
        assert (status, body["error"]["code"]) == (503, "engine_unavailable")


async def never(*_: Any) -> Any:
    await asyncio.Event().wait()


class RefusingEngine(StandingEngine):
    """It counts how often it was asked to pin each version."""

    def __init__(self, ready: Ready) -> None:
        super().__init__(ready)
        self.asked_for: Counter[str] = Counter()

    def pin(self, adapter: str, owner: str, until: float) -> asyncio.Future[Any]:
        self.asked_for[adapter] += 1
        answer = asyncio.get_running_loop().create_future()
        answer.set_result(Decision(0, Refusal("pins_exceeded", "there is no room")))
        return answer


async def test_what_the_engine_refuses_to_pin_it_is_not_asked_at_once_again(
    database: Database, tmp_path: Path, tiny_model_dir: Path, peft: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for another time, and after a while: there may be room then."""
    async with run_api(database, tmp_path, tiny_model_dir) as standing:
        await publish(standing, "acme", "bot", peft[0])
        version = await standing.services.registry.get_version(await standing.tenant_id("acme"), "bot", 1)
        pins, engine = PinRegistry(database), RefusingEngine(standing.services.engine.ready)
        keeper = PinKeeper(pins, engine, standing.services.changes, "tiny")  # type: ignore[arg-type]
        for hours, asked in ((1, 1), (2, 2)):
            await pins.put(version, datetime.now(UTC) + timedelta(hours=hours))
            for _ in range(3):
                await keeper.sync()
            assert engine.asked_for == {version.digest: asked}

        monkeypatch.setattr("loraplex.platform.pins.SYNC_SECONDS", 0.01)
        following = asyncio.create_task(keeper.follow())
        async with asyncio.timeout(DEADLINE_SECONDS):
            while engine.asked_for[version.digest] < 4:  # noqa: ASYNC110 - the task asks
                await asyncio.sleep(0.01)
        following.cancel()


async def has_pins(engine: EngineClient, count: int) -> bool:
    """So many adapters are pinned, and on the device."""
    try:
        located = await engine.locate()
    except EngineUnavailable:
        return False
    return sum(found.pins > 0 and found.device_bytes > 0 for found in located) == count

"""Imports from a hub over the API: asked for, run as jobs, and told about; nothing leaves what the operator allows."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from api_running import Api, run_api
from clock import Clock
from database_fixtures import on_sqlite
from hub_server import COMMIT, SIGNATURE, Hub, running_hub

from loraplex.adapters.blobs import CONFIG_FILE, WEIGHTS_FILE, Staging
from loraplex.adapters.database import Database
from loraplex.adapters.errors import LeaseLost
from loraplex.adapters.import_leases import ImportLeases
from loraplex.adapters.schema import now
from loraplex.platform import job_workers, publishing
from loraplex.platform.app import create_app
from loraplex.platform.imports import worker
from loraplex.platform.logging import configure_logging
from loraplex.platform.proof import Proof
from loraplex.platform.services import Services

pytestmark = [pytest.mark.anyio, on_sqlite]

IMPORTS = "/api/v1/imports"
SOURCE = f"hf://acme/bot@{COMMIT}"


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    with running_hub() as hub:
        hub.add("acme/bot", folder)
        yield hub


@asynccontextmanager
async def importing_api(
    database: Database, tmp_path: Path, model: Path, hub: Hub, **settings: Any
) -> AsyncIterator[Api]:
    settings = {"import_sources": "hf://acme/", "hf_endpoint": hub.url, "max_adapter_bytes": "256KiB"} | settings
    async with run_api(database, tmp_path, model, **settings) as api:
        await api.client.post("/api/v1/adapters", json={"name": "bot"}, headers=api.auth("acme"))
        yield api


@pytest.fixture
async def api(database: Database, tmp_path: Path, tiny_model_dir: Path, hub: Hub) -> AsyncIterator[Api]:
    async with importing_api(database, tmp_path, tiny_model_dir, hub, hf_token=hub.token) as running:
        yield running


async def ask(api: Api, source: str = SOURCE, adapter: str = "bot", who: str = "acme") -> Any:
    return await api.client.post(IMPORTS, json={"adapter": adapter, "source": source}, headers=api.auth(who))


async def look(api: Api, job: dict[str, Any]) -> dict[str, Any]:
    return (await api.client.get(f"{IMPORTS}/{job['id']}", headers=api.auth("acme"))).json()


async def run(api: Api, source: str = SOURCE) -> dict[str, Any]:
    """A job after its first attempt."""
    asked = await ask(api, source)
    assert asked.status_code == 202, asked.text
    assert await worker.run_next(api.services)
    return await look(api, asked.json())


def later(api: Api, database: Database) -> Services:
    """The same server in an hour."""
    leases = ImportLeases(database, lambda: now() + timedelta(hours=1))
    return replace(api.services, import_leases=leases)


async def versions(api: Api) -> list[dict[str, Any]]:
    return (await api.client.get("/api/v1/adapters/bot/versions", headers=api.auth("acme"))).json()["data"]


def left_behind(api: Api) -> list[Path]:
    return [path for path in api.services.settings.adapters_dir.rglob("*") if path.is_file()]


async def test_an_import_becomes_a_version_like_an_upload(api: Api, hub: Hub, folder: Path) -> None:
    """202 and a job; in the end the version that an upload of the same files gives, and both files as progress."""
    asked = await ask(api)
    job = asked.json()
    assert (asked.status_code, job["state"], job["source"], job["attempt"]) == (202, "queued", SOURCE, 0)
    assert await worker.run_next(api.services)
    ended = await look(api, job)
    assert (ended["state"], ended["version"], ended["version_state"], ended["error"]) == ("succeeded", 1, "ready", None)
    size = sum((folder / name).stat().st_size for name in ("adapter_config.json", "adapter_model.safetensors"))
    assert (ended["file"], ended["bytes_done"], ended["bytes_total"]) == ("adapter_model.safetensors", size, size)
    uploaded = (await api.upload("acme", "bot", folder)).json()
    assert [(version["version"], version["digest"]) for version in await versions(api)] == [(1, uploaded["digest"])]
    assert not await worker.run_next(api.services)
    listed = (await api.client.get(IMPORTS, headers=api.auth("acme"))).json()
    assert listed == {"data": [ended], "next": None}


async def test_an_import_brings_the_adapters_own_chat_template(api: Api, hub: Hub) -> None:
    """As an upload of the same folder would; from a repository without one the version has the base's."""
    hub.repos["acme/bot", COMMIT]["chat_template.jinja"] = b"{% for m in messages %}{{ m.content }};{% endfor %}"
    assert (await run(api))["state"] == "succeeded"

    profile = (await api.client.get("/api/v1/adapters/bot/versions/1/profile", headers=api.auth("acme"))).json()
    assert profile["chat_template"] == "{% for m in messages %}{{ m.content }};{% endfor %}"


async def test_a_branch_is_kept_as_the_commit_that_it_stood_for(api: Api, hub: Hub) -> None:
    """`@main`, the default, is looked up when the job begins; a repeated attempt then asks for the commit."""
    hub.cuts = [0]
    waiting = await run(api, "hf://acme/bot")
    assert (waiting["state"], waiting["source"]) == ("queued", SOURCE)
    assert (await run(api, "hf://acme/bot@main"))["source"] == SOURCE
    assert (await run(api, "hf://acme/bot@nowhere"))["error"]["code"] == "source_not_found"


async def test_the_token_goes_to_the_hub_alone_and_is_told_nowhere(
    api: Api, hub: Hub, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    """Private repositories work; the host of the content, the log at its chattiest and the rows see no secret."""
    root, level = logging.getLogger(), logging.getLogger().level
    handlers = list(root.handlers)
    configure_logging("debug", "json")
    try:
        hub.private = {"acme/bot"}
        assert (await run(api))["state"] == "succeeded"
        hub.cuts = [0]
        assert (await run(api))["state"] == "queued"
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.reset_defaults()
    for path, headers in hub.asked:
        assert (headers["Authorization"] is None) == path.startswith("/content/")
    logged = capsys.readouterr().err
    assert "import_begun" in logged
    jobs = (await api.client.get(IMPORTS, headers=api.auth("acme"))).text
    for secret in (hub.token, SIGNATURE):
        assert secret not in logged
        assert secret not in jobs
        assert secret not in repr(api.services.settings)


async def test_a_broken_connection_is_taken_up_where_it_broke(api: Api, hub: Hub, folder: Path) -> None:
    """By ranges, within one attempt; a file whose bytes are not those that the hub announced is not taken."""
    half = (folder / "adapter_model.safetensors").stat().st_size // 2
    hub.cuts = [half, 10]
    assert (await run(api))["state"] == "succeeded"
    ranges = [headers["Range"] for path, headers in hub.asked if path.startswith("/content/")]
    assert ranges == [None, f"bytes={half}-", f"bytes={half + 10}-"]
    hub.sha256 = "0" * 64
    damaged = await run(api)
    assert (damaged["state"], damaged["error"]["code"]) == ("queued", "source_unavailable")


async def test_what_may_pass_is_tried_again_and_what_lasts_is_not(api: Api, hub: Hub, database: Database) -> None:
    """5xx and 429 queue the job again, no sooner than the hub asks; 404, 401, 403 and circles end it at once."""
    for status in (500, 503, 429):
        hub.failures = [status]
        waiting = await run(api)
        assert (waiting["state"], waiting["error"]["code"]) == ("queued", "source_unavailable")
        assert not await worker.run_next(api.services), "it is not due yet"
    hub.private, hub.moved = {"acme/private"}, {"acme/circle": "acme/circle", "acme/old": "evil/bot"}
    hub.token = "another"
    for source, code in (
        (f"hf://acme/none@{COMMIT}", "source_not_found"),
        (f"hf://acme/bot@{COMMIT[::-1]}", "source_not_found"),
        ("hf://acme/private", "source_forbidden"),
        ("hf://acme/circle", "source_refused"),
        ("hf://acme/old", "source_not_found"),
    ):
        failed = await run(api, source)
        assert (failed["state"], failed["error"]["code"], failed["attempt"]) == ("failed", code, 1), source
    assert await versions(api) == []
    assert left_behind(api) == []
    while await worker.run_next(later(api, database)):
        pass
    states = [job["state"] for job in (await api.client.get(IMPORTS, headers=api.auth("acme"))).json()["data"]]
    assert states == ["failed"] * 5 + ["succeeded"] * 3


async def test_each_attempt_waits_longer_than_the_one_before(api: Api, hub: Hub, database: Database) -> None:
    """5, 10, 20 and 40 seconds; the first longer, since the hub asks for 7."""
    hub.failures = [503] * 4
    job = (await ask(api)).json()
    clock, begun = Clock(), now()
    leases = ImportLeases(database, lambda: begun + timedelta(seconds=clock.now))
    services = replace(api.services, import_leases=leases)
    for due, seconds in ((True, 0.0), *((is_due, s) for s in (7, 17, 37, 77) for is_due in (False, True))):
        clock.now = seconds if due else seconds - 0.1
        assert await worker.run_next(services) == due, clock.now
    ended = await look(api, job)
    assert (ended["state"], ended["attempt"]) == ("succeeded", 5)


async def test_an_adapter_that_fails_its_checks_fails_the_import(api: Api, hub: Hub) -> None:
    """`adapter_invalid` with every failed check, as an upload tells it; nothing stays behind."""
    config = json.loads(hub.repos["acme/bot", COMMIT]["adapter_config.json"]) | {"use_qalora": True}
    hub.repos["acme/bad", COMMIT] = {
        "adapter_config.json": json.dumps(config).encode(),
        "adapter_model.safetensors": b"\x80\x04\x95cos\nsystem\n." * 100,
    }
    failed = await run(api, f"hf://acme/bad@{COMMIT}")
    assert (failed["state"], failed["error"]["code"], failed["version"]) == ("failed", "adapter_invalid", None)
    assert {"qalora_unsupported"} < {check["code"] for check in failed["error"]["details"]}
    assert left_behind(api) == []


async def test_a_rejection_that_no_server_lived_to_tell_is_told(
    api: Api, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the engine found fails the import, also when another server has to say so, from the version's state."""

    async def refuse(*_: object) -> Proof:
        return Proof([{"code": "no_effect", "message": "it changes nothing"}])

    async def die(*_: object) -> None:
        raise LeaseLost("as if its server had died")

    monkeypatch.setattr(api.services.prover, "prove", refuse)
    with monkeypatch.context() as context:
        context.setattr(worker, "_settle", die)
        job = await run(api)
    assert (job["state"], job["version"], job["version_state"]) == ("running", 1, "rejected")
    assert await worker.run_next(later(api, database))
    failed = await look(api, job)
    assert (failed["state"], failed["error"]["code"]) == ("failed", "adapter_invalid")
    assert "changes nothing" in failed["error"]["details"][0]["message"]


async def test_sizes_are_bounded_before_anything_is_fetched(api: Api, hub: Hub) -> None:
    """What the hub announces as too large is not asked for."""
    hub.repos["acme/bot", COMMIT]["adapter_model.safetensors"] = bytes(api.services.settings.max_adapter_bytes + 1)
    failed = await run(api)
    assert (failed["state"], failed["error"]["code"]) == ("failed", "source_too_large")
    assert not any(path.startswith("/content/") for path, _ in hub.asked)


@asynccontextmanager
async def halfway(
    api: Api, hub: Hub, work: Callable[[], Any]
) -> AsyncIterator[tuple[dict[str, Any], asyncio.Task[Any]]]:
    """A job whose weights are being fetched, and the task that does so."""
    job = (await ask(api)).json()
    hub.proceed.clear()
    task = asyncio.create_task(work())
    async with asyncio.timeout(30):
        while not any(path.startswith("/content/") for path, _ in hub.asked):  # noqa: ASYNC110 - another thread's list
            await asyncio.sleep(0.01)
    yield job, task


async def test_a_cancelled_import_stops(api: Api, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it runs as well as before; no version appears and no file stays."""
    monkeypatch.setattr(job_workers, "RENEW_SECONDS", 0.01)
    async with halfway(api, hub, lambda: worker.run_next(api.services)) as (job, task):
        cancelled = await api.client.delete(f"{IMPORTS}/{job['id']}", headers=api.auth("acme"))
        assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
        assert await task
    assert (await look(api, job))["state"] == "cancelled"
    assert (await versions(api), left_behind(api)) == ([], [])


async def test_a_draining_server_gives_its_imports_back(api: Api, hub: Hub) -> None:
    """At once, uncounted, and for any server to take up again."""
    async with halfway(api, hub, lambda: worker.run_imports(api.services, api.drain)) as (job, task):
        assert (await look(api, job))["state"] == "running"
        api.drain.set()
        await task
    given_back = await look(api, job)
    assert (given_back["state"], given_back["attempt"], left_behind(api)) == ("queued", 0, [])
    hub.proceed.set()
    assert await worker.run_next(api.services)
    assert (await look(api, job))["state"] == "succeeded"


async def test_staged_files_stay_while_a_thread_is_at_them(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelled publication ends when its thread does: a blob is never made of files that are being removed."""
    check, loop = publishing._check, asyncio.get_running_loop()
    begun, go_on, seen = asyncio.Event(), threading.Event(), []

    def slow_check(services: Services, staging: Staging, *rest: Any) -> Any:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(30)
        seen.extend(path.exists() for path in (staging.path(CONFIG_FILE), staging.path(WEIGHTS_FILE)))
        return check(services, staging, *rest)

    monkeypatch.setattr(publishing, "_check", slow_check)
    job = (await ask(api)).json()
    task = asyncio.create_task(worker.run_next(api.services))
    await begun.wait()
    task.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == [True, True]
    assert ((await look(api, job))["state"], left_behind(api)) == ("queued", [])


async def test_nothing_is_imported_unless_the_operator_says_from_where(
    database: Database, tmp_path: Path, tiny_model_dir: Path, hub: Hub
) -> None:
    """403 with the setting to set; so is a place outside of those that are set, also for a job asked for before."""
    async with importing_api(database, tmp_path, tiny_model_dir, hub, import_sources="") as api:
        refused = (await ask(api)).json()["error"]
        assert (refused["code"], refused["param"]) == ("imports_disabled", "source")
        assert "LORAPLEX_IMPORT_SOURCES=" in refused["message"]
        await worker.run_imports(api.services, api.drain)  # ends at once
        settings = api.services.settings.model_copy(update={"import_sources": ("hf://acme/", "s3://models/{tenant}")})
        allowing = replace(api, app=create_app(services := replace(api.services, settings=settings)))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(allowing.app), base_url="http://api") as client:
            allowing = replace(allowing, client=client, services=services)
            asked = await ask(allowing)
            assert asked.status_code == 202
            for source in ("hf://evil/bot", "hf://acme-evil/bot", "s3://models/globex/bot", "s3://models"):
                refused = await ask(allowing, source)
                assert (refused.status_code, refused.json()["error"]["code"]) == (403, "source_not_allowed"), source
            assert (await ask(allowing, "s3://models/acme/bot")).status_code == 202
        withdrawn = settings.model_copy(update={"import_sources": ("hf://other/",)})
        assert await worker.run_next(replace(services, settings=withdrawn))
        failed = await look(api, asked.json())
        assert (failed["state"], failed["error"]["code"]) == ("failed", "source_not_allowed")
    assert hub.asked == []


async def test_requests_are_strict_and_bounded(api: Api) -> None:
    """Unknown fields, strange sources, missing adapters and too many jobs are refused with what is wrong."""
    for source in (
        "", "hf://acme", "hf://acme/bot/x", "hf://acme/bot@", "hf://acme/..@main", "hf://127.0.0.1:80/bot", "S3://b/x",
        "s3://", "s3://B/x", "s3://models/../x", "s3://models//x", "s3://user:pass@models/x", "https://hub/acme/bot",
        "file:///etc/passwd", "hf://acme/bot?x=1", "hf://acme/bot\n", "hf://" + "a" * 1000,
    ):  # fmt: skip
        refused = await ask(api, source)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "source"), source
    for body in ({"source": SOURCE}, {"adapter": "bot"}, {"adapter": "bot", "source": SOURCE, "endpoint": "http://x"}):
        refused = await api.client.post(IMPORTS, json=body, headers=api.auth("acme"))
        assert refused.status_code == 400
    assert (await ask(api, adapter="bat")).json()["error"]["code"] == "adapter_not_found"
    for _ in range(api.services.settings.max_imports_per_tenant):
        assert (await ask(api)).status_code == 202
    refused = await ask(api)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_imports")


async def test_foreign_and_missing_imports_are_the_same_404(api: Api) -> None:
    """Byte for byte; lists hold the caller's own, and a key without the scope sees nothing."""
    job = (await ask(api)).json()
    for method in ("GET", "DELETE"):
        foreign, missing, strange = [
            await api.client.request(method, f"{IMPORTS}/{id}", headers=api.auth("globex"))
            for id in (job["id"], "0" * 32, "%00")
        ]
        assert foreign.status_code == missing.status_code == strange.status_code == 404
        assert foreign.content == missing.content == strange.content
        assert foreign.json()["error"]["code"] == "import_not_found"
    assert (await api.client.get(IMPORTS, headers=api.auth("globex"))).json() == {"data": [], "next": None}
    assert (await ask(api, who="globex")).json()["error"]["code"] == "adapter_not_found"
    for who, status in (("acme-chat", 403), ("operator", 403)):
        assert (await api.client.get(IMPORTS, headers=api.auth(who))).status_code == status
    assert (await look(api, job))["state"] == "queued"
    await worker.run_next(api.services)
    ended = await api.client.delete(f"{IMPORTS}/{job['id']}", headers=api.auth("acme"))
    assert (ended.status_code, ended.json()["error"]["code"]) == (409, "import_ended")

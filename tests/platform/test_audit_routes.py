"""Every route that changes something, called for real: its entries in the audit log are what its handler declares."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_running import Api, StandingEngine, announced, ready_of, run_api
from audited_app import AuditedApp
from browsing import PASSWORD, Visitor, visit
from database_fixtures import on_sqlite
from litestar import Litestar, post

from loraplex.adapters.database import Database
from loraplex.engine.messages import Decision
from loraplex.engine.models.config import ModelConfig, lora_shape
from loraplex.platform.audit_rules import INFERENCE, audited, mutating_handlers, require_audited, unaudited

pytestmark = pytest.mark.anyio

LINE = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "tiny", "prompt": "a"}}
EXEMPT = {
    "/ping",
    "/v1/responses/{response_id}/cancel",
    "/api/v1/uploads/{upload_id}/files/{name}",
    "/admin/script/{tenant}/uploads/{upload_id}/files/{name}",
}
"""What has no entry, beside inference: whoever adds to this has thought about it."""


class PinningEngine(StandingEngine):
    """One that has room."""

    def pin(self, adapter: str, owner: str, until: float) -> asyncio.Future[Any]:
        self.pins[adapter, owner] = until
        answer = asyncio.get_running_loop().create_future()
        answer.set_result(Decision(0))
        return answer

    async def evict(self, adapter: str) -> None:
        """Nothing is in its memory."""


@pytest.fixture
def folders(tmp_path: Path, make_adapter: Callable[..., Path]) -> tuple[Path, Path]:
    """Two adapters below the directory that the server may read from."""
    first, second = (
        make_adapter(tmp_path / "loras" / str(seed), rank=2, modules=["q_proj"], seed=seed) for seed in (1, 2)
    )
    return first, second


@pytest.fixture
async def api(database: Database, tmp_path: Path, tiny_model_dir: Path, folders: Any) -> AsyncIterator[Api]:
    """An API whose application checks the log after each request."""
    engine = PinningEngine(ready_of(lora_shape(ModelConfig.from_folder(tiny_model_dir))))
    settings = {"lora_dirs": [tmp_path / "loras"], "import_sources": "hf://acme/"}
    async with run_api(database, tmp_path / "data", tiny_model_dir, engine=engine, **settings) as running:
        app: Any = AuditedApp(running.app, running.services.audit)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as client:
            yield replace(running, app=app, client=client)


async def ask(api: Api, who: str, method: str, path: str, **body: Any) -> Any:
    """The answer to a request that must succeed."""
    answer = await api.client.request(method, path, headers=api.auth(who), **body)
    assert answer.status_code < 400, (method, path, answer.text)
    return answer.json() if answer.content and "json" in answer.headers["content-type"] else answer


async def do(visitor: Visitor, page: str, action: str, **fields: Any) -> None:
    """Send a form of a page."""
    await visitor.submit(page, action, follow=False, **fields)


async def a_tenants_day(api: Api, folders: tuple[Path, Path]) -> None:
    """All of the API that a tenant changes something by."""
    adapters, bot = "/api/v1/adapters", "/api/v1/adapters/bot"
    for name in ("bot", "twin", "third"):
        await ask(api, "acme", "POST", adapters, json={"name": name})
    for folder in folders:
        assert (await api.upload("acme", "bot", folder)).status_code == 201
    await ask(api, "acme", "PUT", f"{bot}/aliases/prod", json={"version": 1})
    await ask(api, "acme", "PUT", f"{bot}/aliases/prod", json={"split": {"1": 9, "2": 1}})
    await ask(api, "acme", "POST", f"{bot}/aliases/prod/rollback", json={})
    await ask(api, "acme", "DELETE", f"{bot}/aliases/prod")
    await ask(api, "acme", "PUT", f"{bot}/versions/1/profile", json={"system_prompt": "Be brief."})
    await ask(api, "acme", "DELETE", f"{bot}/versions/1/profile")
    await ask(api, "acme", "POST", f"{bot}/versions/1/warm")
    await ask(api, "acme", "PUT", f"{bot}/versions/1/pin", json={"seconds": 60})
    await ask(api, "acme", "DELETE", f"{bot}/versions/1/pin")
    await ask(api, "acme", "POST", f"{bot}/versions/1/evict")
    files = announced(folders[0])
    await ask(api, "acme", "POST", "/api/v1/uploads", json={"adapter": "twin", "files": files})  # a known one
    await upload_in_pieces(api, folders[0])
    await ask(api, "acme", "DELETE", f"{bot}/versions/2")
    job = await ask(api, "acme", "POST", "/api/v1/imports", json={"adapter": "bot", "source": "hf://acme/x"})
    await ask(api, "acme", "DELETE", f"/api/v1/imports/{job['id']}")
    await ask(api, "acme", "DELETE", adapters + "/twin")
    await ask(api, "acme", "DELETE", "/v1/models/third")
    form = {"files": {"file": json.dumps(LINE).encode()}, "data": {"purpose": "batch"}}
    file = await ask(api, "acme", "POST", "/v1/files", **form)
    wanted = {"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
    batch = await ask(api, "acme", "POST", "/v1/batches", json=wanted)
    await ask(api, "acme", "POST", f"/v1/batches/{batch['id']}/cancel")
    other = await ask(api, "acme", "POST", "/v1/files", **form)
    await ask(api, "acme", "DELETE", f"/v1/files/{other['id']}")
    said = await ask(api, "acme", "POST", "/v1/responses", json={"model": "tiny", "input": "a", "max_output_tokens": 1})
    await ask(api, "acme", "DELETE", f"/v1/responses/{said['id']}")


async def upload_in_pieces(api: Api, folder: Path) -> None:
    """Of new bytes, for globex; and one that is dropped."""
    await ask(api, "globex", "POST", "/api/v1/adapters", json={"name": "bot"})
    for is_finished in (True, False):
        wanted = {"adapter": "bot", "files": announced(folder)}
        if not is_finished:
            wanted["files"][1]["sha256"] = "0" * 64
        upload = await ask(api, "globex", "POST", "/api/v1/uploads", json=wanted)
        if is_finished:
            assert (await api.finish_upload("globex", upload["id"], folder)).status_code == 201
        else:
            await ask(api, "globex", "DELETE", f"/api/v1/uploads/{upload['id']}")


async def an_operators_day(api: Api, folders: tuple[Path, Path]) -> None:
    """All of the API that operators change something by."""
    admin = "/api/v1/admin"
    await ask(api, "operator", "POST", f"{admin}/tenants", json={"slug": "initech"})
    for suspended in (True, False):
        await ask(api, "operator", "PATCH", f"{admin}/tenants/initech", json={"suspended": suspended})
    await ask(api, "operator", "PATCH", f"{admin}/tenants/initech", json={"weight": 2})
    await ask(api, "operator", "PUT", f"{admin}/tenants/initech/limits", json={"requests_per_minute": 5})
    wanted = {"tenant": "initech", "name": "ci", "scopes": ["inference"]}
    key = await ask(api, "operator", "POST", f"{admin}/keys", json=wanted)
    await ask(api, "operator", "PUT", f"{admin}/keys/{key['id']}/limits", json={"requests_per_minute": 1})
    await ask(api, "operator", "PUT", f"{admin}/tenants/initech/budget", json={"tokens": 10**9})
    await ask(api, "operator", "PUT", f"{admin}/keys/{key['id']}/budget", json={"tokens": 10**6})
    await ask(api, "operator", "PATCH", f"{admin}/keys/{key['id']}", json={"name": "build"})
    await ask(api, "operator", "POST", f"{admin}/keys/{key['id']}/rotate", json={"overlap_seconds": 60})
    await ask(api, "operator", "DELETE", f"{admin}/keys/{key['id']}/old-secret")
    await ask(api, "operator", "DELETE", f"{admin}/keys/{key['id']}")
    await ask(api, "operator", "PUT", f"{admin}/usage/prices", json={"currency": "EUR"})
    await what_is_kept(api, f"{admin}/usage")
    for folder in folders:
        load = {"lora_name": "lora", "lora_path": str(folder), "load_inplace": True}
        await ask(api, "operator", "POST", "/v1/load_lora_adapter", json=load)
        tenant = await api.tenant_id(api.services.settings.lora_modules_tenant)
        await api.services.aliases.move(tenant, "lora", "prod", {1: 1})
    version = await api.services.registry.get_version(tenant, "lora", 1)
    for action in ("quarantine", "release"):
        await ask(api, "operator", "POST", f"{admin}/versions/{version.digest}/{action}", json={"reason": "a trial"})
    await ask(api, "operator", "POST", "/v1/unload_lora_adapter", json={"lora_name": "lora"})


async def what_is_kept(api: Api, usage: str) -> None:
    """Of requests, for a tenant that wants it; and how it is deleted."""
    await ask(api, "operator", "PUT", f"{usage}/contents/acme", json={"days": 1})
    for _ in range(3):
        await ask(api, "acme", "POST", "/v1/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 1})
    await api.services.ledger.write()
    kept = (await ask(api, "acme", "GET", "/api/v1/usage/requests?endpoint=completions"))["data"]
    await ask(api, "acme", "DELETE", f"/api/v1/usage/requests/{kept[0]['id']}/contents")
    await ask(api, "operator", "DELETE", f"{usage}/requests/{kept[1]['id']}/contents")
    await ask(api, "operator", "DELETE", f"{usage}/contents/acme")


async def people_come_and_go(api: Api) -> Visitor:
    """All of the pages' ways in and out; the operator, signed in."""
    ada = visit(api)
    await ada.post("/admin/setup", {"token": api.services.setup_token.issue(), "login": "ada", "password": PASSWORD})
    for leave in ("/admin/logout", "/admin/logout/everywhere"):
        await do(ada, "/admin/account", leave)
        assert (await ada.sign_in("ada")).status_code == 303
    change = {"current": PASSWORD, "password": PASSWORD + "!"}
    await do(ada, "/admin/account", "/admin/account/password", **change)
    await do(ada, "/admin/people/new", "/admin/people/new", login="wile", role="tenant-admin", tenant="acme")
    for action in ("password", "disable", "enable"):
        await do(ada, "/admin/people", f"/admin/people/wile/{action}")
    for login in ("road", "runner"):
        await api.services.accounts.create(login, PASSWORD)
    road, runner = visit(api), visit(api, client="127.0.0.2")
    for _ in range(10):
        await road.sign_in("road", "wrong" * 4)
    await runner.sign_in("runner")
    form = "/admin/account"
    for _ in range(10):
        await do(runner, form, f"{form}/password", current="wrong" * 4, password=PASSWORD)
    return ada


async def what_is_kept_on_the_pages(api: Api, ada: Visitor) -> None:
    """Of a tenant's requests; and what requests cost."""
    acme, prices = "/admin/tenants/acme", "/admin/prices"
    await do(ada, acme, f"{acme}/contents", days="1")
    for _ in range(2):
        await ask(api, "acme", "POST", "/v1/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 1})
    await api.services.ledger.write()
    kept = (await ask(api, "acme", "GET", "/api/v1/usage/requests?endpoint=completions"))["data"]
    request = f"/admin/requests/{kept[0]['id']}"
    await do(ada, request, f"{request}/contents/delete")
    await do(ada, acme, f"{acme}/contents/delete")
    await do(ada, prices, prices, currency="EUR", prompt="1", cached="1", completion="2")
    await do(ada, prices, f"{prices}/adapters", adapter="acme/bot", prompt="1", cached="1", completion="2")
    await do(ada, prices, f"{prices}/adapters/delete", adapter="acme/bot")


async def jobs_on_the_pages(api: Api, ada: Visitor, folder: Path) -> None:
    """What a tenant has begun, ended and begun again by the operator."""
    page, acme = "/admin/jobs", "/admin/jobs/acme"
    job = await ask(api, "acme", "POST", "/api/v1/imports", json={"adapter": "bot", "source": "hf://acme/x"})
    for action in ("cancel", "again"):
        await do(ada, page, f"{acme}/imports/{job['id']}/{action}")
    form = {"files": {"file": json.dumps(LINE).encode()}, "data": {"purpose": "batch"}}
    file = await ask(api, "acme", "POST", "/v1/files", **form)
    wanted = {"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
    batch = await ask(api, "acme", "POST", "/v1/batches", json=wanted)
    await do(ada, page, f"{acme}/batches/{batch['id']}/cancel")
    files = announced(folder)
    files[1]["sha256"] = "0" * 64
    upload = await ask(api, "acme", "POST", "/api/v1/uploads", json={"adapter": "bot", "files": files})
    await do(ada, page, f"{acme}/uploads/{upload['id']}/drop")


async def a_day_on_the_pages(api: Api, ada: Visitor, folders: tuple[Path, Path]) -> None:
    """All that pages change: the operator does it, for whose tenant ever."""
    await do(ada, "/admin/tenants/new", "/admin/tenants/new", slug="umbrella", name="Umbrella")
    for action in ("suspend", "resume"):
        await do(ada, "/admin/tenants/umbrella", f"/admin/tenants/umbrella/{action}")
    limits = "/admin/limits/umbrella"
    await do(ada, limits, limits, weight="3", requests_per_minute="9")
    await do(ada, "/admin/keys/new", "/admin/keys/new", name="ci", tenant="umbrella", scopes="inference")
    (key,) = await api.services.tenants.list_keys("umbrella")
    page = f"/admin/keys/{key.id}"
    await do(ada, f"{page}/edit", f"{page}/edit", name="build", scopes="inference", revision="1")
    await do(ada, page, f"{page}/rotate", overlap_seconds="60")
    for action in ("end-old-secret", "revoke"):
        await do(ada, page, f"{page}/{action}")
    await do(ada, "/admin/adapters/new", "/admin/adapters/new", tenant="umbrella", name="bot")
    url = "/admin/adapters/umbrella/bot"
    await what_is_kept_on_the_pages(api, ada)
    await upload_by_script(api, ada, folders)
    await jobs_on_the_pages(api, ada, folders[0])
    version = f"{url}/versions/1"
    for action in ("warm", "pin", "unpin", "evict"):
        await do(ada, version, f"{version}/{action}", seconds="3600" if action == "pin" else None)
    move: dict[str, Any] = {"alias": "prod", "weight-1": "100"}
    for revision in ("0", "1"):
        await do(ada, url, f"{url}/aliases/move", **move, revision=revision)
    await do(ada, url, f"{url}/aliases/rollback", alias="prod", revision="2")
    await do(ada, url, f"{url}/aliases/delete", alias="prod", revision="3")
    await do(ada, version, f"{version}/delete")
    await do(ada, url, f"{url}/delete")


async def upload_by_script(api: Api, ada: Visitor, folders: tuple[Path, Path]) -> None:
    """As the page's script does: into two adapters, the second of which has the same bytes; and one is dropped."""
    headers = {"origin": "http://api", "x-csrf-token": await ada.token("/admin/adapters/umbrella/bot")}
    uploads = "/admin/script/umbrella/uploads"

    async def call(method: str, path: str, **body: Any) -> Any:
        answer = await ada.client.request(method, uploads + path, headers=headers | body.pop("headers", {}), **body)
        assert answer.status_code < 400, answer.text
        return answer.json() if answer.content else None

    opened = await call("POST", "", json={"adapter": "bot", "files": announced(folders[0])})
    for file in announced(folders[0]):
        kind = {"content-type": "application/offset+octet-stream", "upload-offset": "0"}
        path = f"/{opened['id']}/files/{file['name']}"
        await call("PATCH", path, content=(folders[0] / file["name"]).read_bytes(), headers=kind)
    await call("POST", f"/{opened['id']}/complete")
    await api.services.registry.create_adapter(await api.tenant_id("umbrella"), "twin", "tiny")
    await call("POST", "", json={"adapter": "twin", "files": announced(folders[0])})
    dropped = await call("POST", "", json={"adapter": "bot", "files": announced(folders[1])})
    await call("DELETE", f"/{dropped['id']}")


@on_sqlite
async def test_every_change_has_the_entries_that_its_handler_declares(api: Api, folders: tuple[Path, Path]) -> None:
    """Each route that may change something is called, each action that it declares happens, and nothing else is said.
    A route that is new is missed here until it is called above."""
    app: Any = api.app
    assert isinstance(app, AuditedApp)
    await a_tenants_day(api, folders)
    await an_operators_day(api, folders)
    ada = await people_come_and_go(api)
    await a_day_on_the_pages(api, ada, folders)

    declared = {(method, path): handler.opt for method, path, handler in mutating_handlers(app.app)}
    for route, opt in declared.items():
        assert app.seen[route] == set(opt.get("audited", ())), route
    exempt = {path for (_, path), opt in declared.items() if "audited" not in opt}
    inference = {path for (_, path), opt in declared.items() if opt.get("unaudited") == INFERENCE["unaudited"]}
    assert exempt - inference == EXEMPT
    end = await api.services.audit.head()
    assert await api.services.audit.verify() == end


async def test_a_handler_has_to_say_what_the_log_has_of_it() -> None:
    """Without a word about it, with two, or with an action that nobody knows, the application is not built."""

    def handler(opt: dict[str, Any]) -> Litestar:
        @post("/x", opt=opt, sync_to_thread=False)
        def change() -> None:
            """Changes something."""

        return Litestar([change], openapi_config=None)

    for opt in ({}, audited("nothing.known"), audited("key.create") | unaudited("because")):
        with pytest.raises(RuntimeError, match="POST /x"):
            require_audited(handler(opt))
    require_audited(handler(audited("key.create")))
    require_audited(handler(unaudited("because")))

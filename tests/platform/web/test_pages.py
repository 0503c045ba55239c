"""Every page over HTTP: what it shows, what its forms do, and that a tenant's people see nothing of others."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from api_running import Api, run_api
from browsing import Visitor, signed_in, text_of, visit
from database_fixtures import on_sqlite

from loraplex.adapters.database import Database
from loraplex.engine.client import EngineClient

pytestmark = [pytest.mark.anyio, on_sqlite]


@pytest.fixture
async def api(database: Database, tmp_path: Path, tiny_model_dir: Path) -> AsyncIterator[Api]:
    async with run_api(database, tmp_path, tiny_model_dir) as running:
        yield running


@pytest.fixture
async def operator(api: Api) -> Visitor:
    return await signed_in(api, "ada")


@pytest.fixture
async def acme_admin(api: Api) -> Visitor:
    return await signed_in(api, "wile", "acme")


async def test_the_overview_shows_operators_the_engine_and_tenants_what_is_theirs(
    operator: Visitor, acme_admin: Visitor
) -> None:
    """Numbers of the engine are not told to tenants."""
    shown = text_of(await operator.get("/admin"))
    assert "Serving tiny" in shown
    assert "KV pages in use" in shown
    shown = text_of(await acme_admin.get("/admin"))
    assert "Serving tiny" in shown
    assert "KV pages" not in shown
    part = await operator.get("/admin", headers={"hx-request": "true"})
    assert "<html" not in part.text
    assert "KV pages" in part.text


async def test_a_tenant_is_created_suspended_and_resumed(operator: Visitor) -> None:
    """Each change leads to a page that says what was done; what is wrong is said beside the form, which keeps what was
    typed."""
    created = await operator.submit("/admin/tenants/new", "/admin/tenants/new", slug="initech", name="Initech & Co")
    assert (created.status_code, created.url.path) == (200, "/admin/tenants/initech")
    assert "Initech & Co" in text_of(created)
    assert "Initech &amp; Co" in created.text
    again = await operator.submit("/admin/tenants/new", "/admin/tenants/new", slug="initech", name="Second")
    assert again.status_code == 409
    assert "There is a tenant" in text_of(again)
    assert 'value="Second"' in again.text
    assert 'aria-invalid="true"' in again.text
    for action, state in (("suspend", "suspended"), ("resume", "active")):
        changed = await operator.submit("/admin/tenants/initech", f"/admin/tenants/initech/{action}")
        assert state in text_of(changed)


async def test_a_keys_secret_is_shown_once(api: Api, operator: Visitor) -> None:
    """It works, until the key is revoked by its page; no later page has it."""
    fields = {"name": "ci", "kind": "tenant", "tenant": "acme", "scopes": ["inference"], "expires_in_days": "30"}
    created = await operator.submit("/admin/keys/new", "/admin/keys/new", **fields)
    assert created.status_code == 201
    secret = re.search(r'value="(lk_[^"]+)"', created.text)[1]
    key = {"authorization": f"Bearer {secret}"}
    assert (await api.client.get("/v1/models", headers=key)).status_code == 200
    key_id = secret.split("_")[1]
    for page in ("/admin/keys", "/admin/keys?tenant=acme", f"/admin/keys/{key_id}", "/admin/tenants/acme"):
        shown = await operator.get(page)
        assert secret not in shown.text
        assert key_id in shown.text, page
    await operator.submit(f"/admin/keys/{key_id}", f"/admin/keys/{key_id}/revoke")
    assert (await api.client.get("/v1/models", headers=key)).status_code == 401
    operators = {"name": "ops", "kind": "operator", "scopes": ["inference"]}
    assert "admin" in text_of(await operator.submit("/admin/keys/new", "/admin/keys/new", **operators))


ACTIONS = ["suspend", "resume", "move", "rollback", "delete", "warm", "pin", "unpin", "evict"]

WRONG_KEYS = [
    {"name": ""},
    {"tenant": ""},
    {"tenant": "nobody"},
    {"scopes": []},
    {"scopes": ["admin"]},
    {"expires_in_days": "0"},
    {"expires_in_days": "x"},
    {"kind": "root"},
    {"secret": "mine"},
]


async def test_a_key_is_rotated_and_bound_to_adapters(api: Api, operator: Visitor, acme_admin: Visitor) -> None:
    """The new secret is shown once, beside it until when the old one holds; forms that are late or wrong change
    nothing; another tenant's people see no such key."""
    await api.client.post("/api/v1/adapters", json={"name": "bot"}, headers=api.auth("acme"))
    key_id, old = api.keys["acme-chat"].split("_")[1], api.keys["acme-chat"]
    url = f"/admin/keys/{key_id}"
    rotated = await acme_admin.submit(url, f"{url}/rotate", overlap_seconds="3600")
    api.keys["new"] = re.search(r'value="(lk_[^"]+)"', rotated.text)[1]
    assert "The old one works until" in text_of(rotated)
    for page in (url, "/admin/keys", f"{url}/edit"):
        assert api.keys["new"] not in (await acme_admin.get(page)).text
    assert "before that" in text_of(await acme_admin.get(url))
    assert "rotating" in text_of(await acme_admin.get("/admin/keys"))
    late = await acme_admin.submit(url, f"{url}/rotate", overlap_seconds="3600")
    assert (late.status_code, "end it first" in text_of(late)) == (409, True)
    assert [
        (await api.client.get("/v1/models", headers=api.auth(who))).status_code for who in ("acme-chat", "new")
    ] == [
        200,
        200,
    ]
    assert "one secret now" in text_of(await acme_admin.submit(url, f"{url}/end-old-secret"))
    assert (await api.client.get("/v1/models", headers={"x-api-key": old})).status_code == 401

    form = await acme_admin.get(f"{url}/edit")
    assert 'value="bot"' in form.text
    revision = re.search(r'name="revision" value="([0-9]+)"', form.text)[1]
    fields = {"revision": revision, "name": "chat", "scopes": "inference", "reach": "some", "adapters": "bot"}
    for wrong, why in (
        ({"scopes": ["inference", "adapters"]}, "whose one scope is inference"),
        ({"scopes": None}, "at least one of"),
        ({"adapters": None}, "name 1 to"),
        ({"expires": "0"}, "expires"),
    ):
        refused = await acme_admin.submit(f"{url}/edit", f"{url}/edit", **fields | wrong)
        assert refused.status_code == 400, wrong
        assert why in text_of(refused).lower()
    assert "The key is changed" in text_of(await acme_admin.submit(f"{url}/edit", f"{url}/edit", **fields))
    assert "bot" in text_of(await operator.get("/admin/keys"))
    again = await acme_admin.submit(f"{url}/edit", f"{url}/edit", **fields)
    assert (again.status_code, "read it again" in text_of(again)) == (412, True)
    foreign = f"/admin/keys/{api.keys['globex'].split('_')[1]}"
    for action in ("edit", "rotate", "end-old-secret"):
        answer = await acme_admin.submit(url, f"{foreign}/{action}", **fields)
        assert answer.status_code == 404
    operators = f"/admin/keys/{api.keys['operator'].split('_')[1]}/edit"
    kept = await operator.submit(operators, operators, name="ops", revision="1", expires="30", scopes="inference")
    assert "The key is changed" in text_of(kept)
    info = await api.services.tenants.get_key(api.keys["operator"].split("_")[1])
    assert (info.scopes, info.name, info.adapters) == ({"admin"}, "ops", None)


async def test_keys_that_make_no_sense_are_refused(operator: Visitor) -> None:
    """The form comes back with the reason, and nothing is made."""
    for wrong in WRONG_KEYS:
        fields = {"name": "ci", "kind": "tenant", "tenant": "acme", "scopes": ["inference"]} | wrong
        refused = await operator.submit("/admin/keys/new", "/admin/keys/new", **fields)
        assert refused.status_code in (400, 404), wrong
        assert "lk_" not in refused.text, wrong


async def test_a_tenant_admin_makes_keys_of_its_own_tenant_only(api: Api, acme_admin: Visitor) -> None:
    """Whatever the form says: its tenant comes from the session."""
    fields = {"name": "mine", "kind": "tenant", "tenant": "globex", "scopes": ["inference"]}
    created = await acme_admin.submit("/admin/keys/new", "/admin/keys/new", **fields)
    assert created.status_code == 201
    assert "mine" in {key.name for key in await api.services.tenants.list_keys("acme")}
    fields = {"name": "root", "kind": "operator"}
    refused = await acme_admin.submit("/admin/keys/new", "/admin/keys/new", **fields)
    assert refused.status_code == 400
    assert "root" not in {key.name for key in await api.services.tenants.list_keys()}


async def test_adapters_are_found_by_part_of_their_name_and_by_pages(
    api: Api, operator: Visitor, acme_admin: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operators see all tenants', a tenant's people their own."""
    for who in ("acme", "globex"):
        for name in ("support-bot", "legal", "50_percent"):
            await api.client.post("/api/v1/adapters", json={"name": name}, headers=api.auth(who))
    everything = text_of(await operator.get("/admin/adapters"))
    assert "acme/ legal" in everything
    assert "globex/ legal" in everything
    theirs = text_of(await acme_admin.get("/admin/adapters?tenant=globex"))
    assert "legal" in theirs
    assert "globex" not in theirs
    found = await operator.get("/admin/adapters?q=BOT&tenant=acme", headers={"hx-request": "true"})
    assert "support-bot" in found.text
    assert "legal" not in found.text
    assert "<html" not in found.text
    assert "50_percent" not in (await operator.get("/admin/adapters?q=0%25")).text
    monkeypatch.setattr("loraplex.platform.web.adapters.PAGE_SIZE", 2)
    first = await operator.get("/admin/adapters")
    after = re.search(r"after=([^\"&]+)", first.text)[1]
    assert "support-bot" in (await operator.get(f"/admin/adapters?after={after}")).text


async def test_an_adapter_lives_through_its_pages(
    api: Api, operator: Visitor, acme_admin: Visitor, folder: Path
) -> None:
    """Upload by the API; the report and proof on its version's page; aliases moved, split, rolled back, and refused
    from a page that is out of date; versions and the adapter deleted."""
    fields = {"tenant": "acme", "name": "bot", "description": "Answers <b>"}
    created = await operator.submit("/admin/adapters/new", "/admin/adapters/new", **fields)
    assert created.url.path == "/admin/adapters/acme/bot"
    assert "Answers &lt;b&gt;" in created.text
    await api.upload("acme", "bot", folder)
    url = "/admin/adapters/acme/bot"
    version = text_of(await acme_admin.get(f"{url}/versions/1"))
    assert "What the checks found" in version
    assert "Proof" in version

    move = {"alias": "prod", "revision": "0", "weight-1": "100"}
    moved = await acme_admin.submit(url, f"{url}/aliases/move", **move)
    assert moved.status_code == 200
    assert "@prod" in moved.text
    stale = await acme_admin.submit(url, f"{url}/aliases/move", **move)
    assert stale.status_code == 412
    assert "by now" in text_of(stale)
    nothing = await acme_admin.submit(url, f"{url}/aliases/move", **(move | {"revision": "1", "weight-1": "0"}))
    assert nothing.status_code == 400
    in_use = await acme_admin.submit(url, f"{url}/versions/1/delete")
    assert in_use.status_code == 409
    assert "in use by prod" in text_of(in_use)
    await acme_admin.submit(url, f"{url}/aliases/move", **(move | {"revision": "1"}))
    back = await acme_admin.submit(url, f"{url}/aliases/rollback", alias="prod", revision="2")
    assert "what it stood for before" in text_of(back)
    gone = await acme_admin.submit(url, f"{url}/aliases/delete", alias="prod", revision="3")
    assert "<code>@prod</code>" not in gone.text
    history = await api.services.aliases.history(await api.tenant_id("acme"), "bot", "prod")
    account = next(each for each in await api.services.accounts.list_accounts() if each.login == "wile")
    assert {move.moved_by for move in history} == {account.id}
    assert "is deleted" in text_of(await acme_admin.submit(url, f"{url}/versions/1/delete"))
    assert "is deleted" in text_of(await acme_admin.submit(url, f"{url}/delete"))
    assert (await operator.get(url)).status_code == 404


async def test_what_the_engine_cannot_do_now_is_said_on_the_page(api: Api, acme_admin: Visitor, folder: Path) -> None:
    """While the engine is down a version is on disk, cannot be pinned, and can be warmed later."""
    await api.client.post("/api/v1/adapters", json={"name": "bot"}, headers=api.auth("acme"))
    await api.upload("acme", "bot", folder)
    url = "/admin/adapters/acme/bot/versions/1"
    assert "on disk" in text_of(await acme_admin.get(url, headers={"hx-request": "true"}))
    assert "on its way" in text_of(await acme_admin.submit(url, f"{url}/warm"))
    refused = await acme_admin.submit(url, f"{url}/pin", seconds="3600")
    assert refused.status_code == 503
    assert "engine" in text_of(refused)
    assert (await acme_admin.submit(url, f"{url}/pin", seconds="99999999")).status_code == 400
    assert "pin has ended" in text_of(await acme_admin.submit(url, f"{url}/unpin"))


async def test_pages_of_operators_are_absent_for_tenants(acme_admin: Visitor) -> None:
    """As any other page that there is not."""
    nothing = await acme_admin.get("/admin/nothing/here")
    for page in ("/admin/tenants", "/admin/tenants/new", "/admin/people", "/admin/people/new", "/admin/prices"):
        answer = await acme_admin.get(page)
        assert (answer.status_code, answer.text) == (404, nothing.text)


async def test_operators_make_accounts_and_take_them_out(api: Api, operator: Visitor) -> None:
    """A password is shown once; a disabled account is signed out; one's own account stays."""
    form = {"login": "wile", "role": "tenant-admin", "tenant": "acme"}
    for wrong in ({"tenant": ""}, {"role": "root"}, {"login": "A B"}):
        assert (await operator.submit("/admin/people/new", "/admin/people/new", **form | wrong)).status_code == 400
    visitor = visit(api)
    for status, page, action in (
        (201, "/admin/people/new", "/admin/people/new"),
        (200, "/admin/people", "/admin/people/wile/password"),
    ):
        shown = await operator.submit(page, action, **(form if status == 201 else {}))
        password = re.search(r'id="secret"[^>]* value="([^"]+)"', shown.text)[1]
        assert shown.status_code == status
        assert password not in (await operator.get("/admin/people")).text
        assert (await visitor.sign_in("wile", password)).status_code == 303
    assert "globex" not in text_of(await visitor.get("/admin/adapters"))
    assert "is disabled" in text_of(await operator.submit("/admin/people", "/admin/people/wile/disable"))
    assert (await visitor.get("/admin")).status_code == 303
    assert "can sign in" in text_of(await operator.submit("/admin/people", "/admin/people/wile/enable"))
    own = await operator.submit("/admin/people", "/admin/people/ada/disable")
    assert own.status_code == 409
    assert (await operator.submit("/admin/people", "/admin/people/nobody/disable")).status_code == 404


async def test_every_page_tells_the_browser_to_run_nothing_else(api: Api, operator: Visitor) -> None:
    """Errors and redirects too. No page has a script, a style or a handler of its own."""
    for page in ("/admin", "/admin/keys/new", "/admin/nothing", "/admin/adapters/acme/none"):
        answer = await operator.get(page)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["cache-control"] == "no-store"
        assert not re.search(r"<style|<script>|\sstyle=|\son\w+=|https?://", answer.text), page
    redirect = await visit(api).get("/admin")
    assert redirect.status_code == 303
    assert "content-security-policy" in redirect.headers


async def test_a_real_engine_shows_where_a_version_is(
    database: Database,
    tiny_model_dir: Path,
    make_adapter: Callable[..., Path],
    tmp_path: Path,
    engine_dir: Path,
    engine: EngineClient,
    new_seed: Callable[[], int],
) -> None:
    """Its proof, what it takes on the device, and a pin that keeps it from being evicted."""
    async with run_api(database, engine_dir, tiny_model_dir, engine=engine) as api:
        await api.client.post("/api/v1/adapters", json={"name": "bot"}, headers=api.auth("acme"))
        uploaded = await api.upload("acme", "bot", make_adapter(tmp_path / "peft", seed=new_seed()))
        assert uploaded.status_code == 201, uploaded.text
        operator, url = await signed_in(api, "ada"), "/admin/adapters/acme/bot/versions/1"
        shown = text_of(await operator.get(url))
        assert "on the device" in shown
        assert "probe prompts were answered otherwise" in shown
        assert "is pinned" in text_of(await operator.submit(url, f"{url}/pin", seconds="3600"))
        refused = await operator.submit(url, f"{url}/evict")
        assert refused.status_code == 409
        assert "pin" in text_of(refused)
        await operator.submit(url, f"{url}/unpin")
        assert "memory is free" in text_of(await operator.submit(url, f"{url}/evict"))

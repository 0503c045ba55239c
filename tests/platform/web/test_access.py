"""Who gets in, how long they stay, and what no other site can make them do."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from api_running import Api, run_api
from browsing import PASSWORD, Visitor, signed_in, text_of, visit
from database_fixtures import on_sqlite
from sqlalchemy import select, update

from loraplex.adapters.database import Database
from loraplex.adapters.schema import now
from loraplex.platform.login_throttle import PER_ACCOUNT, PER_ADDRESS
from loraplex.platform.schema import WebSession
from loraplex.platform.web.access import csrf_token

pytestmark = [pytest.mark.anyio, on_sqlite]


@pytest.fixture
async def api(database: Database, tmp_path: Path, tiny_model_dir: Path) -> AsyncIterator[Api]:
    async with run_api(database, tmp_path, tiny_model_dir) as running:
        yield running


async def test_the_token_makes_the_first_account_once(api: Api) -> None:
    """While there is no account every page leads to set-up; the token is in a file of the server's user alone, and
    opens nothing once it is used."""
    token, file = api.services.setup_token.issue(), api.services.setup_token.path
    assert file.stat().st_mode & 0o777 == 0o600
    visitor = visit(api)
    assert (await visitor.get("/admin", follow_redirects=True)).url.path == "/admin/setup"
    form = {"token": "x" * 43, "login": "ada", "password": PASSWORD}
    wrong = await visitor.post("/admin/setup", form)
    assert (wrong.status_code, 'value="ada"' in wrong.text) == (400, True)
    short = await visitor.post("/admin/setup", form | {"token": token, "password": "short"})
    assert (short.status_code, "characters" in text_of(short)) == (400, True)
    welcome = await visitor.post("/admin/setup", form | {"token": token}, follow=True)
    assert "Your account is there" in text_of(welcome)
    assert not file.exists()
    second = await visit(api).post("/admin/setup", form | {"token": token, "login": "eve"})
    assert second.status_code == 400
    assert [account.login for account in await api.services.accounts.list_accounts()] == ["ada"]
    assert (await visit(api).get("/admin/setup")).headers["location"] == "/admin/login"


async def test_a_session_lives_by_a_cookie_whose_token_is_nowhere_else(api: Api, database: Database) -> None:
    """HttpOnly, SameSite=Lax; the database has its hash, the pages a token for forms that does not tell it."""
    visitor = await signed_in(api, "ada")
    answer = await visitor.sign_in("ada")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert "Secure" not in cookie
    token = visitor.session
    assert token is not None
    assert token not in (await visitor.get("/admin/account")).text
    async with database.read() as session:
        stored = list(await session.scalars(select(WebSession.token_sha256)))
    assert stored == [hashlib.sha256(token.encode()).digest()]


async def test_over_https_the_cookie_is_bound_to_the_host(api: Api) -> None:
    """And a plain cookie of the same token opens nothing there."""
    await api.services.accounts.create("ada", PASSWORD)
    visitor = visit(api, scheme="https", client="203.0.113.9")
    answer = await visitor.client.post(
        "/admin/login", data={"login": "ada", "password": PASSWORD}, headers={"sec-fetch-site": "same-origin"}
    )
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-loraplex_session=")
    assert "Secure" in cookie
    assert "Domain" not in cookie
    assert (await visitor.get("/admin")).status_code == 200
    plain = visit(api, scheme="https")
    plain.client.cookies.set("loraplex_session", visitor.client.cookies["__Host-loraplex_session"])
    assert (await plain.get("/admin")).status_code == 303


async def test_passwords_do_not_travel_in_the_clear(api: Api) -> None:
    """From another machine over plain HTTP there is no form, unless the operator wants it so."""
    answer = await visit(api, client="203.0.113.9").get("/admin/login")
    assert answer.status_code == 403
    assert "plain HTTP" in text_of(answer)
    style = re.search(r'href="([^"]+app.css)"', answer.text)[1]
    assert (await visit(api, client="203.0.113.9").get(style)).status_code == 200


async def test_a_login_ends_the_session_that_the_browser_came_with(api: Api) -> None:
    """So that a token which somebody planted, or knew, becomes nobody's."""
    visitor = await signed_in(api, "ada")
    before = visitor.session
    await visitor.sign_in("ada")
    assert visitor.session != before
    other = visit(api)
    other.client.cookies.set("loraplex_session", str(before))
    assert (await other.get("/admin")).status_code == 303
    other.client.cookies.set("loraplex_session", "planted")
    assert "planted" not in (await other.sign_in("ada")).headers["set-cookie"]


@pytest.mark.parametrize(
    ("column", "age"), [("last_seen_at", timedelta(minutes=31)), ("created_at", timedelta(hours=13))]
)
async def test_sessions_end_by_the_clock(api: Api, database: Database, column: str, age: timedelta) -> None:
    """After half an hour without use, and after twelve hours whatever happens; the janitor forgets them."""
    visitor = await signed_in(api, "ada")
    async with database.transaction() as session:
        await session.execute(update(WebSession).values({column: now() - age}))
    answer = await visitor.get("/admin/keys")
    assert answer.headers["location"] == "/admin/login?next=/admin/keys"
    part = await visitor.get("/admin", headers={"hx-request": "true"})
    assert (part.status_code, part.headers["hx-redirect"]) == (401, "/admin/login")
    await api.services.web_sessions.drop_expired()
    async with database.read() as session:
        assert (await session.scalars(select(WebSession))).all() == []


async def test_a_page_that_is_only_open_does_not_keep_its_session(api: Api, database: Database) -> None:
    """Its live parts are asked for without anybody there; a page that is opened counts."""
    visitor = await signed_in(api, "ada")
    some_time_ago = now() - timedelta(minutes=10)
    async with database.transaction() as session:
        await session.execute(update(WebSession).values(last_seen_at=some_time_ago))
    for headers, is_use in (({"hx-request": "true"}, False), ({}, True)):
        assert (await visitor.get("/admin", headers=headers)).status_code == 200
        async with database.read() as session:
            seen = (await session.execute(select(WebSession.last_seen_at))).scalar_one()
        assert (seen > some_time_ago) == is_use


async def test_sessions_end_by_hand(api: Api) -> None:
    """Here, everywhere, with another password, and when the account or its tenant is taken out."""
    first, second = await signed_in(api, "wile", "acme"), await signed_in(api, "wile")
    await first.submit("/admin/account", "/admin/logout")
    assert (await first.get("/admin")).status_code == 303
    assert (await second.get("/admin")).status_code == 200
    await first.sign_in("wile")
    await second.submit("/admin/account", "/admin/logout/everywhere")
    assert (await first.get("/admin")).status_code == 303

    await first.sign_in("wile")
    await second.sign_in("wile")
    fields = {"current": PASSWORD, "password": "another sentence to keep"}
    changed = await first.submit("/admin/account", "/admin/account/password", **fields)
    assert "password is changed" in text_of(changed)
    assert (await first.get("/admin")).status_code == 200
    assert (await second.get("/admin")).status_code == 303
    assert (await second.sign_in("wile")).status_code == 401

    await api.services.tenants.set_suspended("acme", True)
    assert (await first.get("/admin")).status_code == 303
    await api.services.tenants.set_suspended("acme", False)
    assert (await first.get("/admin")).status_code == 200
    await api.services.accounts.set_disabled("wile", True)
    assert (await first.get("/admin")).status_code == 303
    assert (await first.sign_in("wile", fields["password"])).status_code == 401


async def test_wrong_names_and_wrong_passwords_read_the_same(api: Api) -> None:
    """And a disabled account as both."""
    await api.services.accounts.create("ada", PASSWORD)
    await api.services.accounts.create("bob", PASSWORD)
    await api.services.accounts.set_disabled("bob", True)
    tries = [("ada", "wrong"), ("nobody", PASSWORD), ("bob", PASSWORD)]
    answers = [await visit(api).sign_in(*each) for each in tries]
    assert {answer.status_code for answer in answers} == {401}
    assert len({re.sub(r'value="(ada|nobody|bob)"', "", answer.text) for answer in answers}) == 1


async def test_logins_are_throttled_by_account_and_by_address(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the right password has to wait then; from elsewhere another account does not."""
    await api.services.accounts.create("ada", PASSWORD)
    await api.services.accounts.create("bob", PASSWORD)
    monkeypatch.setattr(api.services.accounts._passwords, "_matches", lambda stored, given: given == PASSWORD.encode())
    for _ in range(PER_ACCOUNT.burst):
        assert (await visit(api).sign_in("ada", "wrong")).status_code == 401
    refused = await visit(api).sign_in("ada")
    assert refused.status_code == 429
    assert 0 < int(refused.headers["retry-after"]) <= PER_ACCOUNT.seconds
    assert (await visit(api).sign_in("bob")).status_code == 303
    for number in range(PER_ADDRESS.burst - PER_ACCOUNT.burst):
        assert (await visit(api).sign_in(f"guess{number}", "wrong")).status_code == 401
    assert (await visit(api).sign_in("bob")).status_code == 429
    assert (await visit(api, client="127.0.0.2").sign_in("bob")).status_code == 303


async def test_no_other_site_can_change_anything(api: Api) -> None:
    """A form counts with the session's own token, and from our own origin alone, as the browser tells it."""
    visitor = await signed_in(api, "ada")
    url, form = "/admin/tenants/new", {"slug": "initech"}
    token = csrf_token(str(visitor.session))
    attempts = [
        ({}, {"origin": "http://api"}),
        ({"_csrf": "0" * 64}, {"origin": "http://api"}),
        ({"_csrf": token}, {"origin": "http://evil"}),
        ({"_csrf": token}, {"origin": "null"}),
        ({"_csrf": token}, {}),
        ({"_csrf": token}, {"sec-fetch-site": "cross-site", "origin": "http://api"}),
        ({"_csrf": token}, {"sec-fetch-site": "same-site"}),
    ]
    for fields, headers in attempts:
        answer = await visitor.client.post(url, data=form | fields, headers=headers)
        assert answer.status_code == 403, (fields, headers)
    assert (await visitor.client.post("/admin/login", data={"login": "ada", "password": PASSWORD})).status_code == 403
    by_header = {"x-csrf-token": token, "sec-fetch-site": "same-origin"}
    assert (await visitor.client.post(url, data=form, headers=by_header)).status_code == 303


async def test_keys_open_no_page_and_sessions_no_api(api: Api) -> None:
    """Each is checked where it belongs, and nowhere else."""
    for who in ("operator", "acme"):
        assert (await api.client.get("/admin/keys", headers=api.auth(who))).status_code == 303
    visitor = await signed_in(api, "ada")
    for path in ("/v1/models", "/api/v1/adapters", "/api/v1/admin/tenants"):
        assert (await visitor.get(path)).status_code == 401, path


async def test_after_signing_in_one_is_on_a_page_of_ours(api: Api) -> None:
    """Whatever the URL says."""
    await api.services.accounts.create("ada", PASSWORD)
    for wanted, reached in (
        ("/admin/keys", "/admin/keys"),
        ("/admin/adapters/acme/bot.v2", "/admin/adapters/acme/bot.v2"),
        ("//evil.example", "/admin"),
        ("https://evil.example", "/admin"),
        ("/admin//evil.example", "/admin"),
        ("/admin\\evil", "/admin"),
        ("/administrator", "/admin"),
    ):
        answer = await visit(api).post("/admin/login", {"login": "ada", "password": PASSWORD, "next": wanted})
        assert answer.headers["location"] == reached


async def test_forms_that_no_page_sends_are_refused(api: Api) -> None:
    """By type, size, number of fields and encoding."""
    visitor = await signed_in(api, "ada")
    headers = {"origin": "http://api", "content-type": "application/x-www-form-urlencoded"}
    for body, kind, status in (
        (b"{}", "application/json", 415),
        (b"a=" + b"x" * (70 << 10), headers["content-type"], 413),
        (b"&".join(b"a=1" for _ in range(300)), headers["content-type"], 400),
        (b"slug=%ff", headers["content-type"], 400),
        (b"slug=\xff", headers["content-type"], 400),
    ):
        answer = await visitor.client.post("/admin/tenants/new", content=body, headers=headers | {"content-type": kind})
        assert answer.status_code == status, body[:20]
        assert "<h1>" in answer.text


async def test_every_page_wants_a_session(api: Api) -> None:
    """Save those by which one gets in; scripts are told in JSON."""
    await api.services.accounts.create("ada", PASSWORD)
    visitor, open_to_all = visit(api), set()
    for route in api.app.routes:
        for handler in route.route_handlers:
            for method in handler.http_methods - {"OPTIONS"}:
                if handler.opt.get("page") == "anyone":
                    open_to_all.add((method, route.path_format))
                elif handler.opt.get("page", "file") != "file":
                    path = route.path_format.replace("{number}", "1").replace("{", "").replace("}", "")
                    answer = await visitor.client.request(method, path, headers={"origin": "http://api"})
                    is_for_scripts = path.startswith(("/admin/script/", "/admin/feeds/"))
                    assert answer.status_code == (401 if is_for_scripts else 303), (method, path)
    assert open_to_all == {
        ("GET", "/admin/login"),
        ("POST", "/admin/login"),
        ("GET", "/admin/login/oidc"),
        ("GET", "/admin/login/oidc/callback"),
        ("GET", "/admin/setup"),
        ("POST", "/admin/setup"),
    }


async def test_scripts_act_for_the_tenants_that_their_person_sees(api: Api) -> None:
    """With the session's token for forms; a key opens nothing here, and a suspended tenant is nobody to act for."""
    ada, wile = await signed_in(api, "ada"), await signed_in(api, "wile", "acme")

    async def ask(visitor: Visitor, tenant: str, **more: str) -> int:
        headers = {"origin": "http://api", "x-csrf-token": csrf_token(str(visitor.session))} | more
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
        answer = await visitor.client.post(f"/admin/script/{tenant}/chat/completions", json=body, headers=headers)
        assert answer.headers["content-type"].startswith("application/json")
        return answer.status_code

    assert await ask(ada, "acme") == 200
    assert await ask(wile, "acme") == 200
    assert await ask(wile, "globex") == await ask(wile, "nobody") == await ask(ada, "nobody") == 404
    assert await ask(wile, "acme", **{"x-csrf-token": "0" * 64}) == 403
    assert await ask(wile, "acme", origin="http://evil") == 403
    assert await ask(wile, "acme", **{"idempotency-key": "one"}) == 400
    assert await ask(visit(api), "acme", **api.auth("acme")) == 401
    await api.services.tenants.set_suspended("globex", True)
    assert await ask(ada, "globex") == 404
    uploads = "/admin/script/acme/uploads"
    assert (await wile.get(uploads)).json() == {"data": []}

"""The audit log as it is read: over the API, on pages and by commands; who sees what of it, and what is never in it."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from api_running import Api, code, refusal, run_api
from browsing import PASSWORD, signed_in, text_of, visit
from click.testing import CliRunner
from clock import Clock
from database_fixtures import on_sqlite
from sqlalchemy import text

from loraplex.adapters.audit import Actor
from loraplex.adapters.audit_log import AuditLog, Wanted
from loraplex.adapters.database import Database
from loraplex.adapters.profile import ServingProfile
from loraplex.platform.audit_chain import ANEW_SECONDS, AuditChain
from loraplex.platform.cli.main import main

pytestmark = pytest.mark.anyio


@pytest.fixture
async def api(database: Database, tmp_path: Path, tiny_model_dir: Path) -> AsyncIterator[Api]:
    async with run_api(database, tmp_path, tiny_model_dir) as running:
        yield running


async def read(api: Api, who: str, path: str = "/api/v1/audit", **query: Any) -> Any:
    answer = await api.client.get(path, params=query, headers=api.auth(who))
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_tenant_reads_what_was_done_to_what_is_its_own(api: Api) -> None:
    """Its keys by their id; operators only as such. Other tenants' entries are nowhere."""
    for who in ("acme", "globex"):
        await api.client.post("/api/v1/adapters", json={"name": "bot"}, headers=api.auth(who))
    limits = {"requests_per_minute": 600}
    await api.client.put("/api/v1/admin/tenants/acme/limits", json=limits, headers=api.auth("operator"))
    limited, created, *older = (await read(api, "acme"))["data"]
    assert (limited["action"], limited["object"], limited["tenant"]) == ("tenant.limits", "tenants/acme", "acme")
    assert limited["actor"] == {"kind": "key", "id": None, "name": None}
    assert (limited["address"], limited["request_id"], limited["after"]) == (None, None, limits)
    assert created["actor"]["id"] in api.keys["acme"]
    assert (created["object"], created["after"]) == ("adapters/bot", {"base_model": "tiny", "description": ""})
    assert {entry["tenant"] for entry in older} == {"acme"}
    exported = await api.client.get("/api/v1/audit/export", headers=api.auth("acme"))
    lines = [json.loads(line) for line in exported.text.splitlines()]
    assert [line["number"] for line in lines][::-1] == [entry["number"] for entry in (limited, created, *older)]
    assert (lines[-1]["actor_id"], lines[-1]["address"]) == (None, None)
    assert lines[-2]["actor_id"] == created["actor"]["id"]
    refused = await api.client.get("/api/v1/audit", headers=api.auth("acme-chat"))
    assert code(refused) == (403, "insufficient_permissions")


async def test_operators_read_all_of_it_by_filters_and_pages(api: Api) -> None:
    """An adapter's entries, a key's, those of some hours; each page begins where the one before ended."""
    for name in ("bot", "other"):
        await api.client.post("/api/v1/adapters", json={"name": name}, headers=api.auth("acme"))
    path = "/api/v1/admin/audit"
    everything = (await read(api, "operator", path))["data"]
    assert [entry["number"] for entry in everything] == list(range(len(everything), 0, -1))
    first = await read(api, "operator", path, limit=3)
    second = await read(api, "operator", path, limit=3, before=first["next"])
    assert first["data"] + second["data"] == everything[:6]
    assert (await read(api, "operator", path, tenant="acme", object="adapters/bot"))["data"] == everything[1:2]
    by_acme = (await read(api, "operator", path, actor=everything[0]["actor"]["id"]))["data"]
    assert by_acme == everything[:2]
    assert (await read(api, "operator", path, since=everything[0]["at"]))["data"] == everything[:1]
    assert (await read(api, "operator", path, action="no\0thing"))["data"] == []
    naive = await api.client.get(path, params={"since": "2030-01-01T00:00:00"}, headers=api.auth("operator"))
    assert refusal(naive) == (400, "invalid_value", "since")
    absent = await api.client.get(path, params={"tenant": "nobody"}, headers=api.auth("operator"))
    assert absent.status_code == 404
    chain = await read(api, "operator", f"{path}/chain")
    assert chain == {
        "entries": len(everything), "hash": everything[0]["hash"], "verified_through": len(everything), "broken": None,
    }  # fmt: skip


@on_sqlite
async def test_no_secret_is_in_the_log(api: Api) -> None:
    """No key, no password, nothing that is stored of either, no session's token, no text of a prompt."""
    ada = await signed_in(api, "ada")
    made = await api.services.tenants.create_key("acme", "ci", ["inference"])
    await api.services.accounts.set_password("ada", PASSWORD + "2")
    acme = await api.tenant_id("acme")
    await api.services.registry.create_adapter(acme, "bot", "tiny")
    facts: dict[str, Any] = {"size_bytes": 1, "max_rank": 1, "targets": [], "report": []}
    await api.services.registry.publish(acme, "bot", digest="d" * 64, **facts)
    await api.services.profiles.change(acme, "bot", 1, lambda _: ServingProfile(system_prompt="the crown jewels"))
    wrong = visit(api)
    await wrong.sign_in("ada", "a wrong password")
    whole = "".join([str(entry) for entry in await api.services.audit.list(Wanted(), 1000)])
    database: Any = api.services.audit._database
    async with database.read() as session:
        stored = [*await session.scalars(text("SELECT password_hash FROM accounts"))]
        stored += [each.hex() for each in await session.scalars(text("SELECT secret_sha256 FROM api_keys"))]
    secrets = [*api.keys.values(), made[1], PASSWORD, "a wrong password", "crown jewels", str(ada.session), *stored]
    assert not [secret for secret in secrets if secret in whole or secret.split("_")[-1] in whole]


@on_sqlite
async def test_failed_sign_ins_cannot_fill_the_log(api: Api) -> None:
    """Of an account ever fewer have an entry, the one that locks it has; of names that nobody has, none. The right
    password begins the count anew."""
    await api.services.accounts.create("ada", PASSWORD)
    begun = (await api.services.audit.head()).number
    for number in range(40):
        await api.services.accounts.note_failed_login("ada" if number % 2 else f"eve{number}")
    entries = (await api.services.audit.list(Wanted(), 100))[::-1][begun:]
    told = [(entry.action.partition(".")[2], entry.after) for entry in entries]
    assert told == [
        ("lock_out" if failures == 10 else "login_fail", {"failures": failures}) for failures in (1, 2, 4, 8, 10, 16)
    ]
    await api.services.accounts.authenticate("ada", PASSWORD)
    await api.services.accounts.note_failed_login("ada")
    newest = await api.services.audit.list(Wanted(), 2)
    assert [entry.action for entry in newest] == ["account.login_fail", "account.login"]
    assert (newest[1].actor.kind, newest[1].actor.name) == ("account", "ada")


@on_sqlite
async def test_the_page_shows_people_what_they_may_see(api: Api) -> None:
    """Operators all with the state of the chain, a tenant's people theirs, each change as a difference."""
    wile, ada = await signed_in(api, "wile", "acme"), await signed_in(api, "ada")
    await ada.submit("/admin/adapters/new", "/admin/adapters/new", tenant="acme", name="bot")
    await ada.submit("/admin/adapters/new", "/admin/adapters/new", tenant="globex", name="hidden")
    await ada.submit("/admin/tenants/acme", "/admin/tenants/globex/suspend")
    shown = text_of(await ada.get("/admin/audit"))
    assert "verified to the last" in shown
    assert "Tenant suspended globex suspended no → yes" in shown
    assert "Adapter created acme / bot" in shown
    theirs = await wile.get("/admin/audit?tenant=globex")
    assert "an operator Adapter created bot" in text_of(theirs)
    assert not re.search(r"globex|hidden|ada\b|verified to", text_of(theirs).replace("Adapter", ""))
    assert "hidden" in text_of(await ada.get("/admin/audit?object=adapters/hidden&action=adapter.create&actor=ada"))
    assert "Nothing found" in text_of(await ada.get("/admin/audit?since=2999-01-01&until=x"))
    assert "Last changes" in text_of(await wile.get("/admin/adapters/acme/bot"))
    exported = (await wile.get("/admin/audit/export")).text
    assert '"object":"adapters/bot"' in exported
    assert "hidden" not in exported
    assert (await visit(api).get("/admin/audit")).status_code == 303


@on_sqlite
async def test_settings_are_shown_without_secrets(database: Database, tmp_path: Path, tiny_model_dir: Path) -> None:
    """To operators alone, as a page and as a file: what is set, and what the server runs on."""
    secrets = {"hf_token": "hf_secret", "s3_access_key_id": "AKIA-id", "s3_secret_access_key": "s3-secret"}
    url = "postgresql://user:pa55@db.internal/name?password=pa55&passfile=pa55"
    async with run_api(database, tmp_path, tiny_model_dir, **secrets, database_url=url) as api:
        ada, wile = await signed_in(api, "ada"), await signed_in(api, "wile", "acme")
        shown = await ada.get("/admin/settings")
        bundle = await ada.get("/admin/settings/support-bundle")
        assert "hf_token" in shown.text
        assert bundle.json()["database"]["url"].startswith("postgresql+psycopg://user:***@db.internal/name")
        assert bundle.json()["counts"]["tenants"] == 2
        assert bundle.json()["audit"]["broken"] is None
        for page in (shown, bundle):
            assert not [secret for secret in [*secrets.values(), "pa55"] if secret in page.text]
        for path in ("/admin/settings", "/admin/settings/support-bundle"):
            assert (await wile.get(path)).status_code == 404


@on_sqlite
async def test_a_look_at_the_chain_goes_on_where_the_last_one_stopped(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And after a while from the beginning again, which finds what was altered meanwhile."""
    monkeypatch.setattr("loraplex.adapters.audit_log.MAX_PAGE", 2)
    log, clock = AuditLog(database), Clock()
    chain = AuditChain(log, clock)
    for _ in range(12):
        await log.note(Actor("server"), "version.warm", "adapters/bot@1")
    first, second = await chain.look(), await chain.look()
    assert (first.verified.number, first.is_whole) == (10, False)
    assert (second.verified, second.is_whole) == (second.end, True)
    async with database.transaction() as session:
        await session.execute(text("DROP TRIGGER audit_entries_no_update"))
        await session.execute(text("UPDATE audit_entries SET object = 'x' WHERE number = 3"))
    assert (await chain.look()).is_whole
    clock.now += ANEW_SECONDS + 1
    broken = await chain.look()
    assert (broken.verified.number, broken.is_whole) == (2, False)
    assert "entry 3" in str(broken.why)


@on_sqlite
def test_commands_verify_and_export(database_url: str) -> None:
    """Whole, or the first wrong entry and status 1; an end that was written down elsewhere shows a chain that was
    written anew. What commands change is by the system's user."""

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(main, [*arguments, "--database-url", database_url])

    for slug in ("acme", "globex"):
        assert run("tenant", "create", slug).exit_code == 0
    verified = json.loads(run("audit", "verify", "--json").output)
    assert (verified["whole"], verified["entries"]) == (True, 2)
    lines = [json.loads(line) for line in run("audit", "export").output.splitlines()]
    assert [(line["actor_kind"], line["object"]) for line in lines] == [
        ("command", "tenants/acme"), ("command", "tenants/globex"),
    ]  # fmt: skip
    assert lines[-1]["hash"] == verified["hash"]
    assert run("audit", "verify", "--known", f"1:{lines[0]['hash']}").exit_code == 0
    for known, why in ((f"1:{'0' * 64}", "written anew"), (f"9:{'0' * 64}", "no such entry")):
        refused = run("audit", "verify", "--known", known)
        assert refused.exit_code == 1
        assert why in refused.output
    assert run("audit", "verify", "--known", "x").exit_code == 2

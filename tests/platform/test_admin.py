"""What operators see and do: tenants, keys, residency, and the engine itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from api_running import Api, run_api

from loraplex.adapters.database import Database
from loraplex.engine.client import EngineClient
from loraplex.platform.quarantine import REASON, quarantine_crasher

pytestmark = pytest.mark.anyio


@pytest.fixture
async def api(database: Database, tmp_path: Path, tiny_model_dir: Path) -> AsyncIterator[Api]:
    async with run_api(database, tmp_path, tiny_model_dir) as running:
        yield running


async def test_tenants_are_created_listed_and_suspended(api: Api) -> None:
    """A tenant's life, as the operator sees it; a second one of a name is a final 409."""
    auth, url = api.auth("operator"), "/api/v1/admin/tenants"
    created = await api.client.post(url, json={"slug": "initech", "name": "Initech Ltd"}, headers=auth)
    assert (created.status_code, created.json()["slug"]) == (201, "initech")
    again = await api.client.post(url, json={"slug": "initech"}, headers=auth)
    assert (again.status_code, again.headers["x-should-retry"]) == (409, "false")
    suspended = await api.client.patch(f"{url}/initech", json={"suspended": True}, headers=auth)
    assert suspended.json()["suspended"] is True
    listed = (await api.client.get(url, headers=auth)).json()["data"]
    assert [tenant["slug"] for tenant in listed] == ["acme", "globex", "initech"]
    assert (await api.client.patch(f"{url}/nobody", json={"suspended": True}, headers=auth)).status_code == 404


@pytest.mark.parametrize("slug", ["", "..", "A", "a/b", "x" * 64, 7, None])
async def test_bad_tenant_names_are_400(api: Api, slug: object) -> None:
    """The field is named."""
    response = await api.client.post("/api/v1/admin/tenants", json={"slug": slug}, headers=api.auth("operator"))
    assert (response.status_code, response.json()["error"]["param"]) == (400, "slug")


async def test_a_keys_secret_is_shown_once(api: Api) -> None:
    """The answer to its creation holds the secret; nothing later does; it works until it is revoked."""
    auth, url = api.auth("operator"), "/api/v1/admin/keys"
    body = {"tenant": "acme", "name": "ci", "scopes": ["inference"]}
    created = (await api.client.post(url, json=body, headers=auth)).json()
    key = {"authorization": f"Bearer {created['secret']}"}
    assert (await api.client.get("/v1/models", headers=key)).status_code == 200
    listed = await api.client.get(url, params={"tenant": "acme"}, headers=auth)
    assert created["secret"] not in listed.text
    assert created["id"] in {entry["id"] for entry in listed.json()["data"]}
    revoked = await api.client.delete(f"{url}/{created['id']}", headers=auth)
    assert revoked.json()["revoked_at"] is not None
    assert (await api.client.get("/v1/models", headers=key)).status_code == 401


@pytest.mark.parametrize(
    "wrong",
    [
        {"tenant": "nobody"},
        {"tenant": None},
        {"scopes": []},
        {"scopes": ["root"]},
        {"scopes": ["admin"]},
        {"name": ""},
        {"name": "x" * 101},
        {"expires_at": "tomorrow"},
        {"expires_at": "2001-01-01T00:00:00Z"},
        {"expires_at": "2999-01-01T00:00:00"},
        {"expires_at": "9999-12-31T23:59:59-23:59"},  # in UTC it is beyond what datetimes reach
        {"secret": "mine"},
    ],
)
async def test_keys_that_make_no_sense_are_refused(api: Api, wrong: dict[str, object]) -> None:
    """Unknown tenant, unknown or misplaced scopes, no name, no future: a 4xx that says which."""
    body = {"tenant": "acme", "name": "ci", "scopes": ["inference"]} | wrong
    response = await api.client.post("/api/v1/admin/keys", json=body, headers=api.auth("operator"))
    assert response.status_code in (400, 404)
    assert next(iter(wrong)) in response.text or "scopes" in response.text


async def test_an_expiry_in_the_future_is_kept(api: Api) -> None:
    """Keys may end by themselves."""
    moment = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    body = {"tenant": None, "name": "ops", "scopes": ["admin"], "expires_at": moment}
    created = await api.client.post("/api/v1/admin/keys", json=body, headers=api.auth("operator"))
    assert created.status_code == 201
    assert datetime.fromisoformat(created.json()["expires_at"]) == datetime.fromisoformat(moment)


async def test_while_the_engine_is_down_adapters_are_on_disk(api: Api) -> None:
    """The list still answers; the engine's own view says when to ask again."""
    for who in ("acme", "globex"):
        await api.client.post("/api/v1/adapters", json={"name": "bot"}, headers=api.auth(who))
    first = (await api.client.get("/api/v1/admin/adapters?limit=1", headers=api.auth("operator"))).json()
    assert [adapter["tenant"] for adapter in first["data"]] == ["acme"]
    params = {"after": first["next"]}
    rest = (await api.client.get("/api/v1/admin/adapters", params=params, headers=api.auth("operator"))).json()
    assert ([adapter["tenant"] for adapter in rest["data"]], rest["next"]) == (["globex"], None)
    engine = await api.client.get("/api/v1/admin/engine", headers=api.auth("operator"))
    assert (engine.status_code, engine.json()["error"]["code"]) == (503, "engine_unavailable")
    assert engine.headers["retry-after"] == "5"


async def test_residency_and_engine_state_come_from_the_engine(
    database: Database,
    tiny_model_dir: Path,
    make_adapter: Callable[..., Path],
    tmp_path: Path,
    engine_dir: Path,
    engine: EngineClient,
    new_seed: Callable[[], int],
) -> None:
    """An adapter comes to host and device memory by its upload, is used from there, and is seen in the step."""
    async with run_api(database, engine_dir, tiny_model_dir, engine=engine) as api:
        loads = (await engine.inspect()).status.adapter_loads
        await api.client.post("/api/v1/adapters", json={"name": "bot"}, headers=api.auth("acme"))
        uploaded = (await api.upload("acme", "bot", make_adapter(tmp_path / "peft", seed=new_seed()))).json()
        async with asyncio.timeout(60):
            while await residency(api) != ["disk", "host", "device"]:  # noqa: ASYNC110 - another process loads it
                await asyncio.sleep(0.02)
        body = {"model": "bot", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        answer = await api.client.post("/v1/chat/completions", json=body, headers=api.auth("acme"))
        assert (answer.status_code, answer.json()["model"]) == (200, "acme/bot@1")
        state = (await api.client.get("/api/v1/admin/engine", headers=api.auth("operator"))).json()
        assert any(uploaded["digest"] in step["adapters"] for step in state["recent_steps"])
        assert (state["status"]["running"], state["adapters_in_batch"]) == (0, [])
        assert (state["status"]["adapter_loads"], state["model"]["num_layers"]) == (loads + 1, 2)


async def residency(api: Api) -> list[str]:
    response = await api.client.get("/api/v1/admin/adapters", headers=api.auth("operator"))
    [adapter] = response.json()["data"]
    return adapter["versions"][0]["residency"]


async def test_an_operator_takes_a_version_out_and_lets_it_back(
    api: Api, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    """By its bytes: 404 in inference, 409 with the reason where the version is named; released, it is run again."""
    folder, operator = make_adapter(tmp_path / "peft", rank=1), api.auth("operator")
    await api.client.post("/api/v1/adapters", json={"name": "bot"}, headers=api.auth("acme"))
    digest = (await api.upload("acme", "bot", folder)).json()["digest"]
    url, why = f"/api/v1/admin/versions/{digest}", {"reason": "it insults people"}

    taken_out = await api.client.post(f"{url}/quarantine", json=why, headers=operator)

    assert taken_out.status_code == 200
    assert [version["model"] for version in taken_out.json()["data"]] == ["acme/bot@1"]
    assert (await api.client.get("/v1/models/bot", headers=api.auth("acme"))).status_code == 404
    told = (await api.client.get("/api/v1/adapters/bot/versions/1", headers=api.auth("acme"))).json()
    assert (told["state"], told["state_reason"]) == ("quarantined", "it insults people")
    warmed = await api.client.post("/api/v1/adapters/bot/versions/1/warm", headers=api.auth("acme"))
    for refused in (warmed, await api.upload("acme", "bot", folder)):
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "version_not_ready")
        assert "it insults people" in refused.json()["error"]["message"]

    released = await api.client.post(f"{url}/release", json={"reason": "sorry"}, headers=operator)

    assert [version["state"] for version in released.json()["data"]] == ["validating"]
    assert (await api.upload("acme", "bot", folder)).status_code == 201
    assert (await api.client.get("/v1/models/bot", headers=api.auth("acme"))).status_code == 200
    again = await api.client.post(f"{url}/release", json={"reason": "sorry"}, headers=operator)
    assert (again.status_code, again.json()["error"]["code"]) == (404, "adapter_not_found")
    assert (await api.client.post(f"{url}/quarantine", json={}, headers=operator)).status_code == 400
    assert (await api.client.post(f"{url}/quarantine", json=why, headers=api.auth("acme"))).status_code == 403


async def test_what_the_engine_crashed_with_is_taken_out_for_good(
    api: Api, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    """The version is quarantined in the registry with the reason; bytes that no version has harm nothing, and what is
    still to be validated is left to that."""
    await api.client.post("/api/v1/adapters", json={"name": "bot"}, headers=api.auth("acme"))
    digest = (await api.upload("acme", "bot", make_adapter(tmp_path / "peft", rank=1))).json()["digest"]
    facts = {"size_bytes": 1, "max_rank": 1, "targets": [], "report": []}
    tenant_id, registry = await api.tenant_id("acme"), api.services.registry
    validating = await registry.publish(tenant_id, "bot", digest="1" * 64, **facts)  # type: ignore[arg-type]
    for crasher in ("0" * 64, digest, digest, validating.digest):
        await quarantine_crasher(api.services, crasher)
    assert await registry.get_version(tenant_id, "bot", 2) == validating
    told = (await api.client.get("/api/v1/adapters/bot/versions/1", headers=api.auth("acme"))).json()
    assert (told["state"], told["state_reason"]) == ("quarantined", REASON)

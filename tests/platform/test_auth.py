"""Who may call what: every route, every scope, every kind of wrong key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from api_running import Api, run_api
from clock import Clock
from litestar import Litestar, get

from loraplex.adapters.changes import MAX_STALE_SECONDS, ChangeFeed
from loraplex.adapters.database import Database
from loraplex.platform.auth import Authenticator, require_closed
from loraplex.platform.tenants import InvalidKey, Principal, TenantDirectory

pytestmark = pytest.mark.anyio

PUBLIC = {"/livez", "/readyz", "/health", "/ping", "/metrics", "/version", "/openapi.json"}


@pytest.fixture
async def api(database: Database, tmp_path: Path, tiny_model_dir: Path) -> AsyncIterator[Api]:
    async with run_api(database, tmp_path, tiny_model_dir) as running:
        yield running


class CountingDirectory(TenantDirectory):
    """Counts how often a key was looked up."""

    asked = 0

    async def authenticate(self, secret: str) -> Principal:
        self.asked += 1
        return await super().authenticate(secret)


def closed_routes(app: Litestar) -> list[tuple[str, str, str]]:
    """(method, concrete path, needed scope) of every route of the API that is not public."""
    return [
        (method, route.path_format.replace("{number}", "1").replace("{", "").replace("}", ""), handler.opt["scope"])
        for route in app.routes
        for handler in route.route_handlers
        for method in handler.http_methods
        if method != "OPTIONS" and not handler.opt.get("public") and "page" not in handler.opt
    ]


async def test_public_routes_are_a_short_list(api: Api) -> None:
    """Nothing but health, metrics, the version and the document is open."""
    public = {r.path for r in api.app.routes for h in r.route_handlers if h.opt.get("public")}
    assert public == PUBLIC


async def test_every_other_route_wants_a_key(api: Api) -> None:
    """Without a key every route answers 401, says how to send one, and asks for Bearer."""
    for method, path, _ in closed_routes(api.app):
        response = await api.client.request(method, path)
        assert response.status_code == 401, (method, path)
        assert response.headers["www-authenticate"] == "Bearer"
        if method == "HEAD":
            continue  # it has no body
        error = response.json()["error"]
        assert error["type" if path.startswith("/v1/messages") else "code"] in (None, "authentication_error")
        assert "Authorization: Bearer" in error["message"]


async def test_every_route_wants_its_scope(api: Api) -> None:
    """A valid key without the route's scope gets 403, on every route."""
    for method, path, scope in closed_routes(api.app):
        for who, scopes in {"acme-chat": {"inference"}, "acme-adapters": {"adapters"}, "operator": {"admin"}}.items():
            if scope in scopes:
                continue
            response = await api.client.request(method, path, headers=api.auth(who))
            assert response.status_code == 403, (method, path, who)
            if method != "HEAD":
                error = response.json()["error"]
                assert error.get("code", error["type"]) in ("insufficient_permissions", "permission_error")


async def test_an_operator_is_told_to_make_a_tenants_key(api: Api) -> None:
    """An operator's key has no tenant whose adapters it could be asked for."""
    response = await api.client.get("/api/v1/adapters", headers=api.auth("operator"))
    assert "POST /api/v1/admin/keys" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "header",
    [
        "Bearer",
        "Bearer ",
        "Basic YWNtZTpzZWNyZXQ=",
        "Bearer nonsense",
        "Bearer lk_" + "a" * 5000,
        "Bearer lk_0123456789ab_0123456789012345678901234567890123456789012_000000",
        "Bearer k\u00e9y",
    ],
)
async def test_wrong_keys_all_read_the_same(api: Api, header: str) -> None:
    """Malformed and unknown keys get one answer: 401 invalid_api_key."""
    response = await api.client.get("/v1/models", headers={"authorization": header.encode()})
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert "unknown, revoked or expired" in response.json()["error"]["message"]


async def test_a_key_may_come_in_anthropics_header(api: Api) -> None:
    """`x-api-key` is as good as Bearer, on every route; two keys that differ are no key."""
    acme, globex = api.keys["acme"], api.keys["globex"]

    async def status(**headers: str) -> int:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return (await api.client.get("/v1/models", headers=sent)).status_code

    assert await status(x_api_key=acme) == 200
    assert await status(x_api_key="") == 401
    assert await status(x_api_key="nonsense") == 401
    assert await status(x_api_key=acme, authorization=f"Bearer {acme}") == 200
    assert await status(x_api_key="", authorization=f"Bearer {acme}") == 200
    assert await status(x_api_key=globex, authorization=f"Bearer {acme}") == 401
    assert await status(x_api_key=acme, authorization=f"Basic {acme}") == 401


async def test_revocation_through_the_admin_api_works_at_once(api: Api) -> None:
    """A key that was cached a moment ago is refused as soon as it is revoked here."""
    headers = api.auth("acme")
    assert (await api.client.get("/v1/models", headers=headers)).status_code == 200
    key_id = api.keys["acme"].split("_")[1]
    assert (await api.client.delete(f"/api/v1/admin/keys/{key_id}", headers=api.auth("operator"))).status_code == 200
    response = await api.client.get("/v1/models", headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")


async def test_a_suspended_tenant_is_refused_until_it_is_resumed(api: Api) -> None:
    """Suspension stops every key of the tenant, and no other's."""
    for suspended, expected in ((True, 401), (False, 200)):
        change = {"suspended": suspended}
        await api.client.patch("/api/v1/admin/tenants/acme", json=change, headers=api.auth("operator"))
        assert (await api.client.get("/v1/models", headers=api.auth("acme"))).status_code == expected
        assert (await api.client.get("/v1/models", headers=api.auth("globex"))).status_code == 200


async def test_a_key_is_asked_for_again_after_the_ttl(database: Database) -> None:
    """What ends without a change, as a key that expires, goes on for at most the cache's time."""
    tenants = CountingDirectory(database)
    await tenants.create_tenant("acme")
    _, secret = await tenants.create_key("acme", "k", ["inference"])
    clock = Clock()
    authenticator = Authenticator(tenants, ChangeFeed(database), ttl_seconds=10, clock=clock)
    for clock.now, asked in ((0.0, 1), (9.9, 1), (10.1, 2)):
        await authenticator.authenticate(secret)
        assert tenants.asked == asked


async def test_a_key_revoked_elsewhere_goes_on_for_two_seconds_at_most(database: Database, database_url: str) -> None:
    """And for none when it is revoked here."""
    clock = Clock()
    other_server = Database(database_url)
    tenants, changes = TenantDirectory(database), ChangeFeed(database, clock=clock)
    await tenants.create_tenant("acme")
    made = [await tenants.create_key("acme", f"k{i}", ["inference"]) for i in range(2)]
    authenticator = Authenticator(tenants, changes, ttl_seconds=300)
    for _, secret in made:
        await authenticator.authenticate(secret)
    await changes.look()
    await TenantDirectory(other_server).revoke_key(made[0][0].id)
    await other_server.dispose()
    clock.now = MAX_STALE_SECONDS
    with pytest.raises(InvalidKey):
        await authenticator.authenticate(made[0][1])
    await authenticator.authenticate(made[1][1])
    await tenants.revoke_key(made[1][0].id)
    with pytest.raises(InvalidKey):
        await authenticator.authenticate(made[1][1])


async def test_a_key_revoked_while_it_was_checked_is_not_cached(database: Database) -> None:
    """The answer of a check that was under way during a revocation is not kept."""
    tenants = TenantDirectory(database)
    await tenants.create_tenant("acme")
    key, secret = await tenants.create_key("acme", "k", ["inference"])

    class SlowDirectory(TenantDirectory):
        async def authenticate(self, secret: str):
            principal = await super().authenticate(secret)
            await self.revoke_key(key.id)
            await changes.look()
            return principal

    changes = ChangeFeed(database)
    authenticator = Authenticator(SlowDirectory(database), changes, ttl_seconds=1000)
    await authenticator.authenticate(secret)
    with pytest.raises(InvalidKey):
        await authenticator.authenticate(secret)


async def test_the_cache_is_bounded(database: Database) -> None:
    """The oldest key leaves when the cache is full."""
    tenants = CountingDirectory(database)
    await tenants.create_tenant("acme")
    made = [await tenants.create_key("acme", f"k{i}", ["inference"]) for i in range(3)]
    authenticator = Authenticator(tenants, ChangeFeed(database), ttl_seconds=1000, max_entries=2)
    for number, asked in ((0, 1), (1, 2), (2, 3), (2, 3), (1, 3), (0, 4)):
        await authenticator.authenticate(made[number][1])
        assert tenants.asked == asked


def test_a_handler_without_a_scope_fails_at_start() -> None:
    """Forgetting to say who may call a handler is an error at start, not an open door."""

    @get("/forgotten")
    async def forgotten() -> None: ...

    with pytest.raises(RuntimeError, match="/forgotten"):
        require_closed(Litestar([forgotten], openapi_config=None))

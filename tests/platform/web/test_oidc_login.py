"""Signing in through an OpenID provider: who gets in, as what, and what of the provider's word is not taken."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from api_running import Api, run_api
from browsing import PASSWORD, Visitor, signed_in, text_of, visit
from clock import Clock
from database_fixtures import on_sqlite
from joserfc.jwk import OctKey, RSAKey
from openid_server import CLIENT_ID, CLIENT_SECRET, Provider, running_provider

from loraplex.adapters.database import Database
from loraplex.platform.accounts import NoPassword
from loraplex.platform.login_throttle import PER_ACCOUNT
from loraplex.platform.oidc import RETRY_SECONDS
from loraplex.platform.oidc_flow import Flow

pytestmark = [pytest.mark.anyio, on_sqlite]

CALLBACK = "/admin/login/oidc/callback"


@pytest.fixture
def provider() -> Iterator[Provider]:
    with running_provider() as running:
        yield running


def settings_for(provider: Provider, **more: Any) -> dict[str, Any]:
    return {
        "public_url": "http://127.0.0.1",
        "oidc_issuer": provider.issuer,
        "oidc_client_id": CLIENT_ID,
        "oidc_client_secret": CLIENT_SECRET,
        "oidc_name": "Example SSO",
        "oidc_roles": "platform=operator,acme-team=tenant:acme,nowhere=tenant:nobody,globex-team=tenant:globex",
    } | more


@pytest.fixture
async def api(database: Database, tmp_path: Path, tiny_model_dir: Path, provider: Provider) -> AsyncIterator[Api]:
    async with run_api(database, tmp_path, tiny_model_dir, **settings_for(provider)) as running:
        yield running


async def come_back(visitor: Visitor, provider: Provider, path: str = "", **changed: str) -> httpx.Response:
    """Go to the provider, sign in there, and come back with what it gave."""
    away = await visitor.get(f"/admin/login/oidc{path}")
    assert away.headers["location"].startswith(f"{provider.issuer}/authorize?"), away.text
    given = provider.authorize(away.headers["location"]) | changed
    return await visitor.get(CALLBACK, params={name: value for name, value in given.items() if value})


async def logins(api: Api) -> dict[str, str | None]:
    return {account.login: account.tenant for account in await api.services.accounts.list_accounts()}


async def test_the_first_sign_in_makes_the_account_and_each_decides_its_role(api: Api, provider: Provider) -> None:
    """By the provider's name for the person alone; where the role changes or goes, open sessions end."""
    visitor = visit(api)
    assert "Sign in with Example SSO" in text_of(await visitor.get("/admin", follow_redirects=True))
    provider.claims = {"sub": "u-1", "groups": ["staff", "platform"], "preferred_username": "Ada L@example.com"}
    answer = await come_back(visitor, provider, "?next=/admin/people")
    assert answer.headers["location"] == "/admin/people"
    assert "Example SSO" in text_of(await visitor.get("/admin/people"))
    assert await logins(api) == {"ada-l": None}
    assert "no password here" in text_of(await visitor.get("/admin/account"))

    before = visitor.session
    other = visit(api)
    provider.claims["groups"] = ["acme-team", "globex-team"]
    provider.claims["preferred_username"] = "somebody-else"
    assert (await come_back(other, provider)).status_code == 303
    assert await logins(api) == {"ada-l": "acme"}
    assert (await visitor.get("/admin")).status_code == 303, "a session from before the role changed"
    assert (await other.get("/admin/people")).status_code == 404
    assert other.session != before

    for groups in (["staff"], [], "platforms", ["nowhere"]):
        provider.claims["groups"] = groups
        refused = await come_back(visit(api), provider)
        assert (refused.status_code, "may not sign in here" in text_of(refused)) == (403, True), groups
    assert (await other.get("/admin")).status_code == 303
    await visitor.submit("/admin/login", "/admin/logout")


async def test_an_account_is_the_providers_or_our_own(api: Api, provider: Provider) -> None:
    """A name or an address that is told links nobody; a disabled account stays so; it gets no password."""
    await api.services.accounts.create("ada", PASSWORD)
    provider.claims = {"sub": "u-1", "groups": ["platform"], "preferred_username": "ada", "email": "ada@example.com"}
    assert (await come_back(visit(api), provider)).status_code == 303
    [login] = (await logins(api)).keys() - {"ada"}
    assert login.startswith("ada-")
    with pytest.raises(NoPassword):
        await api.services.accounts.set_password(login, PASSWORD)
    for password in (PASSWORD, "", "!"):
        assert (await visit(api).sign_in(login, password)).status_code in (400, 401)
    operator = await signed_in(api, "ada")
    refused = await operator.submit("/admin/people", f"/admin/people/{login}/password")
    assert (refused.status_code, "has no password" in text_of(refused)) == (409, True)
    await operator.submit("/admin/people", f"/admin/people/{login}/disable")
    assert (await come_back(visit(api), provider)).status_code == 403
    assert len(await logins(api)) == 2
    await operator.submit("/admin/people", f"/admin/people/{login}/enable")
    assert (await come_back(visit(api), provider)).status_code == 303
    await api.services.tenants.set_suspended("acme", True)
    provider.claims["groups"] = ["acme-team"]
    assert (await come_back(visit(api), provider)).status_code == 403


def other_key() -> Any:
    return RSAKey.generate_key(2048, {"kid": "one", "use": "sig"})


async def test_tokens_that_are_not_taken(api: Api, provider: Provider) -> None:
    """By another, for another, at another time, for another sign-in, signed by nobody: no account is made."""
    honest = provider.key
    addresses = (f"127.0.0.{number}" for number in range(1, 100))  # else it is too many tries from one
    for spoil in (
        {"iss": "https://evil.example"},
        {"aud": "another-client"},
        {"aud": [CLIENT_ID, "another"], "azp": "another"},
        {"aud": [CLIENT_ID, "another"]},
        {"exp": 1_700_000_000},
        {"exp": None},
        {"iat": 4_000_000_000},
        {"nonce": "of-another-sign-in"},
        {"nonce": None},
        {"sub": None},
        {"sub": "x" * 256},
        {"at_hash": "AAAA"},
    ):
        provider.spoil = spoil
        visitor = visit(api, client=next(addresses))
        assert (await come_back(visitor, provider)).status_code in (400, 403), spoil
    provider.spoil = {}
    for key, header in (
        (other_key(), {}),
        (other_key(), {"kid": "unknown"}),
        (OctKey.import_key(CLIENT_SECRET), {"alg": "HS256", "kid": "one"}),
    ):
        provider.key, provider.header = key, header
        assert (await come_back(visit(api, client=next(addresses)), provider)).status_code == 400, header
    provider.key, provider.header = honest, {}
    assert await logins(api) == {}
    assert (await come_back(visit(api), provider)).status_code == 303


async def test_answers_to_what_was_not_asked(api: Api, provider: Provider) -> None:
    """Without this browser's cookie, with another's state, twice, from another provider, with an error."""
    visitor, stranger = visit(api), visit(api)
    given = provider.authorize((await visitor.get("/admin/login/oidc")).headers["location"])
    assert (await stranger.get(CALLBACK, params=given)).status_code == 400
    assert (await visitor.get(CALLBACK, params=given | {"state": "x"})).status_code == 400
    assert (await visitor.get(CALLBACK, params=given)).status_code == 400, "the first answer, wrong as it was, ended it"
    assert "/token" not in provider.asked
    assert (await come_back(visitor, provider, iss="https://evil.example")).status_code == 400
    assert (await come_back(visitor, provider, iss="")).status_code == 400
    assert (await come_back(visitor, provider, error="access_denied", code="")).status_code == 403
    assert (await come_back(visitor, provider, code="guessed")).status_code == 400
    assert (await come_back(visitor, provider)).status_code == 303
    assert (await visitor.get(CALLBACK, params=given)).status_code == 400
    for _ in range(PER_ACCOUNT.burst + 1):
        refused = await come_back(visitor, provider, code="guessed")
    assert (refused.status_code, "too many tries" in text_of(refused)) == (429, True)


async def test_nothing_of_a_flow_is_in_what_others_see(api: Api, provider: Provider) -> None:
    """The URL at the provider has values that are made of the browser's secret, and neither it nor the verifier."""
    away = await visit(api).get("/admin/login/oidc?next=//evil.example")
    asked = {name: values[0] for name, values in parse_qs(urlsplit(away.headers["location"]).query).items()}
    cookie = away.headers["set-cookie"]
    flow = Flow(cookie.partition("=")[2].partition(".")[0])
    assert (asked["state"], asked["nonce"]) == (flow.state, flow.nonce)
    assert len({flow.state, flow.nonce, flow.verifier, flow.secret}) == 4
    assert all(value not in away.headers["location"] for value in (flow.secret, flow.verifier, CLIENT_SECRET, "evil"))
    assert all(part in cookie for part in ("HttpOnly", "SameSite=lax", "Max-Age=600"))
    secure = await visit(api, scheme="https").get("/admin/login/oidc")
    assert secure.headers["set-cookie"].startswith("__Host-loraplex_sign_in=")
    assert CLIENT_SECRET not in repr(api.services.settings)
    for path in ("//evil.example", "https://evil.example", "/admin//evil.example"):
        assert (await come_back(visit(api), provider, f"?next={path}")).headers["location"] == "/admin"


async def test_keys_and_claims_are_fetched_when_they_are_needed(api: Api, provider: Provider) -> None:
    """What is published is remembered; a new key is looked for, and claims that the token lacks, of the same person."""
    for _ in range(3):
        assert (await come_back(visit(api), provider)).status_code == 303
    assert (provider.asked.count("/jwks"), provider.asked.count("/me")) == (1, 0)
    assert provider.asked.count("/.well-known/openid-configuration") == 1
    assert api.services.oidc is not None
    api.services.oidc._clock = lambda: 1e9
    provider.rotate()
    provider.claims, provider.userinfo = {"sub": "u-2"}, {"sub": "u-2", "groups": ["platform"]}
    assert (await come_back(visit(api), provider)).status_code == 303
    provider.userinfo["sub"] = "u-1"
    assert (await come_back(visit(api), provider)).status_code == 400


async def test_a_provider_that_does_not_answer_as_it_should(api: Api, provider: Provider) -> None:
    """Another issuer, an endpoint in the clear, too much: a 503 on the login page, where passwords go on to work."""
    assert api.services.oidc is not None
    clock = api.services.oidc._clock = Clock()
    for metadata in (
        {"issuer": "https://other.example"},
        {"token_endpoint": "http://tokens.example/token"},
        {"jwks_uri": None},
        {"id_token_signing_alg_values_supported": ["HS256", "none"]},
        {"padding": "x" * (1 << 20)},
    ):
        provider.metadata = metadata
        clock.now += RETRY_SECONDS
        for _ in range(2):
            answer = await visit(api).get("/admin/login/oidc")
            assert (answer.status_code, "does not answer as it should" in text_of(answer)) == (503, True), metadata
    assert len(provider.asked) == 5, "nobody can have us ask again and again"
    provider.metadata = {}
    clock.now += RETRY_SECONDS
    assert (await come_back(visit(api), provider)).status_code == 303
    await signed_in(api, "ada")


async def test_without_passwords_the_provider_is_the_only_way(
    database: Database, tmp_path: Path, tiny_model_dir: Path, provider: Provider
) -> None:
    """No form, no set-up, no new passwords; an address of the right domain may be asked for besides."""
    more: dict[str, Any] = {"password_login": False, "oidc_email_domains": "example.com"}
    async with run_api(database, tmp_path, tiny_model_dir, **settings_for(provider, **more)) as api:
        assert 'name="password"' not in (await visit(api).get("/admin/login")).text
        assert (await visit(api).get("/admin/setup")).headers["location"] == "/admin/login"
        await api.services.accounts.create("ada", PASSWORD)
        assert (await visit(api).sign_in("ada")).status_code == 403
        visitor = visit(api)
        for claims, status in (
            ({"email": "a@example.com", "email_verified": False}, 403),
            ({"email": "a@evil-example.com", "email_verified": True}, 403),
            ({"email": "a@Example.com", "email_verified": True}, 303),
        ):
            provider.claims = {"sub": "u-1", "groups": ["platform"]} | claims
            assert (await come_back(visitor, provider)).status_code == status
        assert (await visitor.get("/admin/people/new")).status_code == 403
        refused = await visitor.submit("/admin/people", "/admin/people/ada/password")
        assert (refused.status_code, "takes no passwords" in text_of(refused)) == (403, True)

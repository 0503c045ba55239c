"""Limits as operators set them and as clients meet them, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_running import Api, StandingEngine, code, ready_of, run_api
from clock import Clock
from database_fixtures import on_sqlite
from openai import AsyncOpenAI, RateLimitError

from loraplex.adapters.database import Database
from loraplex.adapters.errors import StorageLimitReached
from loraplex.engine.client import EngineUnavailable
from loraplex.engine.events import TokenChunk
from loraplex.engine.generation import Generation
from loraplex.engine.messages import Embed
from loraplex.engine.models.config import ModelConfig, lora_shape
from loraplex.platform.catalog import ResolvedModel
from loraplex.platform.limits.account import Demand
from loraplex.platform.limits.rules import TenantLimits
from loraplex.platform.limits.wording import duration
from loraplex.platform.openai.generation import OPEN_TOKENS

pytestmark = pytest.mark.anyio

ADMIN = "/api/v1/admin"
PROMPT = [5, 6, 7, 8]
COMPLETION = {"model": "tiny", "prompt": PROMPT, "max_tokens": 6}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 6}
FACTS: dict[str, Any] = {"max_rank": 2, "targets": ["q_proj"], "report": []}
"""Of a version."""
CHAT_PROMPT = 21
"""Tokens of its conversation, with what the template adds."""


class EmbeddingEngine(StandingEngine):
    """It embeds, too."""

    def generate(self, request: Any) -> Generation:
        if not isinstance(request, Embed):
            return super().generate(request)
        generation = Generation(request, lambda request_id: None)
        chunk = TokenChunk(request.request_id, [], None, "stop", embedding=bytes(64 * 4))
        asyncio.get_running_loop().call_soon(generation.deliver, chunk)
        return generation


@pytest.fixture
async def api(database: Database, tmp_path: Path, tiny_model_dir: Path) -> AsyncIterator[Api]:
    """With a clock that stands, at 0."""
    engine = EmbeddingEngine(ready_of(lora_shape(ModelConfig.from_folder(tiny_model_dir))))
    async with run_api(database, tmp_path, tiny_model_dir, engine=engine) as running:
        running.services.limiter._clock = running.services.shared_use._clock = Clock()
        yield running


def clock_of(api: Api) -> Any:
    return api.services.limiter._clock


async def limit(api: Api, whose: str, **limits: int) -> None:
    response = await api.client.put(f"{ADMIN}/{whose}/limits", json=limits, headers=api.auth("operator"))
    assert response.status_code == 200, response.text


async def ask(api: Api, who: str = "acme", path: str = "completions", body: Any = COMPLETION) -> httpx.Response:
    return await api.client.post(f"/v1/{path}", json=body, headers=api.auth(who))


def told(response: httpx.Response) -> dict[str, str]:
    return {
        name.removeprefix("x-ratelimit-"): value
        for name, value in response.headers.items()
        if name.startswith("x-ratelimit-")
    }


def key_id(api: Api, who: str) -> str:
    return api.keys[who].split("_")[1]


@pytest.mark.parametrize(
    ("path", "body", "taken"),
    [
        ("completions", COMPLETION, 10),
        ("completions", COMPLETION | {"stream": True}, 10),
        ("completions", COMPLETION | {"n": 2, "prompt": [PROMPT, PROMPT]}, 2 * 4 + 4 * 6),
        ("chat/completions", CHAT, 6 + CHAT_PROMPT),
        ("chat/completions", CHAT | {"stream": True}, 6 + CHAT_PROMPT),
        ("chat/completions", CHAT | {"max_tokens": None}, OPEN_TOKENS + CHAT_PROMPT),
        ("embeddings", {"model": "tiny", "input": PROMPT}, 4),
    ],
)
@on_sqlite
async def test_every_inference_response_tells_what_is_left(api: Api, path: str, body: Any, taken: int) -> None:
    """Whole or streamed: after the most that this request may use was taken. What it did not use comes back."""
    await limit(api, "tenants/acme", requests_per_minute=60, tokens_per_minute=600)
    response = await ask(api, "acme", path, body)
    assert response.status_code == 200, response.text
    assert told(response) == {
        "limit-requests": "60",
        "limit-tokens": "600",
        "remaining-requests": "59",
        "remaining-tokens": str(600 - taken),
        "reset-requests": "1s",
        "reset-tokens": duration(taken / 10),
    }
    after = int(told(await ask(api))["remaining-tokens"]) + 10
    choices = len(body.get("prompt", [0])) if isinstance(body.get("prompt", [0])[0], list) else 1
    answered = 0 if path == "embeddings" else choices * body.get("n", 1)  # the engine gives one token to each
    prompt_tokens = CHAT_PROMPT if path == "chat/completions" else 4 * choices
    assert after == 600 - prompt_tokens - answered


@on_sqlite
async def test_without_limits_there_are_no_headers(api: Api) -> None:
    """Nor of what is not limited."""
    await limit(api, "tenants/globex", requests_per_minute=1)
    assert told(await ask(api)) == {}
    await limit(api, "tenants/acme", tokens_per_minute=600, concurrent_requests=3)
    assert {name.split("-")[1] for name in told(await ask(api))} == {"tokens"}


@on_sqlite
async def test_limits_of_a_key_and_of_its_tenant_both_hold(api: Api) -> None:
    """Headers tell the tighter one; other keys of the tenant have what is left; other tenants have nothing of it."""
    await limit(api, "tenants/acme", requests_per_minute=4)
    await limit(api, f"keys/{key_id(api, 'acme-chat')}", requests_per_minute=2)
    assert told(await ask(api, "acme-chat"))["limit-requests"] == "2"
    assert (await ask(api, "acme-chat")).status_code == 200
    refused = await ask(api, "acme-chat")
    assert (code(refused), refused.json()["error"]["type"]) == ((429, "rate_limit_exceeded"), "requests")
    assert refused.json()["error"]["message"] == (
        "Rate limit reached for this API key: 2 requests per minute, of which 0 are left; this request needs 1. "
        "Try again in 30 s."
    )
    assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("30", "30000")
    assert (told(refused)["remaining-requests"], told(refused)["reset-requests"]) == ("0", "1m0s")

    first, second, third = [await ask(api, "acme") for _ in range(3)]
    assert [told(answer)["remaining-requests"] for answer in (first, second, third)] == ["1", "0", "0"]
    assert "the tenant `acme`: 4 requests per minute" in third.json()["error"]["message"]
    assert told(await ask(api, "globex")) == {}
    clock_of(api).now = float(third.headers["retry-after"])
    assert (await ask(api, "acme")).status_code == 200


@on_sqlite
async def test_what_can_never_fit_is_not_tried_again(api: Api) -> None:
    """More tokens than the limit is: the client is told so, and its library to leave it."""
    await limit(api, "tenants/acme", tokens_per_minute=9)
    refused = await ask(api)
    assert (code(refused), refused.headers["x-should-retry"]) == ((429, "rate_limit_exceeded"), "false")
    assert "9 tokens per minute; this request needs 10, so it can never run" in refused.json()["error"]["message"]
    assert "retry-after" not in refused.headers
    assert told(refused)["remaining-tokens"] == "9"


@on_sqlite
async def test_openais_client_waits_as_it_is_told(api: Api) -> None:
    """A 429 is its RateLimitError; where it may try again by itself, it does, and succeeds."""
    await limit(api, "tenants/acme", tokens_per_minute=600_000)
    waits = []

    async def pass_time(response: httpx.Response) -> None:
        if response.status_code == 429:
            waits.append(int(response.headers["retry-after-ms"]))
            clock_of(api).now += waits[-1] / 1000

    transport, acme = httpx.ASGITransport(api.app), await api.services.tenants.authenticate(api.keys["acme"])
    async with httpx.AsyncClient(transport=transport, event_hooks={"response": [pass_time]}) as http:
        client = AsyncOpenAI(api_key=api.keys["acme"], base_url="http://api/v1", http_client=http)
        await api.services.limiter.admit(acme, ResolvedModel("tiny"), Demand(599_995, 1))
        with pytest.raises(RateLimitError) as raised:
            await client.with_options(max_retries=0).completions.create(**COMPLETION)
        assert (raised.value.code, raised.value.type, waits) == ("rate_limit_exceeded", "tokens", [1])
        await api.services.limiter.admit(acme, ResolvedModel("tiny"), Demand(15, 1))
        assert (await client.completions.create(**COMPLETION)).choices[0].text
        assert waits == [1, 1]


@on_sqlite
async def test_places_of_running_requests_and_waiting_prompts(api: Api) -> None:
    """A request holds a place until it ends, however it ends; its prompt waits until its answer begins. The lines of
    batches count for nothing."""
    await limit(api, "tenants/acme", concurrent_requests=2, queued_tokens=10)
    tenants, limiter = api.services.tenants, api.services.limiter
    acme, demand = await tenants.authenticate(api.keys["acme"]), Demand(8, 6)
    first = await limiter.admit(acme, ResolvedModel("tiny"), demand)
    refused = await ask(api, body=COMPLETION | {"prompt": PROMPT * 2})
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "tokens")
    assert "10 tokens of prompts that wait, of which 4 are left" in refused.json()["error"]["message"]
    assert refused.headers["retry-after"] == "1"
    first.begin()
    second = await limiter.admit(acme, ResolvedModel("tiny"), demand)
    second.begin()
    refused = await ask(api)
    assert "2 requests at the same time, of which 0 are left" in refused.json()["error"]["message"]
    in_batch = await tenants.principal_of(acme.key_id)
    assert (await limiter.admit(in_batch, ResolvedModel("tiny"), Demand(10**9, 10**9))).headers == {}
    for _ in range(2):
        second.settle(0)
    assert [(await ask(api)).status_code for _ in range(3)] == [200] * 3


@on_sqlite
async def test_what_the_engine_fails_at_has_used_no_tokens(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's fault is not on the client's account."""
    await limit(api, "tenants/acme", tokens_per_minute=20, concurrent_requests=1)

    def fail(request: Any) -> Generation:
        raise EngineUnavailable("the engine restarts", retry_after_seconds=1)

    with monkeypatch.context() as patch:
        patch.setattr(api.services.engine, "generate", fail)
        for path, body in (("completions", COMPLETION), ("embeddings", {"model": "tiny", "input": PROMPT})):
            assert (await ask(api, "acme", path, body)).status_code == 503
    assert told(await ask(api))["remaining-tokens"] == "10"


@on_sqlite
async def test_one_adapter_cannot_take_all(api: Api) -> None:
    """A limit for each of a tenant's adapters: others, and the base, have room."""
    await limit(api, "tenants/acme", adapter_requests_per_minute=1)
    registry, acme = api.services.registry, await api.tenant_id("acme")
    for name in ("one", "two"):
        await registry.create_adapter(acme, name, "tiny")
        version = await registry.publish(acme, name, digest=name[0] * 64, size_bytes=100, **FACTS)
        await registry.settle(version, "ready")
        assert (await ask(api, body=COMPLETION | {"model": name})).status_code == 200
        refused = await ask(api, body=COMPLETION | {"model": f"{name}@1"})
        assert f"the adapter `acme/{name}`: 1 requests per minute" in refused.json()["error"]["message"]
    assert (await ask(api)).status_code == 200


async def test_what_a_tenant_keeps_is_limited(api: Api) -> None:
    """Adapters, versions, and bytes, of which the same count once. What is deleted makes room, of others it is not."""
    await limit(api, "tenants/acme", adapters=2, versions=3, stored_bytes=250)
    registry, acme = api.services.registry, await api.tenant_id("acme")
    for name in ("one", "two"):
        await registry.create_adapter(acme, name, "tiny")
    refused = await api.client.post("/api/v1/adapters", json={"name": "three"}, headers=api.auth("acme"))
    assert (code(refused), refused.headers["x-should-retry"]) == ((429, "storage_limit_reached"), "false")
    assert "You have 2 adapters, and may have 2" in refused.json()["error"]["message"]
    assert (await api.client.post("/api/v1/adapters", json={"name": "b"}, headers=api.auth("globex"))).is_success

    for name, digest in (("one", "a"), ("two", "a"), ("one", "b")):
        await registry.publish(acme, name, digest=digest * 64, size_bytes=100, **FACTS)
    with pytest.raises(StorageLimitReached, match="You have 3 versions"):
        await registry.publish(acme, "two", digest="b" * 64, size_bytes=100, **FACTS)
    await registry.delete_version(acme, "two", 1)
    with pytest.raises(StorageLimitReached, match="of 100 bytes you would keep 300, and may keep 250"):
        await registry.publish(acme, "two", digest="c" * 64, size_bytes=100, **FACTS)
    await registry.publish(acme, "two", digest="b" * 64, size_bytes=100, **FACTS)


async def test_other_servers_follow_a_change(api: Api, database_url: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    """A limit that is set through one server holds on another once that has looked; so does its end, and the default
    of the settings then."""
    database = Database(database_url)
    default = {"tenant_limits": TenantLimits(requests_per_minute=77)}
    async with run_api(database, tmp_path, tiny_model_dir, keys=api.keys, **default) as other:
        for limits, seen in (({}, "77"), ({"requests_per_minute": 5}, "5"), ({}, "77")):
            await limit(api, "tenants/acme", **limits)
            await other.services.changes.look()
            assert told(await ask(other))["limit-requests"] == seen
    await database.dispose()


@on_sqlite
async def test_operators_set_and_see_limits(api: Api) -> None:
    """All of an owner's at once, and shown with it; what makes no sense is refused; tenants have no way to them."""
    operator = api.auth("operator")
    await limit(api, "tenants/acme", tokens_per_minute=1000, versions=9)
    await limit(api, "tenants/acme", tokens_per_minute=2000)
    shown = (await api.client.get(f"{ADMIN}/tenants/acme/limits", headers=operator)).json()
    assert {name: value for name, value in shown.items() if value is not None} == {"tokens_per_minute": 2000}
    listed = (await api.client.get(f"{ADMIN}/tenants", headers=operator)).json()["data"]
    assert [tenant["limits"]["tokens_per_minute"] for tenant in listed] == [2000, None]
    key = key_id(api, "acme-chat")
    await limit(api, f"keys/{key}", concurrent_requests=1)
    keys = (await api.client.get(f"{ADMIN}/keys", headers=operator)).json()["data"]
    assert [each["limits"]["concurrent_requests"] for each in keys if each["id"] == key] == [1]
    for whose, body, status in (
        ("tenants/acme", {"tokens_per_minute": 0}, 400),
        ("tenants/acme", {"tokens_per_minute": 10**13}, 400),
        (f"keys/{key}", {"versions": 3}, 400),
        ("tenants/nobody", {}, 404),
        ("keys/nobody", {}, 404),
    ):
        refused = await api.client.put(f"{ADMIN}/{whose}/limits", json=body, headers=operator)
        assert refused.status_code == status, refused.text
        assert next(iter(body), "") in refused.text
    for method in ("GET", "PUT"):
        asked = await api.client.request(method, f"{ADMIN}/tenants/acme/limits", json={}, headers=api.auth("acme"))
        assert asked.status_code == 403

"""A version is asked as its profile says: what wins over what, own chat templates, and who may change them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from api_running import Api, StandingEngine, refusal, run_api
from database_fixtures import on_sqlite

from loraplex.adapters.changes import ChangeFeed
from loraplex.adapters.database import Database
from loraplex.adapters.profile import DEFAULT_PROFILE, ServingProfile
from loraplex.adapters.profile_store import ProfileInfo, ProfileStore
from loraplex.adapters.registry import AdapterRegistry
from loraplex.platform.catalog import Catalog
from loraplex.platform.profile_cache import ProfileCache

pytestmark = pytest.mark.anyio

PROFILE = "/api/v1/adapters/{}/versions/{}/profile"
SHOUT = "{% for m in messages %}{{ m.role | upper }}:{{ m.content }};{% endfor %}BOT:"
GEMMA_LIKE = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)
USER = {"role": "user", "content": "Hi"}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, make_adapter: Callable[..., Path]) -> list[Path]:
    return [
        make_adapter(tmp_path_factory.mktemp("adapter"), rank=2, modules=["q_proj"], seed=seed) for seed in range(3)
    ]


@pytest.fixture
async def api(database: Database, tmp_path: Path, tiny_model_dir: Path, folders: list[Path]) -> AsyncIterator[Api]:
    """acme's `plain`, and `shouting`, which brings a template; one version each."""
    async with run_api(database, tmp_path, tiny_model_dir) as running:
        for name, folder, more in (("plain", folders[0], {}), ("shouting", folders[1], {"chat_template": SHOUT})):
            await running.client.post("/api/v1/adapters", json={"name": name}, headers=running.auth("acme"))
            uploaded = await running.upload("acme", name, folder, **{k: v.encode() for k, v in more.items()})
            assert uploaded.status_code == 201, uploaded.text
        yield running


def engine(api: Api) -> StandingEngine:
    return api.services.engine


async def set_profile(api: Api, profile: dict[str, Any], name: str = "plain", **headers: str) -> Any:
    headers = {key.replace("_", "-"): value for key, value in headers.items()}
    return await api.client.put(PROFILE.format(name, 1), json=profile, headers={**headers, **api.auth("acme")})


async def get_profile(api: Api, name: str = "plain", who: str = "acme") -> Any:
    return await api.client.get(PROFILE.format(name, 1), headers=api.auth(who))


async def chat(api: Api, model: str = "plain", **fields: Any) -> Any:
    body = {"model": model, "messages": [USER], **fields}
    return await api.client.post("/v1/chat/completions", json=body, headers=api.auth("acme"))


async def prompt_of(api: Api, model: str, **fields: Any) -> str:
    """What the engine was asked, as text with special tokens."""
    response = await chat(api, model, **fields)
    assert response.status_code == 200, response.text
    return api.services.text._tokenizer.decode(engine(api).asked[-1].prompt, skip_special_tokens=False)


@on_sqlite
async def test_a_request_wins_over_the_profile_and_that_over_the_server(api: Api) -> None:
    """Field by field; null is not given, 0 and -1 are; stops add up; a default never asks for more than fits."""
    profile = {"temperature": 0.2, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "max_tokens": 7, "stop_token_ids": [9]}
    assert (await set_profile(api, profile)).status_code == 200
    room = 512 - len(api.services.text.render_chat([USER]))
    table: list[tuple[str, dict[str, Any], tuple[Any, ...]]] = [
        # model, the request's fields -> temperature, top_p, top_k, min_p, max_tokens, stop_token_ids
        ("tiny", {}, (1.0, 1.0, 0, 0.0, room, ())),
        ("plain", {}, (0.2, 0.9, 40, 0.1, 7, (9,))),
        ("plain", dict.fromkeys(profile), (0.2, 0.9, 40, 0.1, 7, (9,))),
        ("plain", {"temperature": 0, "top_p": 1, "top_k": -1, "min_p": 0}, (0.0, 1.0, 0, 0.0, 7, (9,))),
        ("plain", {"max_tokens": 9, "stop_token_ids": [8, 9]}, (0.2, 0.9, 40, 0.1, 9, (8, 9))),
        ("plain", {"max_completion_tokens": 3}, (0.2, 0.9, 40, 0.1, 3, (9,))),
    ]
    for model, fields, expected in table:
        assert (await chat(api, model, **fields)).status_code == 200
        asked = engine(api).asked[-1].sampling
        seen = asked.temperature, asked.top_p, asked.top_k, asked.min_p, asked.max_tokens, asked.stop_token_ids
        assert seen == expected, (model, fields)

    await set_profile(api, {"max_tokens": 9999})
    await chat(api)
    assert engine(api).asked[-1].sampling.max_tokens == room


@on_sqlite
async def test_completions_take_sampling_stops_and_limit_and_no_words(api: Api) -> None:
    """A system prompt and a template are for conversations."""
    profile = {"temperature": 0.2, "max_tokens": 7, "context_limit": 10, "system_prompt": "No.", "stop": ["#"]}
    await set_profile(api, profile)

    async def complete(**fields: Any) -> Any:
        body = {"model": "plain", "prompt": "Hello", **fields}
        return await api.client.post("/v1/completions", json=body, headers=api.auth("acme"))

    answered = (await complete()).json()
    asked = engine(api).asked[-1]
    assert asked.prompt == api.services.text.encode("Hello")
    assert (asked.sampling.temperature, asked.sampling.max_tokens) == (0.2, 5)
    assert (answered["choices"][0]["text"], answered["choices"][0]["finish_reason"]) == ("", "stop")
    for fields in ({"prompt": "x" * 10}, {"max_tokens": 6}):
        refused = await complete(**fields)
        assert refusal(refused) == (400, "context_length_exceeded", "prompt")
        assert "maximum context length is 10 tokens" in refused.json()["error"]["message"]


@on_sqlite
async def test_the_system_prompt_begins_conversations_that_have_none(api: Api) -> None:
    """One of the request's own, by either name and at any place, stands alone; profile stops add to the request's."""
    await set_profile(api, {"system_prompt": "Be kind.", "stop": ["#"]})
    assert "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi" in await prompt_of(api, "plain")
    for role in ("system", "developer"):
        messages = [USER, {"role": role, "content": "Be curt."}]
        assert "Be kind." not in await prompt_of(api, "plain", messages=messages)
    assert "Be kind." not in await prompt_of(api, "tiny")
    for stop in (None, [], "never"):
        assert (await chat(api, stop=stop)).json()["choices"][0]["message"]["content"] == ""
    assert (await chat(api, "tiny")).json()["choices"][0]["message"]["content"] == "#"


@on_sqlite
async def test_each_adapter_has_its_own_template_and_the_base_keeps_its(api: Api, folders: list[Path]) -> None:
    """Also where versions share a name's traffic: the profile is that of the version that answers."""
    assert await prompt_of(api, "shouting") == "USER:Hi;BOT:"
    assert (
        await prompt_of(api, "tiny")
        == await prompt_of(api, "plain")
        == ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    )
    config = {"chat_template": [{"name": "default", "template": "{{ bos_token }}{{ messages[-1].content }}?"}]}
    again = await api.upload("acme", "shouting", folders[2], tokenizer_config=json.dumps(config).encode())
    assert again.json()["profile"] == {"chat_template": config["chat_template"][0]["template"]}
    prod = {"split": {"1": 1, "2": 1}}
    await api.client.put("/api/v1/adapters/shouting/aliases/prod", json=prod, headers=api.auth("acme"))
    seen = set()
    for user in map(str, range(64)):  # who gets which version depends on the adapter's id, which is new each time
        if len(seen) == 2:
            break
        prompt = await prompt_of(api, "shouting", user=user)
        version = (await chat(api, "shouting", user=user)).json()["model"]
        seen.add((version, prompt))
    assert seen == {("acme/shouting@1", "USER:Hi;BOT:"), ("acme/shouting@2", "<|im_start|>Hi?")}


@on_sqlite
async def test_a_version_is_proven_as_it_will_be_asked(api: Api) -> None:
    """The probes are written by its own template, for it and for the base beside it."""
    probes = [api.services.text._tokenizer.decode(asked.prompt) for asked in engine(api).asked]
    plain, shouting = probes[:6], probes[6:12]
    assert plain[:3] == plain[3:]
    assert plain[0] == "Write a short note about the weather."
    assert shouting[:3] == shouting[3:]
    assert shouting[0] == "USER:Write a short note about the weather.;BOT:"


UNFIT_TEMPLATES = [
    # part of the upload, its content, what is told
    ("chat_template", b"{% for %}", "not valid"),
    ("chat_template", b"{{ messages.nothing.more }}", "fails on these messages"),
    ("chat_template", b"{{ 'x' * 10**9 }}", "of memory"),
    ("chat_template", b"{% if messages | length > 2 %}{{ raise_exception('one turn') }}{% endif %}x", "one turn"),
    ("chat_template", b"{# nothing #}", "makes nothing"),
    ("chat_template", b"", "length >= 1"),
    ("chat_template", b"\xff", "utf-8"),
    ("chat_template", b"a\0b", "matching regex"),
    ("tokenizer_config", b"{", "truncated"),
    ("tokenizer_config", b'{"chat_template": 7}', "chat_template"),
]


@on_sqlite
async def test_an_upload_with_a_template_that_cannot_serve_is_refused(api: Api, folders: list[Path]) -> None:
    """The report names the part and the remedy, and no version is made of it."""
    for part, content, told in UNFIT_TEMPLATES:
        refused = await api.upload("acme", "plain", folders[2], **{part: content})
        assert refusal(refused) == (400, "adapter_invalid", None)
        [failure] = refused.json()["error"]["details"]
        assert (failure["code"], failure["where"]) == ("chat_template_invalid", part)
        assert told in failure["message"]
        assert "leave it out" in failure["message"]
    assert (await api.client.get("/api/v1/adapters/plain", headers=api.auth("acme"))).json()["versions"] == [1]


@on_sqlite
async def test_a_template_may_refuse_system_messages(api: Api, folders: list[Path]) -> None:
    """It is served; requests with one get its words, and so does a profile that would put one in front of each."""
    uploaded = await api.upload("acme", "plain", folders[0], chat_template=GEMMA_LIKE.encode())
    assert (uploaded.json()["version"], uploaded.json()["profile"]) == (1, {"chat_template": GEMMA_LIKE})
    assert await prompt_of(api, "plain") == "<user>Hi"
    refused = await chat(api, messages=[{"role": "system", "content": "x"}, USER])
    assert refusal(refused) == (400, "invalid_value", "messages")
    assert "System role not supported" in refused.json()["error"]["message"]
    assert refusal(await set_profile(api, {"system_prompt": "x"})) == (400, "chat_template_invalid", "chat_template")


async def test_a_profile_is_set_shown_and_cleared(api: Api) -> None:
    """Under its revision; a template that is left out stays, since it may have come with the weights."""
    shown = await get_profile(api, "shouting")
    assert (shown.json(), shown.headers["etag"]) == ({"chat_template": SHOUT}, '"1"')
    profile = {"temperature": 0.5, "system_prompt": "Grüße\n", "stop": ["a"]}
    changed = await set_profile(api, profile, "shouting", if_match='"1"')
    assert (changed.json(), changed.headers["etag"]) == ({**profile, "chat_template": SHOUT}, '"2"')
    detail = await api.client.get("/api/v1/adapters/shouting/versions/1", headers=api.auth("acme"))
    assert detail.json()["profile"] == changed.json()
    assert (await set_profile(api, {"chat_template": None}, "shouting")).json() == {}
    for condition in ({"if_match": '"2"'}, {"if_none_match": "*"}):
        lost = await set_profile(api, profile, "shouting", **condition)
        assert refusal(lost) == (412, "profile_changed", "If-Match")
        assert lost.headers["x-should-retry"] == "false"
    cleared = await api.client.delete(PROFILE.format("shouting", 1), headers=api.auth("acme"))
    assert cleared.status_code == 204
    assert refusal(await get_profile(api, "shouting")) == (404, "adapter_not_found", None)
    assert "<|im_start|>user" in await prompt_of(api, "shouting")
    created = await set_profile(api, profile, "shouting", if_none_match="*")
    assert (created.json(), created.headers["etag"]) == (profile, '"5"')


@on_sqlite
async def test_the_next_version_goes_on_with_a_profile_when_it_is_sent_again(api: Api, folders: list[Path]) -> None:
    """By itself it has none; what is shown of the last one's can be sent as it is."""
    await set_profile(api, {"temperature": 0.5, "chat_template": SHOUT})
    assert (await api.upload("acme", "plain", folders[2])).json()["profile"] is None
    shown = (await get_profile(api)).json()
    sent = await api.client.put(PROFILE.format("plain", 2), json=shown, headers=api.auth("acme"))
    assert (sent.status_code, sent.json()) == (200, shown)
    assert await prompt_of(api, "plain") == "USER:Hi;BOT:"


UNFIT_PROFILES = [
    ({"temperature": 3}, "invalid_value", "temperature"),
    ({"temperature": "0"}, "invalid_type", "temperature"),
    ({"top_p": 0}, "invalid_value", "top_p"),
    ({"max_tokens": 0}, "invalid_value", "max_tokens"),
    ({"context_limit": 513}, "invalid_value", "context_limit"),
    ({"context_limit": 0}, "invalid_value", "context_limit"),
    ({"stop": ["x"] * 9}, "invalid_value", "stop"),
    ({"stop": ["x" * 257]}, "invalid_value", "stop[0]"),
    ({"stop": ["\0"]}, "invalid_value", "stop[0]"),
    ({"stop_token_ids": [-1]}, "invalid_value", "stop_token_ids[0]"),
    ({"system_prompt": "x" * ((32 << 10) + 1)}, "invalid_value", "system_prompt"),
    ({"system_prompt": "a\0"}, "invalid_value", "system_prompt"),
    ({"chat_template": "x" * ((64 << 10) + 1)}, "invalid_value", "chat_template"),
    ({"chat_template": "{{ 1 +"}, "chat_template_invalid", "chat_template"),
    ({"temprature": 1}, "unknown_parameter", "temprature"),
]


@on_sqlite
async def test_what_a_profile_cannot_be_is_refused_by_name(api: Api) -> None:
    """Each bound, and nothing is changed."""
    for profile, code, param in UNFIT_PROFILES:
        assert refusal(await set_profile(api, profile)) == (400, code, param)
    assert (await get_profile(api)).status_code == 404


@on_sqlite
async def test_another_tenants_profile_is_the_same_404_as_none(api: Api) -> None:
    """On every method, byte for byte; a key for inference alone gets nothing either."""
    for method, options in (("GET", {}), ("PUT", {"json": {}}), ("DELETE", {})):
        foreign, missing = [
            await api.client.request(method, PROFILE.format(name, 1), headers=api.auth("globex"), **options)
            for name in ("shouting", "shouted!")
        ]
        assert (foreign.status_code, missing.status_code) == (404, 404)
        assert foreign.content.replace(b"shouting", b"shouted!") == missing.content
        assert (
            await api.client.request(method, PROFILE.format("shouting", 9), headers=api.auth("acme"), **options)
        ).status_code == 404
    assert (await get_profile(api, "shouting", "acme-chat")).status_code == 403
    assert (await get_profile(api, "shouting")).json() == {"chat_template": SHOUT}


async def test_other_servers_see_a_change(api: Api, database_url: str) -> None:
    """A second one that has the old profile in its caches serves the new one after its next look."""
    elsewhere = Database(database_url)
    changes, store = ChangeFeed(elsewhere), ProfileStore(elsewhere)
    catalog, cache = Catalog(AdapterRegistry(elsewhere), changes, "tiny"), ProfileCache(store)
    acme = await api.services.tenants.authenticate(api.keys["acme"])

    async def seen() -> ServingProfile:
        return await cache.of((await catalog.resolve(acme, "plain")).version)

    assert await seen() == DEFAULT_PROFILE
    for temperature in (0.1, 0.2):
        await set_profile(api, {"temperature": temperature})
        await changes.look()
        assert await seen() == ServingProfile(temperature=temperature)
    await api.client.delete(PROFILE.format("plain", 1), headers=api.auth("acme"))
    await changes.look()
    assert await seen() == DEFAULT_PROFILE
    await elsewhere.dispose()


@on_sqlite
async def test_the_cache_asks_once_for_equal_profiles_and_is_bounded(api: Api) -> None:
    """By their length, the least recently used leaving first."""
    acme = await api.services.tenants.authenticate(api.keys["acme"])
    version = await api.services.registry.get_version(acme.tenant_id, "shouting", 1)
    profiles = {mark: ServingProfile(system_prompt=mark * 1000) for mark in "abc"}

    class Counting:
        asked = ""

        async def get(self, tenant_id: str, name: str, number: int) -> ProfileInfo:
            self.asked += name
            return ProfileInfo(profiles[name], 1)

    store = Counting()
    cache = ProfileCache(store, max_chars=2 * profiles["a"].chars)
    for mark in "aabbacab":
        assert await cache.of(replace(version, name=mark, profile_digest=profiles[mark].digest)) == profiles[mark]
    assert store.asked == "abcb"

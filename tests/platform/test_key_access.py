"""What a key with a list of adapters can name: these, and for all else it is as if the tenant did not have it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from api_running import Api, code, run_api
from batch_files import by_custom_id, jsonl, request
from database_fixtures import on_sqlite

from loraplex.adapters.database import Database
from loraplex.platform.batches.requests import OwnRequests
from loraplex.platform.batches.room import Room
from loraplex.platform.batches.worker import run_next
from loraplex.platform.key_terms import BASE

pytestmark = [pytest.mark.anyio, on_sqlite]


@pytest.fixture
async def api(
    database: Database, tmp_path: Path, tiny_model_dir: Path, make_adapter: Callable[..., Path]
) -> AsyncIterator[Api]:
    """acme has bot and router; the key `bot` may name bot alone, `bot-base` the base as well."""
    async with run_api(database, tmp_path, tiny_model_dir) as running:
        for number, name in enumerate(("bot", "router")):
            await running.client.post("/api/v1/adapters", json={"name": name}, headers=running.auth("acme"))
            folder = make_adapter(tmp_path / name, rank=2, seed=number)
            assert (await running.upload("acme", name, folder)).status_code == 201
        for name, adapters in (("bot", ["bot"]), ("bot-base", ["bot", BASE]), ("gone", ["later"])):
            body = {"tenant": "acme", "name": name, "scopes": ["inference"], "adapters": adapters}
            created = await running.client.post("/api/v1/admin/keys", json=body, headers=running.auth("operator"))
            assert (created.status_code, created.json()["adapters"]) == (201, sorted(adapters))
            running.keys[name] = created.json()["secret"]
        yield running


async def ask(api: Api, who: str, path: str = "/v1/completions", **body: Any) -> Any:
    asked = {"prompt": "Hello", "max_tokens": 1} if path == "/v1/completions" else {}
    return await api.client.post(path, json=asked | body, headers=api.auth(who) | {"x-request-id": "same"})


CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}

REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {}),
    ("/v1/chat/completions", CHAT),
    ("/v1/responses", {"input": "Hello", "max_output_tokens": 16}),
    ("/v1/messages", CHAT),
    ("/v1/messages/count_tokens", {"messages": CHAT["messages"]}),
    ("/v1/embeddings", {"input": "Hello"}),
    ("/tokenize", {"prompt": "Hello"}),
    ("/detokenize", {"tokens": [5]}),
]


SUMS: list[tuple[dict[str, Any], bool]] = [
    ({"model": "bot*0.5"}, True),
    ({"model": "bot*0.7+router*0.3"}, False),
    ({"model": "bot*0+bot"}, True),
    ({"model": "bot*0"}, False),
    ({"model": "bot+bot*-1"}, False),
    ({"model": "tiny", "adapter_id": "bot"}, True),
    ({"model": "tiny", "lora_path": "router"}, False),
    ({"model": "tiny", "adapter_id": "tiny"}, False),
    ({"model": "tiny", "adapters": [{"model": "bot", "weight": 0.5}]}, True),
    ({"model": "tiny", "adapters": [{"model": "bot"}, {"model": "router"}]}, False),
    ({"model": "tiny", "adapters": [{"model": "bot", "weight": 0}]}, False),
]


async def test_what_is_not_on_the_list_is_not_there(api: Api) -> None:
    """Wherever a model is named, the answer is that for a name that nobody has, but for the name."""
    for path, body in REQUESTS:
        if path != "/v1/embeddings":  # the engine of this test has none
            assert (await ask(api, "bot", path, model="bot", **body)).status_code == 200, path
        absent = await ask(api, "bot", path, model="nobody", **body)
        assert absent.status_code == 404, path
        for model in ("router", "acme/router@1", "tiny:router", "tiny"):
            refused = await ask(api, "bot", path, model=model, **body)
            assert (refused.status_code, refused.text.replace(model, "nobody", 1)) == (404, absent.text), path


async def test_every_part_of_a_sum_has_to_be_on_it(api: Api) -> None:
    """In whichever field; what cancels out is the base, which has to be on it, too."""
    for named, is_allowed in SUMS:
        answer = await ask(api, "bot", **named)
        assert answer.status_code == (200 if is_allowed else 404), named
        assert is_allowed or code(answer) == (404, "model_not_found"), named
        with_base = await ask(api, "bot-base", **named)
        assert with_base.status_code == (404 if "router" in str(named) else 200), named


async def test_models_are_those_of_the_list(api: Api) -> None:
    """In pages of any size, and one by one; an adapter that comes to be later is there from then on."""

    async def models(who: str, **params: Any) -> list[str]:
        page = (await api.client.get("/v1/models", params=params, headers=api.auth(who))).json()
        assert page["has_more"] is False
        return [model["id"] for model in page["data"]]

    assert await models("acme") == ["tiny", "acme/bot", "acme/router"]
    assert await models("bot-base") == ["tiny", "acme/bot"]
    assert await models("bot", limit=5) == ["acme/bot"]
    assert await models("gone") == []
    for model, status in (("acme/bot", 200), ("acme/router", 404), ("tiny", 404)):
        assert (await api.client.get(f"/v1/models/{model}", headers=api.auth("bot"))).status_code == status
    assert code(await api.client.delete("/v1/models/acme/bot", headers=api.auth("bot"))) == (
        403,
        "insufficient_permissions",
    )


async def test_lines_of_a_batch_run_as_the_key_that_made_it(api: Api) -> None:
    """What the key may not name fails alone."""
    lines = [request("mine", "bot"), request("other", "router"), request("base", "tiny")]
    files = {"file": ("in.jsonl", jsonl(lines))}
    sent = await api.client.post("/v1/files", data={"purpose": "batch"}, files=files, headers=api.auth("bot"))
    body = {"input_file_id": sent.json()["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
    batch = (await ask(api, "bot", "/v1/batches", **body)).json()
    assert await run_next(api.services, api.app, Room(16, 64, lambda: 0))
    ended = (await api.client.get(f"/v1/batches/{batch['id']}", headers=api.auth("bot"))).json()
    answers = {}
    for field in ("output_file_id", "error_file_id"):
        content = await api.client.get(f"/v1/files/{ended[field]}/content", headers=api.auth("bot"))
        answers |= by_custom_id(content.content)
    statuses = {name: line["response"]["status_code"] for name, line in answers.items()}
    assert statuses == {"mine": 200, "other": 404, "base": 404}


async def test_a_batch_that_runs_follows_its_key(api: Api) -> None:
    """What the key may name is looked at for each line, as far as it is known by then."""
    key_id = api.keys["bot"].split("_")[1]
    asking = await api.services.tenants.principal_of(key_id)
    body = jsonl([{"model": "bot", "prompt": "Hello", "max_tokens": 1}])
    async with OwnRequests(api.app, lambda: asking) as requests:
        assert (await requests.post("/v1/completions", body, "b/1")).status == 200
        await api.services.key_changes.change(key_id, lambda terms: replace(terms, adapters=frozenset({BASE})))
        asking = await api.services.tenants.principal_of(key_id)
        assert (await requests.post("/v1/completions", body, "b/2")).status == 404


async def test_a_key_is_changed_rotated_and_looked_at_over_rest(api: Api) -> None:
    """Each answer has an ETag, by which a change is not made of what somebody else has changed; secrets show once."""
    auth = api.auth("operator")
    listed = (await api.client.get("/api/v1/admin/keys?tenant=acme", headers=auth)).json()["data"]
    url = f"/api/v1/admin/keys/{next(key['id'] for key in listed if key['name'] == 'bot')}"
    seen = await api.client.get(url, headers=auth)
    changed = await api.client.patch(
        url, json={"adapters": ["router"], "name": "r"}, headers=auth | {"if-match": seen.headers["etag"]}
    )
    assert (changed.json()["adapters"], changed.json()["scopes"]) == (["router"], ["inference"])
    late = await api.client.patch(url, json={"name": "x"}, headers=auth | {"if-match": seen.headers["etag"]})
    assert code(late) == (412, "key_changed")
    assert (await ask(api, "bot", model="router")).status_code == 200
    assert (await ask(api, "bot", model="bot")).status_code == 404
    assert (await api.client.patch(url, json={"adapters": None}, headers=auth)).json()["adapters"] is None
    assert (await ask(api, "bot", model="tiny")).status_code == 200

    rotated = (await api.client.post(f"{url}/rotate", json={"overlap_seconds": 60}, headers=auth)).json()
    api.keys["new"] = rotated["secret"]
    assert rotated["old_secret"]["ends_at"] > rotated["rotated_at"]
    assert code(await api.client.post(f"{url}/rotate", json={}, headers=auth)) == (409, "rotation_under_way")
    assert [(await ask(api, who, model="bot")).status_code for who in ("bot", "new")] == [200, 200]
    ended = await api.client.delete(f"{url}/old-secret", headers=auth)
    assert (ended.json()["old_secret"], ended.json()["secret"]) == (None, None)
    assert [(await ask(api, who, model="bot")).status_code for who in ("bot", "new")] == [401, 200]
    assert "secret" not in (await api.client.get(url, headers=auth)).text.replace('"old_secret"', "").replace(
        '"secret":null', ""
    )
    await api.client.delete(url, headers=auth)
    assert code(await api.client.patch(url, json={"name": "x"}, headers=auth)) == (409, "key_ended")
    assert code(await api.client.post(f"{url}/rotate", json={}, headers=auth)) == (409, "key_ended")


async def test_changes_that_make_no_sense_are_refused(api: Api) -> None:
    """The field is named, and the key stays what it was."""
    url = f"/api/v1/admin/keys/{api.keys['bot'].split('_')[1]}"
    before = await api.client.get(url, headers=api.auth("operator"))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"adapters": []}, "adapters"),
        ({"adapters": ["acme/bot"]}, "adapters"),
        ({"scopes": ["inference", "adapters"]}, "adapters"),
        ({"scopes": ["admin"]}, "scopes"),
        ({"expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
        ({"tenant": "globex"}, "tenant"),
    ]
    for change, field in wrong:
        refused = await api.client.patch(url, json=change, headers=api.auth("operator"))
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)
    assert (await api.client.get(url, headers=api.auth("operator"))).text == before.text

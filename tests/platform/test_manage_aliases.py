"""Aliases over REST: moved from where they were seen, split, rolled back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from api_running import Api, run_api

from loraplex.adapters.database import Database

pytestmark = pytest.mark.anyio

BOT = "/api/v1/adapters/bot"
PROD = f"{BOT}/aliases/prod"


@pytest.fixture
async def api(
    database: Database, tmp_path: Path, tiny_model_dir: Path, make_adapter: Callable[..., Path]
) -> AsyncIterator[Api]:
    """acme's `bot` has three versions."""
    async with run_api(database, tmp_path, tiny_model_dir) as running:
        await running.client.post("/api/v1/adapters", json={"name": "bot"}, headers=running.auth("acme"))
        for seed in (1, 2, 3):
            folder = make_adapter(tmp_path / str(seed), rank=2, seed=seed)
            assert (await running.upload("acme", "bot", folder)).status_code == 201
        yield running


async def send(api: Api, method: str, path: str, json: Any = None, **headers: str) -> Any:
    options = {} if json is None else {"json": json}
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return await api.client.request(method, path, headers=api.auth("acme") | sent, **options)


async def test_an_alias_moves_with_its_etag(api: Api) -> None:
    """Created only where there is none, moved only from the revision that was seen, 412 else, and nothing changes."""
    created = await send(api, "PUT", PROD, {"version": 1}, if_none_match="*")
    assert (created.status_code, created.json()["split"], created.headers["etag"]) == (200, {"1": 1}, '"1"')
    moved = await send(api, "PUT", PROD, {"split": {"1": 90, "3": 10}}, if_match=created.headers["etag"])
    assert (moved.json()["revision"], moved.json()["split"]) == (2, {"3": 10, "1": 90})
    for headers in ({"if_match": '"1"'}, {"if_none_match": "*"}):
        for method, path, body in (
            ("PUT", PROD, {"version": 2}),
            ("POST", f"{PROD}/rollback", {}),
            ("DELETE", PROD, None),
        ):
            lost = await send(api, method, path, body, **headers)
            assert (lost.status_code, lost.json()["error"]["code"]) == (412, "alias_moved")
    shown = await send(api, "GET", PROD)
    assert (shown.json(), shown.headers["etag"]) == (moved.json(), '"2"')
    assert (await send(api, "GET", BOT)).json()["aliases"] == {"prod": moved.json()}


async def test_an_if_match_that_is_none_is_refused(api: Api, subtests: pytest.Subtests) -> None:
    """400, not a move without its condition."""
    for header in ("", "*", '"x"', 'W/"1"', '"1", "2"', '"' + "9" * 40 + '"'):
        with subtests.test(header=header):
            refused = await send(api, "PUT", PROD, {"version": 1}, if_match=header)
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_precondition")
            assert (await send(api, "GET", PROD)).status_code == 404


async def test_rollbacks_and_history(api: Api) -> None:
    """What it stood for before, in one call; 409 where there is nothing; every move tells who and when."""
    for version in (1, 2, 3):
        await send(api, "PUT", PROD, {"version": version})
    back = await send(api, "POST", f"{PROD}/rollback", {})
    assert (back.status_code, back.json()["split"], back.headers["etag"]) == (200, {"2": 1}, '"4"')
    assert (await send(api, "POST", f"{PROD}/rollback", {"to": 3})).json()["split"] == {"3": 1}
    assert (await send(api, "DELETE", PROD)).status_code == 204
    assert (await send(api, "POST", f"{PROD}/rollback", {})).json()["split"] == {"3": 1}
    none = await send(api, "POST", f"{PROD}/rollback", {"to": 99})
    assert (none.status_code, none.json()["error"]["code"]) == (409, "nothing_to_restore")
    history = (await send(api, "GET", f"{PROD}/history")).json()["data"]
    assert [(move["revision"], move["split"], move["restores"]) for move in history] == [
        (7, {"3": 1}, 3),
        (6, {}, None),
        (5, {"3": 1}, 3),
        (4, {"2": 1}, 2),
        (3, {"3": 1}, None),
        (2, {"2": 1}, None),
        (1, {"1": 1}, None),
    ]
    assert all(move["moved_by"] in api.keys["acme"] for move in history)


NO_TARGETS: list[Any] = [
    {},
    {"version": 1, "split": {"1": 1}},
    {"version": 0},
    {"version": "1"},
    {"version": 10**30},
    {"split": {}},
    {"split": {"0": 1}},
    {"split": {"1": 0}},
    {"split": {"1": -5}},
    {"split": {"1": 1.5}},
    {"split": {"1": 10**9}},
    {"split": {"x": 1}},
    {"split": {str(number): 1 for number in range(1, 10)}},
    {"split": [1]},
    {"version": 1, "weight": 2},
]


async def test_bodies_that_name_no_targets_are_refused(api: Api, subtests: pytest.Subtests) -> None:
    """400 with the field, and no alias."""
    for body in NO_TARGETS:
        with subtests.test(body=body):
            refused = await send(api, "PUT", PROD, body)
            assert refused.status_code == 400
            assert refused.json()["error"]["type"] == "invalid_request_error"
            assert (await send(api, "GET", PROD)).status_code == 404


async def test_versions_and_aliases_that_are_not_there(api: Api) -> None:
    """404 for a missing version or alias, 400 for what can be none."""
    assert (await send(api, "PUT", PROD, {"split": {"1": 1, "9": 1}})).status_code == 404
    for method, path, body in (("GET", PROD, None), ("DELETE", PROD, None)):
        assert (await send(api, method, path, body)).status_code == 404
    assert (await send(api, "GET", f"{PROD}/history")).json() == {"data": []}
    for alias in ("7", "UP", "a" * 64):
        assert (await send(api, "PUT", f"{BOT}/aliases/{alias}", {"version": 1})).status_code == 400


async def test_what_a_split_alias_keeps(api: Api) -> None:
    """No version of it can be deleted; /v1/models names the one with most of the traffic."""
    await send(api, "PUT", PROD, {"split": {"1": 90, "3": 10}})
    for number in (1, 3):
        refused = await send(api, "DELETE", f"{BOT}/versions/{number}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "version_in_use")
    assert await roots(api) == ["acme/bot@1"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_models_are_listed_as_they_answer(api: Api) -> None:
    """`root` is a version that serves; a name whose versions are all taken out is a 404, and so is not listed."""
    versions = (await send(api, "GET", f"{BOT}/versions")).json()["data"]
    await send(api, "PUT", PROD, {"split": {"1": 90, "3": 10}})
    for out, left in ((1, ["acme/bot@3"]), (3, [])):
        await api.services.quarantine.begin(versions[out - 1]["digest"], "a bad one")
        assert await roots(api) == left
        assert (await send(api, "GET", "/v1/models/bot")).is_success == bool(left)
    await send(api, "DELETE", PROD)
    assert await roots(api) == ["acme/bot@2"]


async def roots(api: Api) -> list[str]:
    """Of acme's models that are not the base."""
    listed = (await send(api, "GET", "/v1/models")).json()["data"]
    return [model["root"] for model in listed[1:]]

"""Two servers on one database and one folder of adapters: what happens on one is seen on the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from e2e.server import Server, checked, eventually, running_server

from loraplex.adapters.changes import MAX_STALE_SECONDS

SLACK_SECONDS = 5
"""Two servers and their engines share a small machine with the tests."""


@pytest.fixture
def servers(empty_database_url: str, tiny_model_dir: Path, tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    (tmp_path / "first" / "adapters").mkdir(parents=True)
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "adapters").symlink_to(tmp_path / "first" / "adapters")
    options = {"served_model_name": "tiny", "database_url": empty_database_url}
    with (
        running_server(tiny_model_dir, tmp_path / "first", **options) as first,
        running_server(tiny_model_dir, tmp_path / "second", **options) as second,
    ):
        yield first, second


def answer(server: Server, key: str, model: str) -> tuple[int, str]:
    """Status, and the model that answered or the error's code."""
    with server.http(key) as client:
        response = client.post("/v1/completions", json={"model": model, "prompt": "Hello", "max_tokens": 1})
    body = response.json()
    return response.status_code, body["model"] if response.is_success else body["error"]["code"]


def seconds_until(look: Callable[[], object], expected: object) -> float:
    started = time.monotonic()
    eventually(look, lambda found: found == expected)
    return time.monotonic() - started


@pytest.mark.postgres
@pytest.mark.parametrize("empty_database_url", ["postgres"], indirect=True)
def test_what_one_server_does_the_other_one_sees(servers, make_adapter, tmp_path):
    """A new adapter at once; a move, a rollback, a deletion and a revocation within the stated bound."""
    first, second = servers
    key = first.create_tenant("acme")
    other_key = first.create_key("acme", ["inference"])
    folders = [make_adapter(tmp_path / str(seed), rank=2, seed=seed) for seed in (1, 2)]

    first.upload(key, "bot", folders[0])
    assert answer(second, key, "bot") == (200, "acme/bot@1")
    assert answer(second, other_key["secret"], "bot") == (200, "acme/bot@1")
    second.upload(key, "bot", folders[1])
    assert answer(first, key, "bot@2") == (200, "acme/bot@2")

    def move(body: dict[str, int]) -> None:
        with first.http(key) as client:
            checked(client.put("/api/v1/adapters/bot/aliases/prod", json=body))

    def roll_back() -> None:
        with first.http(key) as client:
            checked(client.post("/api/v1/adapters/bot/aliases/prod/rollback", json={}))

    def revoke() -> None:
        with first.http() as admin:
            checked(admin.delete(f"/api/v1/admin/keys/{other_key['id']}"))

    def delete() -> None:
        with first.http(key) as client:
            assert client.delete("/api/v1/adapters/bot").status_code == httpx.codes.NO_CONTENT

    changes: list[tuple[str, Callable[[], None], str, tuple[int, str]]] = [
        ("alias made", lambda: move({"version": 1}), key, (200, "acme/bot@1")),
        ("alias moved", lambda: move({"version": 2}), key, (200, "acme/bot@2")),
        ("alias rolled back", roll_back, key, (200, "acme/bot@1")),
        ("key revoked", revoke, other_key["secret"], (401, "invalid_api_key")),
        ("adapter deleted", delete, key, (404, "model_not_found")),
    ]
    for name, change, caller, expected in changes:
        assert answer(second, caller, "bot") != expected, name
        change()
        seconds = seconds_until(lambda caller=caller: answer(second, caller, "bot"), expected)
        print(f"{name}: seen elsewhere after {seconds:.2f} s")
        assert seconds < MAX_STALE_SECONDS + SLACK_SECONDS

"""A tenant's adapters over REST: upload, versions, aliases, and everything that can be wrong with an upload."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from api_running import Api, run_api

from loraplex.adapters.base_models import register_base_model
from loraplex.adapters.blobs import TOKENIZER_FILE
from loraplex.adapters.database import Database
from loraplex.platform import publishing
from loraplex.platform.errors import ApiError
from loraplex.platform.manage.uploads import PartTarget, UploadSink, UploadSlots
from loraplex.platform.publishing import CONFIG_BYTES
from loraplex.platform.template_checks import TOKENIZER_CONFIG_BYTES

pytestmark = pytest.mark.anyio

BOUNDARY = "----test-boundary"
MULTIPART = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory, make_adapter: Callable[..., Path]) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter"), rank=4, modules=["q_proj", "v_proj"])


@pytest.fixture(scope="session")
def other_adapter(tmp_path_factory: pytest.TempPathFactory, make_adapter: Callable[..., Path]) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter"), rank=8, seed=1)


@pytest.fixture
async def api(database: Database, tmp_path: Path, tiny_model_dir: Path) -> AsyncIterator[Api]:
    async with run_api(database, tmp_path, tiny_model_dir, max_adapter_bytes="256KiB") as running:
        created = await running.client.post("/api/v1/adapters", json={"name": "bot"}, headers=running.auth("acme"))
        assert created.status_code == 201
        yield running


def part(name: str, content: bytes) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="../../etc/x"\r\n\r\n'
    return head.encode() + content + b"\r\n"


def form(**parts: bytes) -> bytes:
    return b"".join(part(name, content) for name, content in parts.items()) + f"--{BOUNDARY}--\r\n".encode()


async def send(api: Api, body: bytes, name: str = "bot", who: str = "acme", **headers: str) -> Any:
    url = f"/api/v1/adapters/{name}/versions"
    return await api.client.post(url, content=body, headers={**MULTIPART, **headers, **api.auth(who)})


def left_behind(api: Api) -> list[Path]:
    """Files in the blob store, staged or committed."""
    return [path for path in api.services.settings.adapters_dir.rglob("*") if path.is_file()]


async def test_an_upload_becomes_a_version_that_can_be_called(api: Api, adapter: Path) -> None:
    """201 tells digest, size, rank, targets, and the name to call it by."""
    response = await api.upload("acme", "bot", adapter)
    assert response.status_code == 201
    version = response.json()
    assert (version["tenant"], version["adapter"], version["version"], version["model"]) == (
        "acme",
        "bot",
        1,
        "acme/bot@1",
    )
    assert (version["rank"], version["targets"]) == (4, ["q_proj", "v_proj"])
    assert (version["invocation_tokens"], version["is_additive"]) == ([], True)
    assert version["size_bytes"] == (adapter / "adapter_model.safetensors").stat().st_size
    assert (version["state"], version["state_reason"]) == ("ready", "")
    assert api.services.blobs.open(version["digest"]).size_bytes == version["size_bytes"]
    models = (await api.client.get("/v1/models", headers=api.auth("acme"))).json()
    assert any("acme/bot" in model["id"] for model in models["data"])


async def test_a_page_of_models_skips_adapters_that_are_none(
    api: Api, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many of them stand between two that are: no page but the last is empty, and each model is on one."""
    monkeypatch.setattr("loraplex.platform.openai.models.MIN_READ", 2)
    for name in "abcdefg":
        await api.client.post("/api/v1/adapters", json={"name": name}, headers=api.auth("acme"))
    for name in "cg":
        assert (await api.upload("acme", name, adapter)).status_code == 201
    ids, pages, more = [], [], True
    while more:
        params = {"limit": 1} | ({"after": ids[-1]} if ids else {})
        page = (await api.client.get("/v1/models", params=params, headers=api.auth("acme"))).json()
        found, more = [model["id"] for model in page["data"]], page["has_more"]
        pages.append(len(found))
        ids += found

    assert ids == ["tiny", "acme/c", "acme/g"]
    assert 0 not in pages[:-1]


async def test_the_same_bytes_are_the_same_version(api: Api, adapter: Path, other_adapter: Path) -> None:
    """Sending an adapter again makes no second version; other bytes make the next one."""
    first = (await api.upload("acme", "bot", adapter)).json()
    again = (await api.upload("acme", "bot", adapter)).json()
    second = (await api.upload("acme", "bot", other_adapter)).json()
    assert again == first
    assert second["version"] == 2
    listed = (await api.client.get("/api/v1/adapters/bot/versions", headers=api.auth("acme"))).json()["data"]
    detail = ("report", "profile")
    assert listed == [{k: v for k, v in version.items() if k not in detail} for version in (first, second)]
    one = await api.client.get("/api/v1/adapters/bot/versions/2", headers=api.auth("acme"))
    assert one.json() == second


async def test_parts_may_come_in_any_order_and_size(api: Api, adapter: Path) -> None:
    """The form is understood however it is cut, and file names in it mean nothing."""
    config = (adapter / "adapter_config.json").read_bytes()
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    assert (await send(api, form(weights=weights, config=config))).status_code == 201


def test_every_cut_of_a_form_gives_the_same_files(tmp_path: Path) -> None:
    """Wherever the network cuts the body, the files are the ones that were sent."""
    content = b"\r\n--" + BOUNDARY.encode()[:-1] + b"\r\n--x\r" * 3
    body = form(config=content, weights=b"")
    for cut in range(len(body)):
        folder = tmp_path / str(cut)
        folder.mkdir()
        targets = {"config": PartTarget(folder / "c", 1000), "weights": PartTarget(folder / "w", 1000)}
        with UploadSink(BOUNDARY, targets) as sink:
            sink.feed(body[:cut]) if cut else None
            sink.feed(body[cut:])
            sizes = {name: received.size_bytes for name, received in sink.finish().items()}
        assert (folder / "c").read_bytes() == content
        assert sizes == {"config": len(content), "weights": 0}


async def test_a_cut_off_upload_leaves_nothing(api: Api, adapter: Path) -> None:
    """A body that ends early is 400, and neither a file nor a version stays."""
    config = (adapter / "adapter_config.json").read_bytes()
    whole = form(config=config, weights=(adapter / "adapter_model.safetensors").read_bytes())
    for body in (whole[: len(whole) // 2], whole[:-10], b"", part("config", config)[:-1]):
        response = await send(api, body)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_upload")
    assert left_behind(api) == []
    assert (await api.client.get("/api/v1/adapters/bot", headers=api.auth("acme"))).json()["versions"] == []


async def test_too_large_parts_are_refused(api: Api, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """413 for weights or configuration past their limits, announced or not, and the connection is closed."""
    monkeypatch.setitem(publishing.PROMPT_FILE_BYTES, TOKENIZER_FILE, 1000)  # the real one is large
    config = (adapter / "adapter_config.json").read_bytes()
    limit = api.services.settings.max_adapter_bytes
    too_large = {
        "weights": form(config=config, weights=bytes(limit + 1)),
        "config": form(config=b" " * (CONFIG_BYTES + 1), weights=b""),
        "upload": form(config=config, weights=bytes(limit * 2 + CONFIG_BYTES + TOKENIZER_CONFIG_BYTES)),
    }
    for param, body in too_large.items():
        response = await send(api, body)
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (413, "request_too_large", param)
        assert response.headers["connection"] == "close"

    async def unannounced() -> AsyncIterator[bytes]:
        yield too_large["upload"]

    url = "/api/v1/adapters/bot/versions"
    response = await api.client.post(url, content=unannounced(), headers={**MULTIPART, **api.auth("acme")})
    assert response.status_code == 413
    assert left_behind(api) == []


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (form(config=b"{}"), 400, "missing_required_parameter", "weights"),
        (form(weights=b""), 400, "missing_required_parameter", "config"),
        (form(config=b"{}", **{"adapter_model.bin": b""}), 400, "unknown_parameter", "adapter_model.bin"),
        (part("config", b"{}") + form(config=b"{}"), 400, "invalid_value", "config"),
        (b"not multipart at all" * 100, 400, "invalid_upload", None),
    ],
)
async def test_a_form_must_hold_the_two_files(api: Api, body: bytes, status: int, code: str, param: str | None) -> None:
    """Missing, foreign and repeated parts are named."""
    response = await send(api, body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    assert left_behind(api) == []


async def test_other_content_types_are_refused(api: Api) -> None:
    """415 says what to send."""
    for kind in ("application/json", "multipart/form-data", f"multipart/form-data; boundary={'x' * 100}", "a;;=;b"):
        response = await send(api, b"{}", **{"content-type": kind})
        assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_media_type"), kind


async def test_a_pickle_in_disguise_is_refused(api: Api, adapter: Path) -> None:
    """Bytes that are not safetensors are never read as anything else; the report says which check failed."""
    config = (adapter / "adapter_config.json").read_bytes()
    response = await send(api, form(config=config, weights=b"\x80\x04\x95cos\nsystem\n." * 100))
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "adapter_invalid")
    assert [check["where"] for check in error["details"]] == ["weights"]
    assert left_behind(api) == []


async def test_every_failed_check_is_reported(api: Api, adapter: Path) -> None:
    """One answer names all that is wrong with configuration and weights."""
    config = json.loads((adapter / "adapter_config.json").read_bytes())
    config.update(use_qalora=True, r=100_000)
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).encode()
    weights = struct.pack("<Q", len(header)) + header + bytes(4)
    response = await send(api, form(config=json.dumps(config).encode(), weights=weights))
    details = response.json()["error"]["details"]
    assert response.status_code == 400
    assert {"qalora_unsupported"} < {check["code"] for check in details}
    assert all(check["message"] for check in details)
    assert len(details) >= 3


async def test_names_are_checked_and_unique(api: Api) -> None:
    """Bad names are 400 with the rule; a second adapter of a name is 409 that clients do not retry."""
    for name in ("..", "a/b", "Ünï", "", "UPPER", "a" * 10_000, "tiny", "-a", "a b", "a@b"):
        response = await api.client.post("/api/v1/adapters", json={"name": name}, headers=api.auth("acme"))
        assert (response.status_code, response.json()["error"]["param"]) == (400, "name"), name[:20]
        assert len(response.content) < 2000
    response = await api.client.post("/api/v1/adapters", json={"name": "bot"}, headers=api.auth("acme"))
    assert (response.status_code, response.json()["error"]["code"]) == (409, "adapter_exists")
    assert response.headers["x-should-retry"] == "false"
    other = await api.client.post("/api/v1/adapters", json={"name": "bot"}, headers=api.auth("globex"))
    assert other.status_code == 201


async def test_bodies_are_strict(api: Api) -> None:
    """Unknown fields, wrong types, no JSON, and another base model are 400; ten megabytes of JSON are 413."""
    wrong: list[tuple[dict[str, Any], int]] = [
        ({"json": {"name": "x", "tenant": "globex"}}, 400),
        ({"json": {"name": 1}}, 400),
        ({"json": {}}, 400),
        ({"json": {"name": "x", "base_model": "gpt"}}, 400),
        ({"content": b"{nope", "headers": {"content-type": "application/json"}}, 400),
        ({"content": b"[" * 100_000, "headers": {"content-type": "application/json"}}, 400),
        ({"content": b'{"name": "\xff"}', "headers": {"content-type": "application/json"}}, 400),
        ({"json": {"name": "x", "description": "d" * (10 << 20)}}, 413),
    ]
    for options, status in wrong:
        headers = {**options.pop("headers", {}), **api.auth("acme")}
        response = await api.client.post("/api/v1/adapters", headers=headers, **options)
        assert response.status_code == status, response.text[:300]
        assert response.json()["error"]["type"] == "invalid_request_error"


async def test_foreign_and_missing_adapters_are_the_same_404(api: Api, adapter: Path) -> None:
    """Byte for byte, on every route that names an adapter."""
    await api.upload("acme", "bot", adapter)
    await api.client.put("/api/v1/adapters/bot/aliases/prod", json={"version": 1}, headers=api.auth("acme"))
    config, weights = (adapter / "adapter_config.json").read_bytes(), b"x"
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "", {}),
        ("GET", "/versions", {}),
        ("GET", "/versions/1", {}),
        ("GET", "/residency", {}),
        ("GET", "/versions/1/residency", {}),
        ("PUT", "/versions/1/pin", {"json": {"seconds": 1}}),
        ("DELETE", "/versions/1/pin", {}),
        ("POST", "/versions/1/evict", {}),
        ("DELETE", "/versions/1", {}),
        ("POST", "/versions", {"files": {"config": config, "weights": weights}}),
        ("PUT", "/aliases/prod", {"json": {"version": 1}}),
        ("GET", "/aliases/prod", {}),
        ("POST", "/aliases/prod/rollback", {"json": {}}),
        ("GET", "/aliases/prod/history", {}),
        ("DELETE", "/aliases/prod", {}),
        ("DELETE", "", {}),
    ]
    for method, path, options in calls:
        foreign, missing = [
            await api.client.request(method, f"/api/v1/adapters/{name}{path}", headers=api.auth("globex"), **options)
            for name in ("bot", "bat")
        ]
        assert foreign.status_code == missing.status_code == 404, (method, path)
        assert foreign.json()["error"]["code"] == "adapter_not_found"
        assert foreign.content.replace(b"bot", b"bat") == missing.content
        assert set(foreign.headers) == set(missing.headers)
    assert (await api.client.get("/api/v1/adapters/bot", headers=api.auth("acme"))).json()["aliases"]["prod"][
        "split"
    ] == {"1": 1}


@pytest.mark.parametrize("name", ["..%2F..%2Fetc", "%00", "%C3%BC", "a" * 10_000, "%2e%2e", "a%2Fb"])
async def test_strange_names_in_paths_are_404(api: Api, name: str) -> None:
    """A name that no adapter can have is not found; nothing is looked up on a disk."""
    response = await api.client.get(f"/api/v1/adapters/{name}", headers=api.auth("acme"))
    assert response.status_code == 404
    assert len(response.content) < 2000


@pytest.mark.parametrize("number", ["0", "-1", "99999999999999999999", "9" * 5000, "1.5", "x"])
async def test_strange_version_numbers_are_4xx(api: Api, number: str) -> None:
    """No number brings the server down."""
    response = await api.client.get(f"/api/v1/adapters/bot/versions/{number}", headers=api.auth("acme"))
    assert response.status_code in (400, 404)


async def test_aliases_move_and_keep_their_version(api: Api, adapter: Path, other_adapter: Path) -> None:
    """An alias points at one version, moves by PUT, and keeps that version from deletion with a final 409."""
    await api.upload("acme", "bot", adapter)
    await api.upload("acme", "bot", other_adapter)
    auth, url = api.auth("acme"), "/api/v1/adapters/bot"
    for number in (1, 2):
        put = await api.client.put(f"{url}/aliases/prod", json={"version": number}, headers=auth)
        assert (put.status_code, put.json()["split"]) == (200, {str(number): 1})
    refused = await api.client.delete(f"{url}/versions/2", headers=auth)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "version_in_use")
    assert refused.headers["x-should-retry"] == "false"
    assert (await api.client.delete(f"{url}/versions/1", headers=auth)).status_code == 204
    assert (await api.client.delete(f"{url}/aliases/prod", headers=auth)).status_code == 204
    assert (await api.client.delete(f"{url}/versions/2", headers=auth)).status_code == 204
    assert (await api.client.get(url, headers=auth)).json()["versions"] == []


async def test_a_deleted_adapter_is_gone(api: Api, adapter: Path) -> None:
    """204, then 404 here and in inference; its name is free again."""
    await api.upload("acme", "bot", adapter)
    assert (await api.client.delete("/api/v1/adapters/bot", headers=api.auth("acme"))).status_code == 204
    assert (await api.client.get("/api/v1/adapters/bot", headers=api.auth("acme"))).status_code == 404
    body = {"model": "bot", "messages": [{"role": "user", "content": "hi"}]}
    assert (await api.client.post("/v1/chat/completions", json=body, headers=api.auth("acme"))).status_code == 404
    again = await api.client.post("/api/v1/adapters", json={"name": "bot"}, headers=api.auth("acme"))
    assert again.status_code == 201


async def test_pages_walk_through_the_tenants_own_adapters(api: Api) -> None:
    """`next` leads from page to page, and to nobody else's adapters."""
    for who, names in (("acme", ("a", "c")), ("globex", ("b", "x"))):
        for name in names:
            await api.client.post("/api/v1/adapters", json={"name": name}, headers=api.auth(who))
    seen, after = [], {}
    while True:
        params = {"limit": 2, **after}
        page = (await api.client.get("/api/v1/adapters", params=params, headers=api.auth("acme"))).json()
        seen += [adapter["name"] for adapter in page["data"]]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert seen == ["a", "bot", "c"]
    for params in ({"limit": 0}, {"limit": 501}, {"limit": "many"}, {"after": "../x"}):
        response = await api.client.get("/api/v1/adapters", params=params, headers=api.auth("acme"))
        assert (response.status_code, response.json()["error"]["param"]) == (400, next(iter(params)))


def test_uploads_of_one_tenant_are_bounded() -> None:
    """The third upload at once is 429; another tenant's and a later one go through."""
    slots = UploadSlots(per_tenant=2)
    with slots.take("acme"), slots.take("acme"):
        with pytest.raises(ApiError) as refused, slots.take("acme"):
            pass
        with slots.take("globex"):
            pass
    assert (refused.value.status, refused.value.code) == (429, "too_many_uploads")
    with slots.take("acme"):
        pass


async def test_an_adapter_of_another_base_is_not_checked_against_this_one(
    api: Api, database: Database, adapter: Path
) -> None:
    """Nor brought to this device. Its versions belong to a server of that base; the error names both."""
    await register_base_model(database, "older", "0" * 64, "elsewhere")
    body = {"name": "old", "base_model": "older"}
    assert (await api.client.post("/api/v1/adapters", json=body, headers=api.auth("acme"))).status_code == 201
    tenant = await api.services.tenants.get_tenant("acme")
    facts: dict[str, Any] = {"size_bytes": 1, "max_rank": 1, "targets": [], "report": []}
    await api.services.registry.publish(tenant.id, "old", digest="0" * 64, **facts)
    warm = api.client.post("/api/v1/adapters/old/versions/1/warm", headers=api.auth("acme"))
    for response in (await api.upload("acme", "old", adapter), await warm):
        assert (response.status_code, response.json()["error"]["code"]) == (400, "base_model_not_served")
    assert api.services.engine.warmed == []  # type: ignore[attr-defined]

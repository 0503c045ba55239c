"""Adapters from folders of the server: vLLM's endpoints, and what of a disk a request can reach through them."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_running import Api, code, refusal, run_api
from database_fixtures import on_sqlite

from loraplex.adapters.database import Database
from loraplex.platform.app import create_app
from loraplex.platform.lora_folders import open_without_links
from loraplex.platform.lora_modules import LoraModuleRefused, check_lora_modules, publish_lora_modules
from loraplex.platform.settings import Settings

pytestmark = pytest.mark.anyio

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, make_adapter: Callable[..., Path]) -> tuple[Path, Path]:
    """Two adapters in folders that no setting allows."""
    made = tmp_path_factory.mktemp("elsewhere")
    first, second = [make_adapter(made / str(seed), rank=2, modules=["q_proj"], seed=seed) for seed in (1, 2)]
    return first, second


@pytest.fixture
def allowed(tmp_path: Path, folders: tuple[Path, Path]) -> Path:
    """The directory that the setting allows; it holds a copy of the first adapter, `bot`."""
    shutil.copytree(folders[0], tmp_path / "loras" / "bot")
    return tmp_path / "loras"


@pytest.fixture
async def api(database: Database, tmp_path: Path, tiny_model_dir: Path, allowed: Path) -> AsyncIterator[Api]:
    async with run_api(database, tmp_path / "data", tiny_model_dir, lora_dirs=[allowed]) as running:
        yield running


async def load(api: Api, name: str, path: Path | str, who: str = "operator", **fields: Any) -> Any:
    body = {"lora_name": name, "lora_path": str(path), **fields}
    return await api.client.post("/v1/load_lora_adapter", json=body, headers=api.auth(who))


async def unload(api: Api, name: str, who: str = "operator", **fields: Any) -> Any:
    body = {"lora_name": name, **fields}
    return await api.client.post("/v1/unload_lora_adapter", json=body, headers=api.auth(who))


async def meant(api: Api, body: dict[str, Any], who: str = "acme") -> Any:
    """The version that a completion with these fields runs, or the error's status, code and field."""
    body = {"prompt": "hi", "max_tokens": 1, **body}
    response = await api.client.post("/v1/completions", json=body, headers=api.auth(who))
    return response.json()["model"] if response.is_success else refusal(response)


async def test_load_and_unload_answer_as_vllm_does(api: Api, allowed: Path, folders: tuple[Path, Path]) -> None:
    """Plain text with 200; a second load is 400 unless in place, and in place the name means the folder's weights."""
    loaded = await load(api, "acme/bot", allowed / "bot")
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'acme/bot' added successfully.")
    assert loaded.headers["content-type"].startswith("text/plain")
    assert await meant(api, {"model": "bot"}) == "acme/bot@1"
    again = await load(api, "acme/bot", allowed / "bot")
    assert refusal(again) == (400, "adapter_exists", "lora_name")
    assert "has already been loaded. If you want to load the adapter in place" in again.json()["error"]["message"]

    for source, version in ((folders[1], 2), (folders[1], 2), (folders[0], 1)):
        shutil.copytree(source, allowed / "bot", dirs_exist_ok=True)
        assert (await load(api, "acme/bot", allowed / "bot", load_inplace=True)).status_code == 200
        assert await meant(api, {"model": "bot"}) == f"acme/bot@{version}"

    gone = await unload(api, "acme/bot", lora_int_id=1)
    assert (gone.status_code, gone.text) == (200, "Success: LoRA adapter 'acme/bot' removed successfully.")
    assert await meant(api, {"model": "bot"}) == (404, "model_not_found", "model")
    missing = await unload(api, "acme/bot")
    assert refusal(missing) == (404, "adapter_not_found", "lora_name")
    assert missing.json()["error"]["message"] == "The lora adapter 'acme/bot' cannot be found."


async def test_loads_of_one_name_wait_for_each_other(api: Api, allowed: Path) -> None:
    """Of two at once one is told that the name is loaded already."""
    answers = await asyncio.gather(*[load(api, "acme/bot", allowed / "bot") for _ in range(2)])
    assert sorted(answer.status_code for answer in answers) == [200, 400]


async def test_a_bare_name_is_the_default_tenants(api: Api, allowed: Path) -> None:
    """That tenant is made when it is missing; no other one is, and others do not see its adapters."""
    assert (await unload(api, "bot")).status_code == 404
    assert (await load(api, "bot", allowed / "bot")).status_code == 200
    await api.services.tenants.get_tenant("default")
    assert await meant(api, {"model": "bot"}) == (404, "model_not_found", "model")
    assert (await load(api, "nobody/bot", allowed / "bot")).status_code == 404


@on_sqlite
async def test_a_name_that_no_adapter_can_have_is_refused(api: Api, allowed: Path) -> None:
    """400 names the field; a version cannot be loaded, nor the base's name taken."""
    for name in ("Bot", "a/b/c", "../bot", "bot@1", "tiny", "acme/tiny", "", "b" * 10_000):
        refused = refusal(await load(api, name, allowed / "bot"))
        assert refused == (400, "invalid_value", "lora_name"), name[:20]


@on_sqlite
async def test_only_operators_may_and_only_where_it_is_on(api: Api, allowed: Path) -> None:
    """A tenant's key is 403 whatever its scopes; without the setting an operator's is too, and is told of it."""
    for answer in (await load(api, "bot", allowed / "bot", who="acme"), await unload(api, "bot", who="acme")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_permissions")
    settings = api.services.settings.model_copy(update={"lora_dirs": ()})
    app = create_app(replace(api.services, settings=settings))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as client:
        off = replace(api, client=client)
        for answer in (await load(off, "acme/bot", allowed / "bot"), await unload(off, "acme/bot")):
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "lora_dirs_not_set")
            assert "--lora-dirs" in answer.json()["error"]["message"]


@on_sqlite
async def test_nothing_is_told_of_what_lies_elsewhere(api: Api, allowed: Path, folders: tuple[Path, Path]) -> None:
    """Other folders, those that are not there, ways round by `..` and links out: one 403, byte for byte."""
    (allowed / "out").symlink_to(folders[0])
    (allowed / "nowhere").symlink_to("/no/such/folder")
    (allowed / "up").symlink_to("..")
    half = allowed / "half"
    half.mkdir()
    (half / CONFIG).symlink_to(folders[0] / CONFIG)
    (allowed.parent / "loras-of-others").mkdir()
    paths = [
        folders[0],
        "/no/such/folder",
        "/etc/passwd",
        "/",
        "bot",
        f"{allowed}/../loras/../../{folders[0].name}",
        f"{allowed}/bot/../../../etc",
        f"{allowed}-of-others",
        allowed.parent,
        allowed / "out",
        allowed / "nowhere",
        allowed / "up",
        half,
    ]
    answers = [await load(api, "acme/bot", path) for path in paths]
    assert {answer.content for answer in answers} == {answers[0].content}
    assert refusal(answers[0]) == (403, "lora_path_not_allowed", "lora_path")
    assert "lora_dirs" in answers[0].json()["error"]["message"]


@on_sqlite
async def test_what_is_no_adapters_folder_is_404(api: Api, allowed: Path) -> None:
    """Missing folders and files, files and pipes in their place: told by the file that is wanted; nothing hangs."""
    for name in ("empty", "pickled", "piped"):
        (allowed / name).mkdir()
    for name in ("pickled", "piped"):
        shutil.copy(allowed / "bot" / CONFIG, allowed / name)
    (allowed / "pickled" / "adapter_model.bin").write_bytes(b"")
    os.mkfifo(allowed / "piped" / WEIGHTS)
    (allowed / "empty" / CONFIG).mkdir()
    wrong = {"none": CONFIG, "bot\0": CONFIG, f"bot/{CONFIG}": CONFIG, "empty": CONFIG}
    wrong |= {"pickled": WEIGHTS, "piped": WEIGHTS, ".": CONFIG}
    for path, file in wrong.items():
        response = await load(api, "acme/bot", f"{allowed}/{path}")
        assert refusal(response) == (404, "lora_path_not_found", "lora_path"), path
        assert file in response.json()["error"]["message"]
    too_long = await load(api, "acme/bot", allowed / ("x" * 1000))
    assert refusal(too_long) == (400, "lora_path_unreadable", "lora_path")


@on_sqlite
async def test_links_inside_the_directory_are_followed(api: Api, allowed: Path) -> None:
    """A hub's cache keeps its snapshots as links to blobs."""
    snapshot = allowed / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    for file in (CONFIG, WEIGHTS):
        (snapshot / file).symlink_to(Path("../../bot") / file)
    (allowed / "latest").symlink_to("snapshots/1")
    assert (await load(api, "acme/bot", allowed / "latest")).status_code == 200


def test_a_link_that_comes_after_the_look_is_not_followed(allowed: Path, folders: tuple[Path, Path]) -> None:
    """Neither as the file nor as a folder on the way to it."""
    (allowed / "config").symlink_to(folders[0] / CONFIG)
    (allowed / "out").symlink_to(folders[0])
    open_without_links(folders[0] / CONFIG).close()
    for path in (allowed / "config", allowed / "out" / CONFIG):
        with pytest.raises(OSError):
            open_without_links(path)


@on_sqlite
async def test_a_bad_adapter_is_the_clients_error(api: Api, allowed: Path, folders: tuple[Path, Path]) -> None:
    """400 with the report of an upload and 413 past the limit, not vLLM's 500; the name can be loaded afterwards."""
    (allowed / "bot" / CONFIG).write_text("{}")
    response = await load(api, "acme/bot", allowed / "bot")
    assert (response.status_code, response.json()["error"]["code"]) == (400, "adapter_invalid")
    assert response.json()["error"]["details"]
    (allowed / "bot" / CONFIG).write_bytes(bytes(1 << 20))
    assert refusal(await load(api, "acme/bot", allowed / "bot")) == (413, "adapter_too_large", "lora_path")
    shutil.copytree(folders[0], allowed / "bot", dirs_exist_ok=True)
    assert (await load(api, "acme/bot", allowed / "bot")).status_code == 200


@on_sqlite
async def test_a_quarantined_adapter_is_not_loaded_again(api: Api, allowed: Path) -> None:
    """409 with the operator's reason, not the advice to try again; at start it is the reason why there is none."""
    await load(api, "acme/bot", allowed / "bot")
    tenant = await api.services.tenants.get_tenant("acme")
    version = await api.services.registry.get_version(tenant.id, "bot", 1)
    await api.services.quarantine.begin(version.digest, "it insults people")
    refused = await load(api, "acme/bot", allowed / "bot")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "version_not_ready")
    assert "it insults people" in refused.json()["error"]["message"]
    modules = Settings(lora_modules=[f"acme/bot={allowed / 'bot'}"]).lora_modules
    settings = api.services.settings.model_copy(update={"lora_modules": modules})
    with pytest.raises(LoraModuleRefused, match="it insults people"):
        await publish_lora_modules(replace(api.services, settings=settings))


@on_sqlite
async def test_a_name_that_stands_for_a_quarantined_version_is_moved_on(
    api: Api, allowed: Path, folders: tuple[Path, Path]
) -> None:
    """By other bytes that are loaded in its place."""
    await load(api, "acme/bot", allowed / "bot")
    tenant = await api.services.tenants.get_tenant("acme")
    await api.services.aliases.move(tenant.id, "bot", "prod", {1: 1})
    version = await api.services.registry.get_version(tenant.id, "bot", 1)
    await api.services.quarantine.begin(version.digest, "it insults people")
    shutil.copytree(folders[1], allowed / "bot", dirs_exist_ok=True)
    assert (await load(api, "acme/bot", allowed / "bot", load_inplace=True)).status_code == 200
    (target,) = await api.services.registry.resolve(tenant.id, "bot", None)
    assert target.version.number == 2


@on_sqlite
async def test_a_folders_chat_template_is_chosen_as_transformers_chooses_it(api: Api, allowed: Path) -> None:
    """chat_template.jinja, where it is there, before that of tokenizer_config.json, which may not be too large."""
    template = "{% for m in messages %}{{ m.content }};{% endfor %}"
    (allowed / "bot" / "chat_template.jinja").write_text(template)
    (allowed / "bot" / "tokenizer_config.json").write_text('{"chat_template": "Hello"}')
    assert (await load(api, "acme/bot", allowed / "bot")).status_code == 200
    profile = await api.client.get("/api/v1/adapters/bot/versions/1/profile", headers=api.auth("acme"))
    assert profile.json()["chat_template"] == template
    (allowed / "bot" / "tokenizer_config.json").write_bytes(bytes(5 << 20))
    assert code(await load(api, "acme/other", allowed / "bot")) == (413, "adapter_too_large")


@on_sqlite
async def test_the_adapter_may_stand_beside_the_base(api: Api, allowed: Path) -> None:
    """SGLang's base:adapter, LoRAX's adapter_id, SGLang's lora_path; two that differ are 400, others' are 404."""
    await load(api, "acme/bot", allowed / "bot")
    await load(api, "acme/other", allowed / "bot")
    for fields in (
        {"model": "tiny:bot"},
        {"model": "tiny:acme/bot@1"},
        {"model": "tiny", "adapter_id": "bot"},
        {"model": "tiny", "adapter_id": "acme/bot@1", "adapter_source": "local", "api_token": None},
        {"model": "bot@1", "adapter_id": "acme/bot"},
        {"model": "tiny", "lora_path": "bot"},
        {"model": "tiny:bot", "lora_path": "bot", "adapter_id": "bot"},
    ):
        assert await meant(api, fields) == "acme/bot@1", fields
    assert await meant(api, {"model": "tiny", "adapter_id": "tiny"}) == "tiny"
    assert await meant(api, {"model": "bot", "adapter_id": "other"}) == (400, "invalid_value", "adapter_id")
    assert await meant(api, {"model": "bot", "adapter_id": "tiny"}) == (400, "invalid_value", "adapter_id")
    both = {"model": "tiny", "adapter_id": "bot", "lora_path": "other"}
    assert await meant(api, both) == (400, "invalid_value", "lora_path")
    assert await meant(api, {"model": "tiny", "adapter_id": "/srv/bot"}) == (404, "model_not_found", "adapter_id")
    assert await meant(api, {"model": "tiny", "adapter_id": "acme/bot"}, who="globex") == (
        404,
        "model_not_found",
        "adapter_id",
    )
    for body, field in (({"adapter_id": "bot*x"}, "adapter_id"), ({"lora_path": "bot+" * 8 + "bot"}, "lora_path")):
        no_sum = await api.client.post(
            "/v1/completions", json={"model": "tiny", "prompt": "hi", **body}, headers=api.auth("acme")
        )
        assert refusal(no_sum) == (400, "invalid_value", field)
        assert field in no_sum.json()["error"]["message"]
    for field, value in (("adapter_source", "hub"), ("api_token", "hf_x")):
        refused = await meant(api, {"model": "tiny", "adapter_id": "bot", field: value})
        assert refused == (400, "unsupported_parameter", field)


@on_sqlite
async def test_models_show_names_and_no_paths(api: Api, allowed: Path) -> None:
    """`root` is the version that a name stands for now and `parent` the base; what was rejected is neither."""
    for name in ("bot", "new"):
        await load(api, f"acme/{name}", allowed / "bot")
    registry, tenant = api.services.registry, await api.services.tenants.get_tenant("acme")
    await registry.delete_version(tenant.id, "new", 1)
    for name in ("bot", "new"):
        facts: dict[str, Any] = {
            "size_bytes": 1,
            "max_rank": 2,
            "targets": ["q_proj"],
            "report": [],
        }
        version = await registry.publish(tenant.id, name, digest="0" * 64, **facts)
        await registry.settle(version, "rejected", reason="a bad one")
    response = await api.client.get("/v1/models", headers=api.auth("acme"))
    base, bot = response.json()["data"]
    assert (base["id"], base["root"], base["parent"]) == ("tiny", "tiny", None)
    assert (bot["id"], bot["root"], bot["parent"]) == ("acme/bot", "acme/bot@1", "tiny")
    assert str(allowed) not in response.text
    one = await api.client.get("/v1/models/tiny:bot", headers=api.auth("acme"))
    assert (one.json()["root"], one.json()["parent"]) == ("acme/bot@1", "tiny")


async def test_modules_at_start_are_published_like_uploads(
    database: Database, tmp_path: Path, tiny_model_dir: Path, folders: tuple[Path, Path]
) -> None:
    """A start with the same bytes changes nothing, one with others gives the next version; the tenant is made."""
    folder = shutil.copytree(folders[0], tmp_path / "bot")
    modules = [f"bot={folder}", {"name": "acme/own", "path": str(folder), "base_model_name": "tiny"}]
    async with run_api(database, tmp_path / "data", tiny_model_dir, lora_modules=modules) as api:
        for source, versions in ((folders[0], [1]), (folders[0], [1]), (folders[1], [1, 2])):
            shutil.copytree(source, folder, dirs_exist_ok=True)
            await publish_lora_modules(api.services)
            tenant = await api.services.tenants.get_tenant("default")
            adapter = await api.services.registry.get_adapter(tenant.id, "bot")
            assert [version.number for version in adapter.versions] == versions
        assert await meant(api, {"model": "own"}) == "acme/own@2"
        (folder / CONFIG).write_text("{}")
        with pytest.raises(LoraModuleRefused, match=f"^--lora-modules bot={folder}: "):
            await publish_lora_modules(api.services)


@pytest.mark.parametrize(
    ("modules", "reason"),
    [
        (["bot=/no/such/folder"], "There is no folder with an adapter_config.json"),
        (["Bot={folder}"], "'Bot' is not a valid name"),
        (["bot@1={folder}"], "names a version"),
        (["bot={folder}", "default/bot={folder}"], "another folder has this name"),
    ],
)
def test_wrong_modules_are_known_before_the_model_loads(
    folders: tuple[Path, Path], modules: list[str], reason: str
) -> None:
    """Names and files need no engine to be judged."""
    given = [module.format(folder=folders[0]) for module in modules]
    with pytest.raises(LoraModuleRefused, match=reason):
        check_lora_modules(Settings(lora_modules=given))

"""An upload goes on where it broke off, becomes a version once, and tells nobody what others have."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from api_running import Api, announced, bad_files, code, run_api
from database_fixtures import on_sqlite
from sqlalchemy import update

from loraplex.adapters.blobs import ADAPTER_FILES, CONFIG_FILE, WEIGHTS_FILE
from loraplex.adapters.database import Database
from loraplex.adapters.schema import Upload, now
from loraplex.platform.manage.resumable import BYTES_FROM_OFFSET
from loraplex.platform.publishing import CONFIG_BYTES

pytestmark = [pytest.mark.anyio, on_sqlite]

UPLOADS = "/api/v1/uploads"
ADMIN = "/api/v1/admin"
BYTES = {"content-type": BYTES_FROM_OFFSET}


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory, make_adapter: Callable[..., Path]) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter"), rank=2, modules=["q_proj"])


@pytest.fixture
async def api(database: Database, tmp_path: Path, tiny_model_dir: Path) -> AsyncIterator[Api]:
    """acme and globex have an adapter `bot` each, without a version."""
    settings = {"max_adapter_bytes": "256KiB", "max_open_uploads": 3, "max_open_upload_bytes": "600KiB"}
    async with run_api(database, tmp_path, tiny_model_dir, **settings) as running:
        for who in ("acme", "globex"):
            await running.client.post("/api/v1/adapters", json={"name": "bot"}, headers=running.auth(who))
        yield running


def body(folder: Path) -> dict[str, Any]:
    return {"adapter": "bot", "files": announced(folder)}


async def opened(api: Api, body: dict[str, Any], who: str = "acme") -> str:
    """The path of a new upload."""
    response = await api.client.post(UPLOADS, json=body, headers=api.auth(who))
    assert response.status_code == 201, response.text
    return f"{UPLOADS}/{response.json()['id']}"


async def send(
    api: Api, upload: str, name: str, content: bytes | AsyncIterator[bytes], offset: int = 0, who: str = "acme"
) -> Any:
    headers = {**BYTES, "upload-offset": str(offset), **api.auth(who)}
    return await api.client.patch(f"{upload}/files/{name}", content=content, headers=headers)


async def sent(api: Api, folder: Path, who: str = "acme") -> str:
    """The path of an upload that is whole."""
    upload = await opened(api, body(folder), who)
    for name in ADAPTER_FILES:
        assert (await send(api, upload, name, (folder / name).read_bytes(), who=who)).status_code == 204
    return upload


async def complete(api: Api, upload: str, who: str = "acme") -> Any:
    return await api.client.post(f"{upload}/complete", headers=api.auth(who))


async def get(api: Api, path: str, who: str = "acme") -> Any:
    return await api.client.get(path, headers=api.auth(who))


async def test_an_upload_in_pieces_becomes_a_version_once(api: Api, adapter: Path) -> None:
    """Offsets grow piece by piece; completing gives the version, completing again the same; its bytes leave."""
    upload = await opened(api, body(adapter))
    weights = (adapter / WEIGHTS_FILE).read_bytes()
    for start in range(0, len(weights), 1000):
        answer = await send(api, upload, WEIGHTS_FILE, weights[start : start + 1000], start)
        assert (answer.status_code, answer.headers["upload-offset"]) == (204, str(min(start + 1000, len(weights))))
    assert code(await complete(api, upload)) == (409, "upload_incomplete")
    await send(api, upload, CONFIG_FILE, (adapter / CONFIG_FILE).read_bytes())
    listed = (await get(api, UPLOADS)).json()["data"]
    assert [(file["name"], file["offset"] - file["size_bytes"]) for file in listed[0]["files"]] == [
        (name, 0) for name in ADAPTER_FILES
    ]

    first, at_once = await asyncio.gather(complete(api, upload), complete(api, upload))
    again = await complete(api, upload)

    assert (first.status_code, first.json()["state"], first.json()["version"]) == (201, "ready", 1)
    assert at_once.json() == again.json() == first.json()
    assert (at_once.status_code, again.status_code) == (201, 201)
    stored = api.services.blobs.open(first.json()["digest"])
    assert stored.weights_path.read_bytes() == weights
    assert api.services.upload_files.ids() == set()
    assert (await get(api, UPLOADS)).json() == {"data": []}
    over = (await get(api, upload)).json()
    assert (over["state"], over["version"]["version"]) == ("published", 1)
    assert (await send(api, upload, CONFIG_FILE, b"more")).status_code == 409


async def test_only_the_right_offset_is_continued(api: Api, adapter: Path) -> None:
    """Any other is 409 with the right one; more bytes than were announced are 400; neither changes the file."""
    upload = await opened(api, body(adapter))
    config = (adapter / CONFIG_FILE).read_bytes()
    assert (await send(api, upload, CONFIG_FILE, config[:10])).status_code == 204
    for offset in (0, 9, 11, 1 << 60):
        wrong = await send(api, upload, CONFIG_FILE, b"x", offset)
        assert code(wrong) == (409, "upload_offset_mismatch")
        assert wrong.headers["upload-offset"] == "10"

    async def unannounced() -> AsyncIterator[bytes]:
        yield config[10:] + b"x"

    for too_long in (config[10:] + b"x", unannounced()):
        assert code(await send(api, upload, CONFIG_FILE, too_long, 10)) == (400, "upload_too_long")
    looked = await api.client.head(f"{upload}/files/{CONFIG_FILE}", headers=api.auth("acme"))
    assert (looked.headers["upload-offset"], looked.headers["upload-length"]) == ("10", str(len(config)))
    without = {"upload-offset": "10"}
    for headers, status in ((BYTES | {"upload-offset": "-1"}, 400), (BYTES, 400), (without, 415)):
        path = f"{upload}/files/{CONFIG_FILE}"
        refused = await api.client.patch(path, content=b"x", headers={**headers, **api.auth("acme")})
        assert refused.status_code == status
        assert ("Upload-Offset" if status == 400 else BYTES["content-type"]) in refused.json()["error"]["message"]


async def test_what_came_before_a_connection_broke_stays(api: Api, adapter: Path) -> None:
    """The client asks for the offset and sends the rest."""
    upload = await opened(api, body(adapter))
    weights = (adapter / WEIGHTS_FILE).read_bytes()
    await send(api, upload, CONFIG_FILE, (adapter / CONFIG_FILE).read_bytes())
    events = iter([{"type": "http.request", "body": weights[:1500], "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(events)

    async def answer(message: Any) -> None:
        pass

    headers = {**BYTES, "upload-offset": "0", **api.auth("acme")}
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "PATCH", "scheme": "http",
        "path": f"{upload}/files/{WEIGHTS_FILE}", "query_string": b"", "root_path": "", "client": ("1", 1),
        "server": ("api", 80), "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    await api.app(scope, receive, answer)  # type: ignore[arg-type]

    offset = {file["name"]: file["offset"] for file in (await get(api, upload)).json()["files"]}[WEIGHTS_FILE]
    assert offset == 1500
    assert (await send(api, upload, WEIGHTS_FILE, weights[offset:], offset)).status_code == 204
    assert (await complete(api, upload)).status_code == 201


async def test_one_request_at_a_time_writes_to_an_upload(api: Api, adapter: Path) -> None:
    """A second one is told to wait, and nothing of it is written."""
    upload = await opened(api, body(adapter))
    info = (await api.services.uploads.list_open(await api.tenant_id("acme")))[0]
    with api.services.upload_files.growing(info.id, info.files[0]):
        busy = await send(api, upload, WEIGHTS_FILE, b"x")
    assert code(busy) == (409, "upload_busy")
    assert busy.headers["retry-after"]
    assert (await send(api, upload, WEIGHTS_FILE, b"x")).status_code == 204


async def test_as_many_requests_of_a_tenant_as_may_are_under_way(api: Api, adapter: Path) -> None:
    """One more is 429, whether it sends or completes; others' do not count, and there is room when one has ended."""
    slow = [await opened(api, body(adapter)) for _ in range(api.services.settings.max_uploads_per_tenant)]
    upload, foreign = await sent(api, adapter), await opened(api, body(adapter), "globex")
    begun, go_on = asyncio.Semaphore(0), asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        begun.release()
        await go_on.wait()
        yield b"x"

    sending = [asyncio.create_task(send(api, each, CONFIG_FILE, slowly())) for each in slow]
    for _ in slow:
        await begun.acquire()
    for refused in (await send(api, upload, CONFIG_FILE, b"x"), await complete(api, upload)):
        assert code(refused) == (429, "too_many_uploads")
    assert (await send(api, foreign, CONFIG_FILE, b"x", who="globex")).status_code == 204
    go_on.set()
    assert [(await each).status_code for each in sending] == [204] * len(slow)
    assert (await complete(api, upload)).status_code == 201


async def test_a_file_that_is_not_the_announced_one_is_sent_again(api: Api, adapter: Path) -> None:
    """400, and its offset is 0 again; the other file stays; the right bytes then do."""
    upload = await sent(api, adapter)
    wrong = await opened(api, body(adapter))
    weights = (adapter / WEIGHTS_FILE).read_bytes()
    await send(api, wrong, CONFIG_FILE, (adapter / CONFIG_FILE).read_bytes())
    await send(api, wrong, WEIGHTS_FILE, weights[:-1] + b"\0")

    assert code(await complete(api, wrong)) == (400, "checksum_mismatch")

    offsets = [file["offset"] for file in (await get(api, wrong)).json()["files"]]
    assert offsets == [(adapter / CONFIG_FILE).stat().st_size, 0]
    await send(api, wrong, WEIGHTS_FILE, weights)
    versions = [(await complete(api, each)).json()["version"] for each in (wrong, upload)]
    assert versions == [1, 1]


async def test_a_bad_adapter_is_refused_as_in_one_piece(api: Api, adapter: Path, tmp_path: Path) -> None:
    """400 with the report, every time; the upload stays until it is dropped."""
    bad = shutil.copytree(adapter, tmp_path / "bad")
    (bad / WEIGHTS_FILE).write_bytes(b"pickle" * 100)
    upload = await sent(api, bad)
    for _ in range(2):
        refused = await complete(api, upload)
        assert code(refused) == (400, "adapter_invalid")
        assert refused.json()["error"]["details"]
    assert (await api.client.delete(upload, headers=api.auth("acme"))).status_code == 204
    assert code(await get(api, upload)) == (404, "upload_not_found")
    assert api.services.upload_files.ids() == set()
    assert (await get(api, "/api/v1/adapters/bot/versions")).json()["data"] == []


def bad_announcements() -> Iterator[tuple[str, Any, int, str]]:
    config = {"name": CONFIG_FILE, "size_bytes": 10, "sha256": "a" * 64}
    weights = {"name": WEIGHTS_FILE, "size_bytes": 10, "sha256": "b" * 64}
    yield "one file", [config], 400, "files"
    yield "a file twice", [config, weights, weights], 400, "files"
    yield "a foreign file", [config, weights | {"name": "../x"}], 400, "files"
    yield "none", [], 400, "files"
    yield "many", [config] * 17, 400, "files"
    yield "empty", [config | {"size_bytes": 0}, weights], 400, "files[0].size_bytes"
    yield "text for a size", [config | {"size_bytes": "1"}, weights], 400, "files[0].size_bytes"
    yield "large config", [config | {"size_bytes": CONFIG_BYTES + 1}, weights], 413, "files[0].size_bytes"
    yield "large weights", [config, weights | {"size_bytes": (256 << 10) + 1}], 413, "files[1].size_bytes"
    yield "no digest", [config, weights | {"sha256": "B" * 64}], 400, "files[1].sha256"
    yield "unknown field", [config | {"path": "/"}, weights], 400, "files[0].path"


async def test_bad_announcements_name_the_field(api: Api) -> None:
    """Nothing is opened for them."""
    for what, files, status, param in bad_announcements():
        body = {"adapter": "bot", "files": files}
        response = await api.client.post(UPLOADS, json=body, headers=api.auth("acme"))
        assert (response.status_code, response.json()["error"]["param"]) == (status, param), what
    absent = {"adapter": "absent", "files": bad_files()}
    response = await api.client.post(UPLOADS, json=absent, headers=api.auth("acme"))
    assert code(response) == (404, "adapter_not_found")
    assert (await get(api, UPLOADS)).json() == {"data": []}


async def test_a_tenants_open_uploads_are_bounded(api: Api, database: Database) -> None:
    """In number and in bytes; one that is dropped or has expired makes room; others' do not count."""
    body = {"adapter": "bot", "files": bad_files()}
    uploads = [await opened(api, body) for _ in range(3)]
    refused = await api.client.post(UPLOADS, json=body, headers=api.auth("acme"))
    assert code(refused) == (429, "too_many_uploads")
    await opened(api, body, "globex")
    await api.client.delete(uploads.pop(), headers=api.auth("acme"))
    large = {"adapter": "bot", "files": [bad_files()[0], bad_files(256 << 10)[1]]}
    for upload in uploads:
        await api.client.delete(upload, headers=api.auth("acme"))
    uploads = [await opened(api, large) for _ in range(2)]
    assert code(await api.client.post(UPLOADS, json=large, headers=api.auth("acme"))) == (429, "too_many_uploads")

    async with database.transaction() as session:
        await session.execute(update(Upload).values(expires_at=now()))
    assert code(await get(api, uploads[0])) == (404, "upload_not_found")
    assert code(await send(api, uploads[0], CONFIG_FILE, b"x")) == (404, "upload_not_found")
    assert (await get(api, UPLOADS)).json() == {"data": []}
    await opened(api, large)


async def test_what_a_tenant_may_not_keep_is_refused_before_it_takes_room(api: Api, adapter: Path) -> None:
    """What can never fit as it is announced; what does not fit beside other versions, once its bytes are known and
    before they are stored."""
    limits = f"{ADMIN}/tenants/acme/limits"
    weights = (adapter / WEIGHTS_FILE).stat().st_size
    for kept, status in ((weights - 1, 429), (weights, 201)):
        await api.client.put(limits, json={"stored_bytes": kept}, headers=api.auth("operator"))
        refused = await api.client.post(UPLOADS, json=body(adapter), headers=api.auth("acme"))
        assert refused.status_code == status, refused.text
        assert ("storage_limit_reached" in refused.text) == (status == 429)

    upload = await sent(api, adapter)
    await api.services.registry.publish(
        await api.tenant_id("acme"), "bot", digest="a" * 64, size_bytes=1, max_rank=2, targets=[], report=[],
    )  # fmt: skip
    assert code(await complete(api, upload)) == (429, "storage_limit_reached")
    assert not list(api.services.settings.adapters_dir.rglob(f"blobs/**/{WEIGHTS_FILE}"))
    await api.client.put(limits, json={}, headers=api.auth("operator"))
    assert (await complete(api, upload)).status_code == 201
    assert len(list(api.services.settings.adapters_dir.rglob(f"blobs/**/{WEIGHTS_FILE}"))) == 1
    await api.client.put(limits, json={"versions": 1}, headers=api.auth("operator"))
    assert (await complete(api, upload)).status_code == 201


async def test_foreign_and_missing_uploads_are_the_same_404(api: Api, adapter: Path) -> None:
    """Byte for byte, on every route; odd ids too."""
    upload = await opened(api, body(adapter))
    calls = [("GET", ""), ("DELETE", ""), ("POST", "/complete")]
    calls += [(method, f"/files/{CONFIG_FILE}") for method in ("HEAD", "PATCH")]
    headers = {**BYTES, "upload-offset": "0", **api.auth("globex")}
    for method, path in calls:
        answers = [
            await api.client.request(method, base + path, headers=headers)
            for base in (upload, f"{UPLOADS}/{'0' * 32}", f"{UPLOADS}/%00", f"{UPLOADS}/{'x' * 5000}")
        ]
        assert {answer.status_code for answer in answers} == {404}, (method, path)
        assert len({answer.content for answer in answers}) == 1
    for name in ("adapter.json", "..%2F..%2Fx", "%00"):
        assert (await send(api, upload, name, b"x")).status_code == 404
    assert (await get(api, upload)).status_code == 200


async def test_files_that_are_a_version_already_are_not_sent_again(api: Api, adapter: Path) -> None:
    """However they came; the answer has the version, nothing is opened, and the engine is not asked."""
    version = (await api.upload("acme", "bot", adapter)).json()
    asked = len(api.services.engine.asked)  # type: ignore[attr-defined]

    response = await api.client.post(UPLOADS, json=body(adapter), headers=api.auth("acme"))

    known = response.json()
    assert (response.status_code, known["id"], known["state"]) == (200, None, "published")
    assert known["version"] == {key: value for key, value in version.items() if key not in ("report", "profile")}
    assert (await get(api, UPLOADS)).json() == {"data": []}
    assert len(api.services.engine.asked) == asked  # type: ignore[attr-defined]
    shutil.rmtree(api.services.blobs.open(version["digest"]).weights_path.parent)
    assert (await complete(api, await sent(api, adapter))).json()["version"] == 1
    assert api.services.blobs.open(version["digest"])


async def test_files_of_another_adapter_of_the_tenant_are_not_sent_again(api: Api, adapter: Path) -> None:
    """They are a ready version of this one at once, whether announced or sent; the engine is not asked, nothing more
    is stored. Not so once the blob is gone, or where they bring a chat template that is not known to be the same."""
    first = (await api.upload("acme", "bot", adapter)).json()
    asked = len(api.services.engine.asked)  # type: ignore[attr-defined]
    for name in ("announced", "sent", "templated", "lost"):
        await api.client.post("/api/v1/adapters", json={"name": name}, headers=api.auth("acme"))

    async def announce(name: str, *more: dict[str, Any]) -> Any:
        files = {"adapter": name, "files": [*announced(adapter), *more]}
        return await api.client.post(UPLOADS, json=files, headers=api.auth("acme"))

    known = (await announce("announced")).json()
    sent_again = (await api.upload("acme", "sent", adapter)).json()

    assert (known["id"], known["state"], known["adapter"]) == (None, "published", "announced")
    for version in (known["version"], sent_again):
        assert (version["version"], version["state"], version["digest"]) == (1, "ready", first["digest"])
    assert sent_again["report"] == first["report"]
    assert len(api.services.engine.asked) == asked  # type: ignore[attr-defined]
    assert api.services.blobs.disk_use().adapters == 1
    template = {"name": "chat_template.jinja", "size_bytes": 5, "sha256": "0" * 64}
    assert (await announce("templated", template)).status_code == 201
    shutil.rmtree(api.services.blobs.open(first["digest"]).weights_path.parent)
    assert (await announce("lost")).status_code == 201


async def test_a_known_chat_template_comes_along(api: Api, adapter: Path) -> None:
    """Files with the template of a version that the tenant serves become one with that template; once its profile has
    another they are sent."""
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    brought = {"name": "chat_template.jinja", "size_bytes": len(template)}
    files = [*announced(adapter), brought | {"sha256": hashlib.sha256(template.encode()).hexdigest()}]
    for name in ("same", "other"):
        await api.client.post("/api/v1/adapters", json={"name": name}, headers=api.auth("acme"))
    await api.upload("acme", "bot", adapter, chat_template=template.encode())

    known = await api.client.post(UPLOADS, json={"adapter": "same", "files": files}, headers=api.auth("acme"))
    assert (known.status_code, known.json()["version"]["state"]) == (200, "ready")
    profile = (await get(api, "/api/v1/adapters/same/versions/1")).json()["profile"]
    assert profile["chat_template"] == template
    for name in ("bot", "same"):
        url = f"/api/v1/adapters/{name}/versions/1/profile"
        put = await api.client.put(url, json={"chat_template": template + "!"}, headers=api.auth("acme"))
        assert put.status_code == 200, put.text
    sent_again = await api.client.post(UPLOADS, json={"adapter": "other", "files": files}, headers=api.auth("acme"))
    assert sent_again.status_code == 201


async def test_what_another_tenant_has_does_not_show(api: Api, adapter: Path) -> None:
    """Its very bytes are uploaded, checked and run again, and the answers are those of bytes that nobody has."""
    await api.upload("acme", "bot", adapter)
    asked = len(api.services.engine.asked)  # type: ignore[attr-defined]
    before = await api.client.post(UPLOADS, json=body(adapter), headers=api.auth("globex"))
    unknown = await api.client.post(UPLOADS, json={"adapter": "bot", "files": bad_files()}, headers=api.auth("globex"))
    assert before.status_code == unknown.status_code == 201
    assert before.json().keys() == unknown.json().keys()
    assert before.json()["version"] is None

    version = await complete(api, await sent(api, adapter, "globex"), "globex")

    assert (version.status_code, version.json()["version"]) == (201, 1)
    assert len(api.services.engine.asked) > asked  # type: ignore[attr-defined]


async def test_a_dry_run_checks_and_keeps_nothing(api: Api, adapter: Path, tmp_path: Path) -> None:
    """200 with what a version's report says of its weights, or the refusal that an upload would get."""
    url = "/api/v1/adapters/bot/versions?dry_run=true"
    files = {"config": (adapter / CONFIG_FILE).read_bytes(), "weights": (adapter / WEIGHTS_FILE).read_bytes()}
    checked = await api.client.post(url, files=files, headers=api.auth("acme"))
    refused = await api.client.post(url, files=files | {"weights": b"no"}, headers=api.auth("acme"))

    assert code(refused) == (400, "adapter_invalid")
    assert checked.status_code == 200
    assert not [path for path in api.services.settings.adapters_dir.rglob("*") if path.is_file()]
    assert (await get(api, "/api/v1/adapters/bot")).json()["versions"] == []
    assert not api.services.engine.asked  # type: ignore[attr-defined]
    version = (await api.upload("acme", "bot", adapter)).json()
    assert checked.json()["report"] == version["report"][:1]
    for field in ("digest", "size_bytes", "rank", "targets", "invocation_tokens", "is_additive"):
        assert checked.json()[field] == version[field]

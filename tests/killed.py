"""An API process that dies at a named step of what it does, as if the power went: no cleanup, no answer.

It runs the real code up to there, forked from one process that has imported it. What had been answered before is in
`answers.json` in its folder: keys, the version that serves, and the upload that was begun.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from api_running import Api, run_api

from loraplex.adapters import aliases, registry
from loraplex.adapters.aliases import AdapterAliases
from loraplex.adapters.blobs import BlobStore
from loraplex.adapters.database import Database
from loraplex.adapters.registry import AdapterRegistry
from loraplex.adapters.upload_files import GrowingFile, UploadFiles
from loraplex.adapters.upload_sessions import UploadSessions
from loraplex.platform import publishing
from loraplex.platform.manage import versions as version_routes

DIED = 42
BOT = "/api/v1/adapters/bot"

Operation = Callable[[Api, Path, dict[str, Any]], Awaitable[object]]


async def upload(api: Api, second: Path, answers: dict[str, Any]) -> None:
    await api.upload("acme", "bot", second)


async def upload_in_pieces(api: Api, second: Path, answers: dict[str, Any]) -> None:
    answers["upload"] = (await api.open_upload("acme", "bot", second)).json()["id"]
    write(api, answers)
    await api.finish_upload("acme", answers["upload"], second)


async def move_alias(api: Api, second: Path, answers: dict[str, Any]) -> None:
    await api.client.put(f"{BOT}/aliases/prod", json={"version": 2}, headers=api.auth("acme"))


async def delete_version(api: Api, second: Path, answers: dict[str, Any]) -> None:
    await api.client.delete(f"{BOT}/versions/2", headers=api.auth("acme"))


async def collect(api: Api, second: Path, answers: dict[str, Any]) -> None:
    await delete_version(api, second, answers)
    api.services.blobs.sweep(await api.services.registry.live_digests(), grace_seconds=-60)


STEPS: dict[str, tuple[Operation, Any, str]] = {
    # step: what is done, and the call after whose end the process dies
    "upload staged": (upload, version_routes, "receive_parts"),
    "upload checked": (upload, publishing, "check_adapter"),
    "upload committed": (upload, BlobStore, "commit"),
    "upload published": (upload, AdapterRegistry, "publish"),
    "upload settled": (upload, AdapterRegistry, "settle"),
    "pieces opened": (upload_in_pieces, UploadSessions, "open"),
    "pieces appended": (upload_in_pieces, GrowingFile, "append"),
    "pieces staged": (upload_in_pieces, UploadFiles, "stage"),
    "pieces published": (upload_in_pieces, AdapterRegistry, "publish"),
    "pieces closed": (upload_in_pieces, UploadSessions, "close"),
    "alias written": (move_alias, aliases, "record_change"),
    "alias moved": (move_alias, AdapterAliases, "move"),
    "deletion written": (delete_version, registry, "record_change"),
    "deletion done": (delete_version, AdapterRegistry, "delete_version"),
    "blob retired": (collect, Path, "rename"),
    "blob half deleted": (collect, os, "unlink"),
}


@dataclass(frozen=True)
class Death:
    """Where to die, and with what: a folder and a database that are still empty, and the folders of two adapters."""

    step: str
    url: str
    folder: str
    model: str
    first: str
    second: str

    def answers(self) -> dict[str, Any]:
        """What clients had been told before."""
        return json.loads(Path(self.folder, "answers.json").read_text())


def die(deaths: Sequence[Death]) -> None:
    """Have a process die for each. Fails if one ends in any other way than at its step."""
    given = json.dumps([asdict(death) for death in deaths])
    done = subprocess.run([sys.executable, __file__], input=given, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


async def operate(death: Death) -> None:
    """On adapter `bot`, whose version 1 is `first`; `second` is to be uploaded, or else is version 2."""
    operation, owner, name = STEPS[death.step]
    async with run_api(Database(death.url), Path(death.folder), Path(death.model)) as api:
        await api.client.post("/api/v1/adapters", json={"name": "bot"}, headers=api.auth("acme"))
        answers = {"keys": api.keys, "version": (await api.upload("acme", "bot", Path(death.first))).json()}
        await api.client.put(f"{BOT}/aliases/prod", json={"version": 1}, headers=api.auth("acme"))
        if operation not in (upload, upload_in_pieces):
            await api.upload("acme", "bot", Path(death.second))
        write(api, answers)
        setattr(owner, name, dying_after(getattr(owner, name)))
        await operation(api, Path(death.second), answers)


def write(api: Api, answers: dict[str, Any]) -> None:
    (api.services.settings.data_dir / "answers.json").write_text(json.dumps(answers))


def dying_after(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def dying(*arguments: Any, **options: Any) -> Any:
        call(*arguments, **options)
        os._exit(DIED)

    @functools.wraps(call)
    async def dying_later(*arguments: Any, **options: Any) -> Any:
        await call(*arguments, **options)
        os._exit(DIED)

    return dying_later if inspect.iscoroutinefunction(call) else dying


def main() -> None:
    for death in json.load(sys.stdin):
        child = os.fork()
        if child == 0:
            try:
                asyncio.run(operate(Death(**death)))
            finally:
                os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code == DIED, f"{death['step']}: exit code {code}"


if __name__ == "__main__":
    main()

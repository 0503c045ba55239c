"""An API process that dies at a named step of what it does, as if the power went: no cleanup, no answer.

It runs the real code up to there. What had been answered before is in `answers.json` in its folder: keys, the version
that serves, and the upload or the import that was begun.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from api_running import Api, run_api

from loraplex.adapters import aliases, registry
from loraplex.adapters.aliases import AdapterAliases
from loraplex.adapters.blobs import WEIGHTS_FILE, BlobStore
from loraplex.adapters.database import Database
from loraplex.adapters.import_leases import ImportLeases
from loraplex.adapters.registry import AdapterRegistry
from loraplex.adapters.upload_files import GrowingFile, UploadFiles
from loraplex.adapters.upload_sessions import UploadSessions
from loraplex.platform import publishing
from loraplex.platform.imports import worker
from loraplex.platform.imports.download import Download
from loraplex.platform.logging import configure_logging
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


async def run_import(api: Api, second: Path, answers: dict[str, Any]) -> None:
    """Of the commit that the branch stands for now."""
    body = {"adapter": "bot", "source": "hf://acme/bot"}
    asked = await api.client.post("/api/v1/imports", json=body, headers=api.auth("acme"))
    answers["import"] = asked.json()["id"]
    write(api, answers)
    await worker.run_next(api.services)


async def move_alias(api: Api, second: Path, answers: dict[str, Any]) -> None:
    await api.client.put(f"{BOT}/aliases/prod", json={"version": 2}, headers=api.auth("acme"))


async def delete_version(api: Api, second: Path, answers: dict[str, Any]) -> None:
    await api.client.delete(f"{BOT}/versions/2", headers=api.auth("acme"))


async def collect(api: Api, second: Path, answers: dict[str, Any]) -> None:
    await delete_version(api, second, answers)
    api.services.blobs.sweep(await api.services.registry.live_digests(), grace_seconds=-60)


BRINGING = (upload, upload_in_pieces, run_import)
"""What makes the second version; the others begin when there are two."""


def after(call: Callable[..., Any]) -> Callable[..., Any]:
    """The call, and then the end."""

    @functools.wraps(call)
    def dying(*arguments: Any, **options: Any) -> Any:
        call(*arguments, **options)
        os._exit(DIED)

    @functools.wraps(call)
    async def dying_later(*arguments: Any, **options: Any) -> Any:
        await call(*arguments, **options)
        os._exit(DIED)

    return dying_later if inspect.iscoroutinefunction(call) else dying


def before(call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *_, **__: os._exit(DIED)


def halfway(write: Callable[..., Any]) -> Callable[..., Any]:
    """`Download.write` until half of the weights are there."""

    async def dying(download: Download, block: bytes) -> None:
        await write(download, block)
        if download.name == WEIGHTS_FILE and 2 * download.received_bytes >= (download.total_bytes or 0):
            os._exit(DIED)

    return dying


@dataclass(frozen=True)
class Step:
    """What is done, and the call at which the process dies."""

    operation: Operation
    owner: Any
    call: str
    moment: Callable[[Callable[..., Any]], Callable[..., Any]] = after


STEPS = {
    "upload staged": Step(upload, version_routes, "receive_parts"),
    "upload checked": Step(upload, publishing, "check_adapter"),
    "upload committed": Step(upload, BlobStore, "commit"),
    "upload published": Step(upload, AdapterRegistry, "publish"),
    "upload settled": Step(upload, AdapterRegistry, "settle"),
    "pieces opened": Step(upload_in_pieces, UploadSessions, "open"),
    "pieces appended": Step(upload_in_pieces, GrowingFile, "append"),
    "pieces staged": Step(upload_in_pieces, UploadFiles, "stage"),
    "pieces published": Step(upload_in_pieces, AdapterRegistry, "publish"),
    "pieces closed": Step(upload_in_pieces, UploadSessions, "close"),
    "alias written": Step(move_alias, aliases, "record_change"),
    "alias moved": Step(move_alias, AdapterAliases, "move"),
    "deletion written": Step(delete_version, registry, "record_change"),
    "deletion done": Step(delete_version, AdapterRegistry, "delete_version"),
    "blob retired": Step(collect, Path, "rename"),
    "blob half deleted": Step(collect, os, "unlink"),
    "import leased": Step(run_import, ImportLeases, "claim"),
    "import pinned": Step(run_import, ImportLeases, "pin"),
    "import downloading": Step(run_import, Download, "write", halfway),
    "import downloaded": Step(run_import, worker, "publish_staged", before),
    "import checked": Step(run_import, publishing, "check_adapter"),
    "import committed": Step(run_import, BlobStore, "commit"),
    "import published": Step(run_import, AdapterRegistry, "publish"),
    "import validated": Step(run_import, worker, "validate_now"),
    "import settled": Step(run_import, worker, "_settle"),
}


@dataclass(frozen=True)
class Death:
    """Where to die, and with what: a folder and a database that are still empty, the folders of two adapters, and a hub
    that has the second one as `acme/bot`."""

    step: str
    url: str
    folder: str
    model: str
    first: str
    second: str
    hub: str = "http://none"

    def answers(self) -> dict[str, Any]:
        """What clients had been told before."""
        return json.loads(Path(self.folder, "answers.json").read_text())

    @property
    def settings(self) -> dict[str, Any]:
        """Of the server that dies; one that goes on with its imports needs them, too."""
        return {"import_sources": "hf://acme/", "hf_endpoint": self.hub}


@contextmanager
def dying_servers() -> Iterator[Callable[[Death], None]]:
    """`die(death)`: it fails if the process ends in any other way than at its step.

    All are forked from one that has imported everything: most of their time would go on that."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, __file__], **pipes) as program:

        def die(death: Death) -> None:
            print(json.dumps(asdict(death)), file=program.stdin, flush=True)
            code = int(program.stdout.readline())
            assert code == DIED, f"{death.step}: exit code {code}"

        yield die


async def operate(death: Death) -> None:
    """On adapter `bot`, whose version 1 is `first`; `second` is to become version 2, or has."""
    step = STEPS[death.step]
    async with run_api(Database(death.url), Path(death.folder), Path(death.model), **death.settings) as api:
        await api.client.post("/api/v1/adapters", json={"name": "bot"}, headers=api.auth("acme"))
        answers = {"keys": api.keys, "version": (await api.upload("acme", "bot", Path(death.first))).json()}
        await api.client.put(f"{BOT}/aliases/prod", json={"version": 1}, headers=api.auth("acme"))
        if step.operation not in BRINGING:
            await api.upload("acme", "bot", Path(death.second))
        write(api, answers)
        setattr(step.owner, step.call, step.moment(getattr(step.owner, step.call)))
        await step.operation(api, Path(death.second), answers)


def write(api: Api, answers: dict[str, Any]) -> None:
    (api.services.settings.data_dir / "answers.json").write_text(json.dumps(answers))


def main() -> None:
    """A death a line, answered with the exit code."""
    configure_logging("warning", "json")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                asyncio.run(operate(Death(**json.loads(line))))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()

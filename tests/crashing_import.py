"""A program that dies at a named step of an import: `os._exit`, so that nothing is put in order, as after kill -9.

It reads one JSON object a line, {step, database_url, folder, model, hub_url}, runs the job that is due in a process of
its own, and answers with the exit status of that. One program for many crashes: most of their time would go on imports.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from api_running import make_services

from loraplex.adapters.blobs import WEIGHTS_FILE, BlobStore
from loraplex.adapters.database import Database
from loraplex.adapters.registry import AdapterRegistry
from loraplex.platform import publishing
from loraplex.platform.imports import worker
from loraplex.platform.imports.download import Download
from loraplex.platform.logging import configure_logging

CRASHED = 86


def crash(*_: Any) -> None:
    os._exit(CRASHED)


def crash_after(owner: Any, name: str) -> Callable[[], None]:
    """Let the function do its work, and nothing come after it."""

    def patch() -> None:
        original = getattr(owner, name)

        async def in_loop(*arguments: Any, **options: Any) -> None:
            crash(await original(*arguments, **options))

        def in_thread(*arguments: Any, **options: Any) -> None:
            crash(original(*arguments, **options))

        setattr(owner, name, in_loop if asyncio.iscoroutinefunction(original) else in_thread)

    return patch


def crash_within_the_weights() -> None:
    write = Download.write

    async def write_half(download: Download, block: bytes) -> None:
        await write(download, block)
        if download.name == WEIGHTS_FILE and 2 * download.received_bytes >= (download.total_bytes or 0):
            crash()

    Download.write = write_half


STEPS: dict[str, Callable[[], None]] = {
    "leased": lambda: setattr(worker, "_attempt_held", crash),
    "downloading": crash_within_the_weights,
    "downloaded": lambda: setattr(worker, "publish_staged", crash),
    "checked": crash_after(publishing, "_check"),
    "committed": crash_after(BlobStore, "commit"),
    "published": crash_after(AdapterRegistry, "publish"),
    "validated": crash_after(worker, "validate_now"),
    "settled": crash_after(worker, "_settle"),
}


async def run(database_url: str, folder: str, model: str, hub_url: str) -> None:
    settings = {"import_sources": "hf://acme/", "hf_endpoint": hub_url}
    services = await make_services(Database(database_url), Path(folder), Path(model), **settings)
    await worker.run_next(services)


def main() -> None:
    configure_logging("warning", "json")
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            STEPS[order.pop("step")]()
            asyncio.run(run(**order))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()

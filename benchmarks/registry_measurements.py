"""What is measured of a registry with a given number of adapters: through a real server, and call by call.

Knows one database and one data folder. Servers are started and stopped as the end-to-end tests do it.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from e2e.server import Server, checked, running_server
from registry_rows import BY, KEY_ID, Uploaded, adapter_name, publish
from sqlalchemy import event
from sqlalchemy.engine import Engine

from loraplex.adapters.aliases import AdapterAliases
from loraplex.adapters.changes import ChangeFeed
from loraplex.adapters.database import Database
from loraplex.adapters.registry import AdapterRegistry
from loraplex.platform.catalog import Catalog
from loraplex.platform.name_cache import NameCache
from loraplex.platform.tenants import Principal
from loraplex.platform.validation import ABANDONED_AFTER

EXAMPLE = Path(__file__).parents[1] / "examples" / "adapters" / "order-json"
BASE, TENANT = "base", "acme"
PAGE = 100
REPEATS = 15
UPLOADS = 5
SETTLE_SECONDS = 2
MIB = 1 << 20

Figures = dict[str, float]


@dataclass(frozen=True)
class Place:
    """Where servers keep what they know: a database, and a folder beside it."""

    model: Path
    data_dir: Path
    database_url: str

    @contextmanager
    def server(self) -> Iterator[Server]:
        options = {"served_model_name": BASE, "database_url": self.database_url}
        with running_server(self.model, self.data_dir, **options) as server:
            yield server


class Statements:
    """Counts what this process sends to databases while the block runs, without the BEGIN of transactions."""

    def __enter__(self) -> Statements:
        self.sent = 0
        event.listen(Engine, "before_cursor_execute", self._note)
        return self

    def __exit__(self, *_: object) -> None:
        event.remove(Engine, "before_cursor_execute", self._note)

    def _note(self, connection: Any, cursor: Any, statement: str, *_: object) -> None:
        self.sent += not statement.startswith("BEGIN")


def start_and_memory(place: Place, starts: int) -> Figures:
    """Seconds from a server's process to its /readyz, the median; resident memory of the last one, at rest."""
    seconds, memory = [], {}
    for _ in range(starts):
        with place.server() as server:
            process = psutil.Process(server.process.pid)
            seconds.append(time.time() - process.create_time())
            time.sleep(SETTLE_SECONDS)  # it sweeps files and looks for abandoned versions
            engine = sum(child.memory_info().rss for child in process.children(recursive=True))
            memory = {"api_memory_mib": process.memory_info().rss / MIB, "engine_memory_mib": engine / MIB}
    return {"start_seconds": statistics.median(seconds), **memory}


def upload(client: httpx.Client, name: str, number: int) -> dict[str, Any]:
    """The example adapter, with a number in its last weights, as the next version of an adapter."""
    weights = bytearray((EXAMPLE / "adapter_model.safetensors").read_bytes())
    weights[-8:] = b"".join((number >> shift & 0x7F).to_bytes(1) + b"\x3c" for shift in (0, 7, 14, 21))  # finite bf16
    files = {"config": (EXAMPLE / "adapter_config.json").read_bytes(), "weights": bytes(weights)}
    return checked(client.post(f"/api/v1/adapters/{name}/versions", files=files))


def through_server(place: Place, key: str, adapters: int, numbers: Iterator[int]) -> Figures:
    """What a tenant asks of a running server, and the server's memory once every name has been asked for."""
    name = adapter_name(adapters // 2)
    path = f"/api/v1/adapters/{name}"
    with place.server() as server, server.http(key) as client:

        def list_page(after: str | None) -> None:
            params = {"limit": PAGE} | ({} if after is None else {"after": after})
            assert len(checked(client.get("/api/v1/adapters", params=params))["data"]) == PAGE

        def move() -> None:
            checked(client.put(f"{path}/aliases/prod", json={"version": 1 + next(numbers) % 2}))

        upload(client, name, next(numbers))  # an engine's first steps are slow
        figures = {
            "http_list_first_page_ms": milliseconds(lambda: list_page(None)),
            "http_list_last_page_ms": milliseconds(lambda: list_page(before_last_page(adapters))),
            "http_get_ms": milliseconds(lambda: checked(client.get(path))),
            "http_upload_ms": milliseconds(lambda: upload(client, name, next(numbers)), UPLOADS),
            "http_alias_move_ms": milliseconds(move),
        }
        for number in range(adapters):
            checked(client.get(f"/v1/models/{adapter_name(number)}"))
        figures["api_memory_all_names_warm_mib"] = psutil.Process(server.process.pid).memory_info().rss / MIB
    return figures


def before_last_page(adapters: int) -> str | None:
    return adapter_name(adapters - PAGE - 1) if adapters > PAGE else None


def milliseconds(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """The median."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds) * 1e3


async def call_by_call(
    database: Database, tenant_id: str, adapters: int, pattern: Uploaded, numbers: Iterator[int]
) -> Figures:
    """The registry's own calls: milliseconds, the median, and SQL statements of one."""
    registry, aliases = AdapterRegistry(database), AdapterAliases(database)
    name, last = adapter_name(adapters // 3), before_last_page(adapters)
    after = None if last is None else f"{TENANT}/{last}"

    def move() -> Awaitable[object]:
        split = {1: 90, 2: 10} if next(numbers) % 2 else {1: 1}
        return aliases.move(tenant_id, name, "prod", split, by=BY)

    timed: dict[str, Callable[[], Awaitable[object]]] = {
        "list_first_page": lambda: registry.list_adapters(tenant_id, PAGE),
        "list_last_page": lambda: registry.list_adapters(tenant_id, PAGE, after),
        "list_last_page_of_all_tenants": lambda: registry.list_adapters(None, PAGE, after),
        "get": lambda: registry.get_adapter(tenant_id, name),
        "publish_and_settle": lambda: publish(registry, tenant_id, name, pattern, f"{name} {next(numbers)}"),
        "alias_move": move,
        "find_abandoned": lambda: registry.validating(BASE, ABANDONED_AFTER),
        "live_digests": registry.live_digests,
    }
    figures = {}
    for what, call in timed.items():
        seconds = []
        with Statements() as statements:
            for _ in range(REPEATS):
                started = time.perf_counter()
                await call()
                seconds.append(time.perf_counter() - started)
        figures[f"{what}_ms"] = statistics.median(seconds) * 1e3
        figures[f"{what}_statements"] = statements.sent / REPEATS
    return figures


async def names(database: Database, tenant_id: str, adapters: int) -> Figures:
    """Every name resolved once, and again: milliseconds and statements of one; and what remembering them all takes."""
    registry, changes = AdapterRegistry(database), ChangeFeed(database)
    catalog = Catalog(registry, changes, BASE)
    tenant = Principal(KEY_ID, tenant_id, TENANT, frozenset({"inference"}), b"")
    figures = {}
    for what in ("cold", "warm"):
        await changes.look()  # a server does it once a second, whatever it is asked
        with Statements() as statements:
            started = time.perf_counter()
            for number in range(adapters):
                await catalog.resolve(tenant, adapter_name(number))
            figures[f"resolve_{what}_ms"] = (time.perf_counter() - started) / adapters * 1e3
        figures[f"resolve_{what}_statements"] = statements.sent / adapters
    return figures | {"name_cache_mib": await name_cache_bytes(registry, tenant_id, adapters) / MIB}


async def name_cache_bytes(registry: AdapterRegistry, tenant_id: str, adapters: int) -> int:
    """What is free again once a cache of all names is dropped."""
    tracemalloc.start()
    cache = NameCache()
    for number in range(adapters):
        cache.put(tenant_id, adapter_name(number), None, await registry.resolve(tenant_id, adapter_name(number), None))
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    del cache
    gc.collect()
    held -= tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return held


def in_process(place: Place, measure: Callable[[Database], Awaitable[Figures]]) -> Figures:
    """Run it on a database of this process's own."""

    async def run() -> Figures:
        database = Database(place.database_url)
        try:
            return await measure(database)
        finally:
            await database.dispose()

    return asyncio.run(run())

"""Acceptance: whatever dies or is away, every token that a client received is billed once, and no other.

Clients stream and leave at random while the engine is killed, the database is stopped as by a power cut and started
again, and the server is killed and started again on the same folder.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import httpx
import psutil
import pytest
from database_fixtures import PostgresServer, find_postgres
from e2e.metered_clients import Fate, Received, send
from e2e.server import Server, eventually, running_server
from sqlalchemy import create_engine, text

REQUESTS = 2000
CLIENTS = 16
OPTIONS = {"served_model_name": "tiny", "kv_cache_bytes": 8 << 20, "adapter_device_bytes": 8 << 20}

MOST_IN_ONE_EVENT = 8
"""Tokens: what a server that is killed has noted and not sent is one event of each request."""


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    binaries = find_postgres()
    if binaries is None:
        refuse = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        refuse("no PostgreSQL")
    with tempfile.TemporaryDirectory(prefix="loraplex-pg-") as folder:
        server = PostgresServer(binaries, Path(folder))
        server.start()
        yield server
        server.stop()


@dataclass
class Story:
    """What clients ask and receive of a server that does not last."""

    server: Server
    key: str
    wanted: int
    received: list[Received] = field(default_factory=list)
    running: dict[str, Received] = field(default_factory=dict)
    sent: int = 0

    async def client(self, draw: random.Random) -> None:
        while self.sent < self.wanted:
            self.sent += 1
            number = self.sent
            while not await self._try(f"q{number}-{draw.getrandbits(32):08x}", draw):  # noqa: ASYNC110  none tells
                await asyncio.sleep(0.05)

    async def _try(self, request_id: str, draw: random.Random) -> bool:
        """No: it was refused, or nobody was there; it is to be sent again, as another."""
        received = self.running[request_id] = Received(request_id)
        try:
            await send(httpx.URL(self.server.url), self.key, received, draw)
        except OSError:
            return False
        finally:
            del self.running[request_id]
        self.received.append(received)
        assert received.fate != "refused" or received.status == 503, received
        return received.fate != "refused"

    async def until_streaming(self) -> None:
        """Several, at this moment."""
        await self._until(lambda: sum(each.tokens > 0 for each in self.running.values()) >= 3)

    async def until_ended(self, count: int) -> None:
        await self._until(lambda: sum(each.fate != "refused" for each in self.received) >= count)

    async def until_refused(self) -> None:
        """Once more than so far."""
        before = self._refused
        await self._until(lambda: self._refused > before)

    @property
    def _refused(self) -> int:
        return sum(each.fate == "refused" for each in self.received)

    async def _until(self, happened: Callable[[], bool]) -> None:
        """Or nearly all are sent."""
        while not happened() and self.sent < self.wanted - CLIENTS:  # noqa: ASYNC110  nobody waits for it
            await asyncio.sleep(0.01)


async def run_story(story: Story, chaos: Callable[[Story], Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as tasks:
        for number in range(CLIENTS):
            tasks.create_task(story.client(random.Random(f"client {number}")))
        tasks.create_task(chaos(story))


@pytest.mark.postgres
@pytest.mark.slow
def test_every_token_that_was_received_is_billed_once(postgres, tiny_model_dir, make_adapter, tmp_path):
    """What is billed is exactly what was received, but for what was on its way when the server was killed."""
    url, data_dir = postgres.url.render_as_string(), tmp_path / "data"
    with ExitStack() as servers:

        def start() -> Server:
            return servers.enter_context(running_server(tiny_model_dir, data_dir, database_url=url, **OPTIONS))

        async def chaos(story: Story) -> None:
            await story.until_ended(REQUESTS // 5)
            await story.until_streaming()
            os.kill(engine_of(story.server).pid, signal.SIGKILL)
            await story.until_ended(REQUESTS * 2 // 5)
            await asyncio.to_thread(postgres.stop)
            await story.until_refused()
            await asyncio.to_thread(postgres.start)
            await story.until_ended(REQUESTS * 4 // 5)
            await story.until_streaming()
            story.server.process.kill()
            story.server.process.wait()
            story.server = await asyncio.to_thread(start)

        server = start()
        key = server.create_tenant("acme")
        server.upload(key, "bot", make_adapter(tmp_path / "bot", rank=2))
        story = Story(server, key, REQUESTS)
        asyncio.run(run_story(story, chaos))
        story.server.wait_until_idle()
        eventually(lambda: len(list((data_dir / "ledger").iterdir())), lambda servers: servers == 1)
        assert story.server.stop() == 0
        assert not list((data_dir / "ledger").iterdir())
    bills = bills_of(url)
    check_bills(bills, story.received)
    check_hours(url)


def engine_of(server: Server) -> psutil.Process:
    children = psutil.Process(server.process.pid).children()
    [engine] = [child for child in children if "loraplex.engine.server" in child.cmdline()]
    return engine


def bills_of(url: str) -> dict[str, list[dict[str, Any]]]:
    engine = create_engine(url)
    with engine.connect() as connection:
        rows = [dict(row) for row in connection.execute(text("SELECT * FROM usage_records")).mappings()]
    engine.dispose()
    bills: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        bills[row["request_id"]].append(row)
    return bills


def check_bills(bills: dict[str, list[dict[str, Any]]], received: list[Received]) -> None:
    """Each once; exactly what was received, but for those that were cut off by the death of the server."""
    fates = Counter(each.fate for each in received)
    assert set(fates) == set(get_args(Fate)), fates
    unsent = Counter[int]()
    for each in received:
        found = bills.pop(each.request_id, [])
        if not found and not each.tokens:
            continue  # the server has not seen it, or could not ask the database whose it is
        [bill] = found
        what = each, bill["finish_reason"], bill["status"], bill["completion_tokens"], bill["prompt_tokens"]
        if bill["finish_reason"] == "server_lost":
            assert each.fate in ("cut", "left"), what
            unsent[bill["completion_tokens"] - each.tokens] += 1
            continue
        assert bill["completion_tokens"] == each.tokens, what
        if each.tokens:
            assert bill["prompt_tokens"] == each.prompt_tokens, what
        ended = {"whole": {"length"}, "failed": {"error"}, "refused": {"refused", "error"}}
        assert bill["finish_reason"] in ended.get(each.fate, {"length", "client_closed", "error", "refused"}), what
    assert not bills, "requests were billed that nobody made"
    assert unsent
    assert set(unsent) <= set(range(MOST_IN_ONE_EVENT + 1))
    print(f"{len(received)} requests: {dict(fates)}; noted and not received at the kill: {dict(unsent)}")


def check_hours(url: str) -> None:
    """The sums by the hour are those of the requests."""
    columns = "coalesce(sum({}), 0), sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens), sum(total_ms)"
    engine = create_engine(url)
    with engine.connect() as connection:
        hours = connection.execute(text(f"SELECT {columns.format('requests')} FROM usage_hours")).one()
        rows = connection.execute(text(f"SELECT {columns.format('1')} FROM usage_records")).one()
    engine.dispose()
    assert tuple(hours) == tuple(rows)

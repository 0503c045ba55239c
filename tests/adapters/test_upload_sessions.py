"""Uploads and leases as rows, on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest

from loraplex.adapters.database import Database
from loraplex.adapters.errors import AdapterNotFound, UploadLimitReached, UploadNotFound
from loraplex.adapters.leases import JANITOR, Leases
from loraplex.adapters.registry import AdapterRegistry
from loraplex.adapters.upload_files import AnnouncedFile
from loraplex.adapters.upload_sessions import UploadInfo, UploadLimits, UploadSessions

pytestmark = pytest.mark.anyio

FILES = (AnnouncedFile("adapter_config.json", 10, "a" * 64), AnnouncedFile("adapter_model.safetensors", 90, "b" * 64))
LIMITS = UploadLimits(max_open=3, max_bytes=1000, lifetime=timedelta(hours=1))


async def test_an_upload_is_open_until_it_is_a_version_or_forgotten(
    database: Database, registry: AdapterRegistry, acme_with_bot: str
) -> None:
    """Everything announced is told again; its files are needed only while it is open; it goes with its adapter."""
    sessions = UploadSessions(database, LIMITS)
    first, second = [await sessions.open(acme_with_bot, "bot", FILES) for _ in range(2)]
    assert (first.adapter, first.files, first.version) == ("bot", FILES, None)
    assert await sessions.get(acme_with_bot, first.id) == first
    assert await sessions.list_open(acme_with_bot) == [second, first]
    assert await sessions.open_ids() == {first.id, second.id}

    await sessions.close(first.id, 7)

    assert (await sessions.get(acme_with_bot, first.id)).version == 7
    assert await sessions.list_open(acme_with_bot) == [second]
    assert await sessions.open_ids() == {second.id}
    await registry.delete_adapter(acme_with_bot, "bot")
    assert await sessions.open_ids() == set()
    for upload_id in (first.id, second.id, "0" * 32, "\0", "x" * 1000):
        with pytest.raises(UploadNotFound):
            await sessions.get(acme_with_bot, upload_id)
    with pytest.raises(AdapterNotFound):
        await sessions.open(acme_with_bot, "bot", FILES)


async def test_an_upload_whose_time_is_up_is_gone(database: Database, acme_with_bot: str) -> None:
    """Before it is forgotten, too."""
    expired = UploadSessions(database, UploadLimits(3, 1000, timedelta(seconds=-1)))
    upload = await expired.open(acme_with_bot, "bot", FILES)
    for _ in range(2):
        with pytest.raises(UploadNotFound):
            await expired.get(acme_with_bot, upload.id)
        assert (await expired.list_open(acme_with_bot), await expired.open_ids()) == ([], set())
        await expired.drop_expired()


async def test_uploads_that_are_opened_at_once_share_the_room(database: Database, acme_with_bot: str) -> None:
    """Of eight at the same moment as many open as may, in number and in bytes."""
    for limits, expected in ((LIMITS, 3), (UploadLimits(8, 250, LIMITS.lifetime), 2)):
        sessions = UploadSessions(database, limits)
        tries = [sessions.open(acme_with_bot, "bot", FILES) for _ in range(8)]
        results = await asyncio.gather(*tries, return_exceptions=True)
        opened = [result for result in results if isinstance(result, UploadInfo)]
        assert len(opened) == expected
        assert sum(isinstance(result, UploadLimitReached) for result in results) == 8 - expected
        for upload in opened:
            await sessions.drop(acme_with_bot, upload)


async def test_one_server_at_a_time_has_a_lease(database: Database) -> None:
    """Of four that ask at once one gets it; it is free again when that one is through, or its time is up."""
    minute, servers = timedelta(minutes=1), [Leases(database) for _ in range(4)]
    all_asked = asyncio.Barrier(len(servers))

    async def ask(leases: Leases) -> bool:
        async with leases.hold(JANITOR, minute) as is_ours:
            await all_asked.wait()
            return is_ours

    for _ in range(2):
        assert sorted(await asyncio.gather(*map(ask, servers))) == [False, False, False, True]
    async with AsyncExitStack() as later:
        async with servers[0].hold(JANITOR, timedelta(seconds=-1)):
            assert await later.enter_async_context(servers[1].hold(JANITOR, minute))
        assert not await later.enter_async_context(servers[2].hold(JANITOR, minute))

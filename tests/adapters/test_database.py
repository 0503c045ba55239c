"""Transactions and URLs of the database, on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from datetime import datetime

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import IntegrityError

from loraplex.adapters.database import Database, InvalidDatabaseUrl, normalise_url
from loraplex.adapters.schema import Adapter, BaseModel, UtcDateTime

pytestmark = pytest.mark.anyio


def base_model(name: str) -> BaseModel:
    return BaseModel(name=name, shape_digest="0" * 64, source="here")


async def names(database: Database) -> set[str]:
    async with database.read() as session:
        return set(await session.scalars(select(BaseModel.name)))


async def test_a_block_that_raises_leaves_nothing(database):
    """What a transaction wrote is there if its block ends well, and not if it raises."""
    async with database.transaction() as session:
        session.add(base_model("kept"))

    async def fail() -> None:
        async with database.transaction() as session:
            session.add(base_model("lost"))
            await session.flush()
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        await fail()

    assert await names(database) == {"kept"}


async def test_a_reader_sees_one_moment(database):
    """Inside one `read` nothing changes, though another transaction commits meanwhile, unhindered."""
    async with database.read() as reader:
        before = await reader.scalar(select(func.count()).select_from(BaseModel))
        async with database.transaction() as session:
            session.add(base_model("new"))
        assert await reader.scalar(select(func.count()).select_from(BaseModel)) == before

    assert await names(database) == {"new"}


async def test_a_cancelled_transaction_leaves_nothing(database):
    """A task that is cancelled inside a transaction blocks no later one."""
    inside = asyncio.Event()

    async def hang() -> None:
        async with database.transaction() as session:
            session.add(base_model("lost"))
            await session.flush()
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hang())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with database.transaction() as session:
        session.add(base_model("kept"))

    assert await names(database) == {"kept"}


async def test_a_task_cancelled_within_a_statement_blocks_no_later_one(database):
    """Wherever in a transaction it is cancelled, the next one gets its turn, though the task is still referred to."""
    async with database.transaction() as session:
        session.add(base_model("there"))

    async def write() -> None:
        async with database.transaction() as session:
            written = await session.execute(update(BaseModel).values(source="new").returning(BaseModel.name))
            assert written.first() is not None

    tasks = []
    for steps in range(60):
        tasks.append(asyncio.create_task(write()))
        for _ in range(steps):
            await asyncio.sleep(0)
        tasks[-1].cancel()
        await asyncio.wait(tasks[-1:])
        await write()


async def test_many_transactions_at_once_all_succeed(database):
    """More writers than connections wait for their turn."""

    async def write(index: int) -> None:
        async with database.transaction() as session:
            session.add(base_model(f"m{index}"))

    await asyncio.gather(*(write(index) for index in range(40)))

    assert len(await names(database)) == 40


async def test_foreign_keys_are_enforced(database):
    """A row that refers to nothing is refused, on SQLite too."""

    async def write() -> None:
        async with database.transaction() as session:
            session.add(Adapter(tenant_id="nobody", name="bot", base_model_id="nothing"))

    with pytest.raises(IntegrityError):
        await write()


async def test_urls_may_omit_the_driver():
    """The usual spellings come to the drivers that Loraplex uses."""
    assert normalise_url("sqlite:///x.db").drivername == "sqlite+aiosqlite"
    for scheme in ("postgres", "postgresql", "postgresql+psycopg"):
        url = normalise_url(f"{scheme}://u@host/name?connect_timeout=9")
        assert (url.drivername, url.host, url.query["connect_timeout"]) == ("postgresql+psycopg", "host", "9")


@pytest.mark.parametrize("url", ["", "nonsense", "mysql://host/name", "sqlite://", "sqlite:///:memory:"])
async def test_unusable_urls_are_refused(url):
    """A URL of another database, or of a SQLite without a file, is refused with what to write instead."""
    with pytest.raises(InvalidDatabaseUrl, match=r"database_url: .*(sqlite|postgresql)"):
        Database(url)


async def test_times_need_a_zone():
    """A datetime without a time zone is refused before it can be stored as something else."""
    with pytest.raises(ValueError, match="no time zone"):
        UtcDateTime().process_bind_param(datetime(2026, 1, 1), sqlite.dialect())

"""The ledger's promise, whatever fails: what was handed over is in the database in the end, each request once."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from database_fixtures import on_sqlite
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from loraplex.adapters.database import Database
from loraplex.platform.errors import ApiError
from loraplex.platform.ledger.ledger import Ledger
from loraplex.platform.ledger.record import NO_TOKENS, Tokens, UsageRecord
from loraplex.platform.ledger.schema import UsageHour, UsageRow
from loraplex.platform.ledger.slots import MAX_RECORD_BYTES, RunningSlots, lost_requests
from loraplex.platform.ledger.spool import segments_of

pytestmark = pytest.mark.anyio

HANDED = Tokens(11, 4, 7)


def record(**fields: Any) -> UsageRecord:
    known: dict[str, Any] = {
        "id": uuid4().hex,
        "request_id": "r",
        "server_id": "s",
        "started_at": datetime.now(UTC),
        "tenant_id": "t",
        "key_id": "k",
        "endpoint": "chat",
        "finish_reason": "stop",
    }
    return UsageRecord(**known | HANDED._asdict() | fields)


def make_ledger(folder: Path, database: Database, max_bytes: int = 1 << 20) -> Ledger:
    return Ledger(folder / "ledger", database, max_bytes=max_bytes)


def die(ledger: Ledger) -> None:
    """As the kernel ends a process: its files are closed, so its lock is gone."""
    os.close(ledger._lock)


async def billed(database: Database) -> dict[str, tuple[str, int]]:
    """By id; and the sums by the hour are those of the requests."""
    async with database.read() as session:
        rows = (await session.scalars(select(UsageRow))).all()
        hours = (await session.scalars(select(UsageHour))).all()
    assert sum(hour.requests for hour in hours) == len(rows)
    assert sum(hour.completion_tokens for hour in hours) == sum(row.completion_tokens for row in rows)
    return {row.id: (row.finish_reason, row.completion_tokens) for row in rows}


@contextmanager
def no_room_for(size: int) -> Iterator[None]:
    """No file may become larger than this, so writes beyond it are cut short and then fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_dead_server_s_requests_are_billed_by_the_next(tmp_path: Path, database: Database) -> None:
    """What had ended, as it ended; what ran, as far as it was noted; what another server has that lives stays its."""
    dead, living = make_ledger(tmp_path, database), make_ledger(tmp_path, database)
    ended, running, silent, others = record(), record(), record(), record()
    slot = dead.open(ended)
    dead.settle(slot, ended)
    dead.note(dead.open(lost := record(finish_reason="server_lost", **NO_TOKENS._asdict())), HANDED)
    dead.open(silent := record(finish_reason="server_lost", **NO_TOKENS._asdict()))
    living.settle(living.open(others), others)
    living.open(running)
    die(dead)

    next_one = make_ledger(tmp_path, database)
    await next_one.adopt()
    await next_one.adopt()
    expected = {ended.id: ("stop", 7), lost.id: ("server_lost", 7), silent.id: ("server_lost", 0)}
    assert await billed(database) == expected
    await living.close()
    assert await billed(database) == expected | {others.id: ("stop", 7)}
    await next_one.close()


async def test_a_death_between_database_and_disk_counts_nothing_twice(tmp_path: Path, database: Database) -> None:
    """Of what is in the database and in the spool, and of what is in the spool and in a slot, too."""
    dead = make_ledger(tmp_path, database)
    written, settled = record(), record()
    dead.settle(dead.open(written), written)
    [segment] = segments_of(dead._folder)
    copy = segment.read_bytes()
    await dead.write()
    (dead._folder / "000000000000.log").write_bytes(copy)
    dead.note(dead.open(settled), Tokens(11, 4, 3))
    dead._spool.append(settled)
    die(dead)

    next_one = make_ledger(tmp_path, database)
    await next_one.adopt()
    assert await billed(database) == {written.id: ("stop", 7), settled.id: ("stop", 7)}
    await next_one.close()


@on_sqlite
async def test_what_a_crash_cut_off_is_left_out(tmp_path: Path, database: Database) -> None:
    """The last line, half written; a damaged one is kept for people, and the others are billed."""
    dead = make_ledger(tmp_path, database)
    records = [record() for _ in range(3)]
    for each in records:
        dead.settle(dead.open(each), each)
    [segment] = segments_of(dead._folder)
    lines = segment.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"completion_tokens":7', b'"completion_tokens":9')
    segment.write_bytes(b"".join([*lines, lines[0][:40]]))
    die(dead)

    next_one = make_ledger(tmp_path, database)
    await next_one.adopt()
    assert set(await billed(database)) == {records[0].id, records[2].id}
    assert (tmp_path / "ledger" / f"{dead.server_id}.damaged").read_bytes() == lines[1]
    await next_one.close()


@on_sqlite
async def test_a_full_spool_refuses_what_is_new(tmp_path: Path, database: Database) -> None:
    """Until the database has taken it; what runs is written down still."""
    ledger = make_ledger(tmp_path, database, max_bytes=1000)
    running = record()
    slot = ledger.open(running)
    while ledger.waiting_bytes < 1000:
        each = record()
        ledger.settle(ledger._slots.take(each), each)
    with pytest.raises(ApiError) as refused:
        ledger.open(record())
    assert (refused.value.status, refused.value.code) == (503, "ledger_full")
    ledger.note(slot, HANDED)
    ledger.settle(slot, running)

    await ledger.write()
    assert running.id in await billed(database)
    ledger.open(record())
    await ledger.close()


@on_sqlite
async def test_a_full_disk_loses_nothing(tmp_path: Path, database: Database) -> None:
    """A record that could only be written in part is not there at all, its slot stays, and it is written later; until
    then nothing new is served."""
    ledger = make_ledger(tmp_path, database)
    first, second = record(), record()
    slots = [ledger.open(each) for each in (first, second)]
    ledger.settle(slots[0], first)
    with no_room_for(ledger.waiting_bytes + 10):
        ledger.settle(slots[1], second)
    assert len(segments_of(ledger._folder)[0].read_bytes()) == ledger.waiting_bytes
    with pytest.raises(ApiError):
        ledger.open(record())

    await ledger.write()
    assert set(await billed(database)) == {first.id, second.id}
    ledger.open(record())
    assert len(list(lost_requests(ledger._folder / "running.slots"))) == 1
    await ledger.close()


@pytest.mark.parametrize("database_url", [pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True)
async def test_a_record_that_no_database_takes_holds_up_no_other(tmp_path: Path, database: Database) -> None:
    """It is kept aside, for people."""
    ledger = make_ledger(tmp_path, database)
    records = [record(version=1 << 40 if number == 3 else 1) for number in range(7)]
    for each in records:
        ledger.settle(ledger.open(each), each)
    await ledger.write()
    assert set(await billed(database)) == {each.id for each in records} - {records[3].id}
    aside = tmp_path / "ledger" / f"{ledger.server_id}.damaged"
    assert records[3].id in aside.read_text()
    await ledger.close()


@on_sqlite
async def test_a_database_that_is_away_is_waited_for(tmp_path: Path, database: Database) -> None:
    """Nothing is lost and nothing is told twice, and a server that leaves meanwhile leaves it to the next."""
    away = Database(f"sqlite:///{tmp_path / 'nowhere' / 'loraplex.db'}")
    ledger = make_ledger(tmp_path, away)
    records = [record() for _ in range(3)]
    for each in records:
        ledger.settle(ledger.open(each), each)
        with pytest.raises(OperationalError):
            await ledger.write()
    await ledger.close()
    assert ledger.waiting_bytes > 0

    next_one = make_ledger(tmp_path, database)
    following = asyncio.create_task(next_one.follow())
    async with asyncio.timeout(30):
        while len(await billed(database)) < 3:  # noqa: ASYNC110  it tells nobody
            await asyncio.sleep(0.01)
    following.cancel()
    with suppress(asyncio.CancelledError):
        await following
    await next_one.close()
    assert list((tmp_path / "ledger").iterdir()) == []
    await away.dispose()


def test_slots_have_room_for_the_longest_names(tmp_path: Path) -> None:
    """In the spelling that takes most bytes; more slots come as they are needed."""
    slots = RunningSlots(tmp_path / "slots")
    long = record(asked="\x01" * 128, model="\x01" * 512, adapter="a" * 255, request_id="r" * 128, digest="d" * 64)
    taken = [slots.take(long if number == 70 else record()) for number in range(100)]
    slots.note(taken[70], HANDED)
    for slot in taken[:70]:
        slots.free(slot)
    left = list(lost_requests(tmp_path / "slots"))
    assert len(set(taken)) == 100
    assert len(left) == 30
    assert (left[0].id, left[0].adapter) == (long.id, long.adapter)
    assert MAX_RECORD_BYTES > 4000
    slots.close()

"""Records into tables: each once, together with its part of the hour's and the day's sums.

Knows rows; knows no file.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from operator import itemgetter
from typing import Any

from sqlalchemy import Insert, Table, delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from loraplex.adapters.database import Database
from loraplex.adapters.schema import now
from loraplex.platform.ledger.prices import PriceTable, price_table
from loraplex.platform.ledger.record import Tokens, UsageRecord
from loraplex.platform.ledger.schema import SpendingDay, UsageContents, UsageHour, UsageRow
from loraplex.platform.schema import Tenant

GROUP = ("tenant_id", "hour", "key_id", "endpoint", "adapter", "version", "digest", "currency")
SUMS = (
    "requests", "errors", "answered", "prompt_tokens", "cached_tokens", "completion_tokens", "cost_micros", "queue_ms",
    "load_ms", "ttft_ms", "total_ms",
)  # fmt: skip
DAY = ("subject", "day", "currency")
SPENT = ("tokens", "cost_micros")
PLAIN = tuple(field for field in UsageRecord.__struct_fields__ if field != "contents")

_GROUP_OF = itemgetter(*GROUP)
_COUNTED_OF = itemgetter(*SUMS[3:])

Row = dict[str, Any]


class UsageRows:
    """Each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, records: Sequence[UsageRecord]) -> int:
        """Those that are not there yet; how many these were. At most 500 at a time, which is how much one statement
        takes. Raises the database's errors, and then none is there."""
        unique = {record.id: record for record in reversed(records)}  # of two with one id the first holds
        async with self._database.transaction() as session:
            prices, slugs = await price_table(session), await _slugs(session, records)
            rows = [_row(record, prices, slugs) for record in unique.values()]
            new = await _insert_new(session, rows)
            added = [row for row in rows if row["id"] in new]
            await _add_to_hours(session, [(row, unique[row["id"]]) for row in added])
            await _add_to_days(session, [(row, unique[row["id"]]) for row in added])
            session.add_all(_contents(unique[record_id]) for record_id in new if unique[record_id].contents)
        return len(new)

    async def drop_expired(self, records: timedelta, hours: timedelta) -> None:
        """Of requests and of sums, those that began longer ago; and contents whose time is up."""
        oldest_hour = int((time.time() - hours.total_seconds()) // 3600)
        async with self._database.transaction() as session:
            await session.execute(delete(UsageRow).where(UsageRow.started_at < now() - records))
            await session.execute(delete(UsageHour).where(UsageHour.hour < oldest_hour))
            await session.execute(delete(UsageContents).where(UsageContents.expires_at < now()))


async def _slugs(session: AsyncSession, records: Iterable[UsageRecord]) -> Mapping[str, str]:
    ids = {record.tenant_id for record in records}
    return dict((await session.execute(select(Tenant.id, Tenant.slug).where(Tenant.id.in_(ids)))).all())


def _row(record: UsageRecord, prices: PriceTable, slugs: Mapping[str, str]) -> Row:
    row: Row = {field: getattr(record, field) for field in PLAIN}
    price = prices.of(f"{slugs.get(record.tenant_id, '')}/{record.adapter}")
    tokens = Tokens(record.prompt_tokens, record.cached_tokens, record.completion_tokens)
    row["cost_micros"] = 0 if price is None else price.cost_of(tokens)
    row["currency"] = "" if price is None else prices.currency
    return row


async def _insert_new(session: AsyncSession, rows: Sequence[Row]) -> set[str]:
    """The ids of those that were not there."""
    return set((await session.execute(_inserting_new(_dialect(session)), list(rows))).scalars())


async def _add_to_hours(session: AsyncSession, added: Iterable[tuple[Row, UsageRecord]]) -> None:
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0] * len(SUMS))
    for row, record in added:
        group = _GROUP_OF(row | {"hour": record.hour})
        counted = 1, record.is_error, record.ttft_ms is not None, *_COUNTED_OF(row)
        groups[group] = [total + (count or 0) for total, count in zip(groups[group], counted, strict=True)]
    rows = [dict(zip((*GROUP, *SUMS), (*group, *sums), strict=True)) for group, sums in groups.items()]
    await _raise(session, UsageHour.__table__, GROUP, SUMS, rows)


async def _add_to_days(session: AsyncSession, added: Iterable[tuple[Row, UsageRecord]]) -> None:
    days: dict[tuple[str, int, str], list[int]] = defaultdict(lambda: [0, 0])
    for row, record in added:
        if not (tokens := record.prompt_tokens + record.completion_tokens):
            continue
        day = record.hour // 24
        for subject in (f"tenant/{record.tenant_id}", f"key/{record.key_id}"):
            spent = days[subject, day, row["currency"]]
            spent[0] += tokens
            spent[1] += row["cost_micros"]
    rows = [dict(zip((*DAY, *SPENT), (*day, *spent), strict=True)) for day, spent in days.items()]
    await _raise(session, SpendingDay.__table__, DAY, SPENT, rows)


async def _raise(
    session: AsyncSession, table: Any, key: tuple[str, ...], sums: tuple[str, ...], rows: list[Row]
) -> None:
    """Add to the sums of those that are there."""
    if rows:
        # All in one order, so that no two servers wait for each other.
        rows.sort(key=itemgetter(*key))
        await session.execute(_raising(_dialect(session), table, key, sums), rows)


def _contents(record: UsageRecord) -> UsageContents:
    assert record.contents is not None
    return UsageContents(
        id=record.id,
        tenant_id=record.tenant_id,
        expires_at=_until(record.started_at, record.contents.days),
        request=record.contents.request,
        answer=record.contents.answer,
    )


def _until(moment: datetime, days: int) -> datetime:
    return moment + timedelta(days=days)


# A statement takes longer to build than to run, so each is built once.


@cache
def _inserting_new(dialect: str) -> Any:
    table: Any = UsageRow.__table__
    return _insert(dialect, table).on_conflict_do_nothing(index_elements=["id"]).returning(table.c.id)


@cache
def _raising(dialect: str, table: Any, key: tuple[str, ...], sums: tuple[str, ...]) -> Any:
    statement = _insert(dialect, table)
    raised = {column: table.c[column] + statement.excluded[column] for column in sums}
    return statement.on_conflict_do_update(index_elements=list(key), set_=raised)


def _insert(dialect: str, table: Table) -> Any:
    """An INSERT that can say what happens on a conflict: the two databases say it alike, SQLAlchemy apart."""
    kinds: dict[str, type[Insert]] = {"postgresql": postgresql.Insert, "sqlite": sqlite.Insert}
    return kinds[dialect](table)


def _dialect(session: AsyncSession) -> str:
    return session.get_bind().dialect.name

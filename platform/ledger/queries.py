"""What is asked of the ledger: sums over time, the requests themselves, and what was said in them.

Knows rows; knows no HTTP. Whoever asks says whose usage: one tenant's, or with None all tenants'.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, Row, Select, and_, delete, func, or_, select

from loraplex.adapters.audit import SERVER, Actor, record
from loraplex.adapters.database import Database
from loraplex.platform.ledger.schema import UsageContents, UsageHour, UsageRow
from loraplex.platform.schema import Account, ApiKey, Tenant

Step = Literal["hour", "day", "all"]
By = Literal["nothing", "tenant", "key", "adapter", "version", "endpoint"]

HOUR_SECONDS = 3600
EXPORT_PAGE = 1000

_GROUPS: dict[By, tuple[Any, ...]] = {
    "nothing": (),
    "tenant": (UsageHour.tenant_id,),
    "key": (UsageHour.tenant_id, UsageHour.key_id),
    "adapter": (UsageHour.tenant_id, UsageHour.adapter),
    "version": (UsageHour.tenant_id, UsageHour.adapter, UsageHour.version, UsageHour.digest),
    "endpoint": (UsageHour.endpoint,),
}

_SUMS = (
    UsageHour.requests,
    UsageHour.errors,
    UsageHour.answered,
    UsageHour.prompt_tokens,
    UsageHour.cached_tokens,
    UsageHour.completion_tokens,
    UsageHour.cost_micros,
    UsageHour.queue_ms,
    UsageHour.load_ms,
    UsageHour.ttft_ms,
    UsageHour.total_ms,
)


@dataclass(frozen=True, slots=True)
class Asked:
    """Which usage is asked for: from `start` on, before `end`. None: of all. adapter: "" is the base. errors: failed
    requests alone."""

    start: datetime
    end: datetime
    tenant_id: str | None = None
    key_id: str | None = None
    adapter: str | None = None
    endpoint: str | None = None
    errors: bool = False


@dataclass(frozen=True, slots=True)
class UsageSum:
    """Of one step of time and one group. `start` None: of all the time. Of the names, those that the group has.

    key: its id; key_name: its name, or the login of the account that stands for one. Times are sums, in milliseconds,
    of all requests; `ttft_ms` of those that are `answered`.
    """

    start: datetime | None
    tenant: str | None
    key: str | None
    key_name: str | None
    adapter: str | None
    version: int | None
    digest: str | None
    endpoint: str | None
    currency: str
    requests: int
    errors: int
    answered: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_micros: int
    queue_ms: int
    load_ms: int
    ttft_ms: int
    total_ms: int


@dataclass(frozen=True, slots=True)
class UsageEntry:
    """One request, as `record.UsageRecord` has it."""

    id: str
    request_id: str
    server_id: str
    started_at: datetime
    tenant: str | None
    key: str
    key_name: str | None
    endpoint: str
    asked: str
    model: str
    adapter: str
    version: int
    digest: str
    choices: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    queue_ms: int | None
    load_ms: int | None
    ttft_ms: int | None
    total_ms: int
    finish_reason: str
    status: int
    cost_micros: int
    currency: str
    has_contents: bool


class UsageQueries:
    """Each method is one transaction, but for `every_request`, which is one a page."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def sums(
        self, asked: Asked, step: Step, by: By, limit: int, *, largest_first: bool = False
    ) -> list[UsageSum]:
        """By time and then by group or, `largest_first`, by their tokens; `limit` at most. Times are taken as whole
        hours: that of `start` is in it, that of `end` if it has begun before."""
        groups = _GROUPS[by]
        moment = _moment(step)
        keys = [*([] if moment is None else [moment.label("moment")]), *groups, UsageHour.currency]
        sums = [func.sum(column).label(column.key) for column in _SUMS]
        tokens = func.sum(UsageHour.prompt_tokens + UsageHour.completion_tokens)
        order = [tokens.desc(), *keys] if largest_first else keys
        statement = select(*keys, *sums).where(*_hours(asked)).group_by(*keys).order_by(*order).limit(limit)
        async with self._database.read() as session:
            rows = (await session.execute(statement)).all()
            slugs = await _named(session, select(Tenant.id, Tenant.slug), "tenant_id", rows)
            names = await _key_names(session, rows)
        return [_sum(row, step, slugs, names) for row in rows]

    async def requests(self, asked: Asked, limit: int, after: tuple[datetime, str] | None = None) -> list[UsageEntry]:
        """The newest first. after: when the last one of the page before started, and its id."""
        newest = UsageRow.started_at.desc(), UsageRow.id.desc()
        has_contents = select(UsageContents.id).where(UsageContents.id == UsageRow.id).exists().label("has_contents")
        statement = select(UsageRow, has_contents).where(*_rows(asked)).order_by(*newest).limit(limit)
        if after is not None:
            is_same = and_(UsageRow.started_at == after[0], UsageRow.id < after[1])
            statement = statement.where(or_(UsageRow.started_at < after[0], is_same))
        async with self._database.read() as session:
            found = (await session.execute(statement)).all()
            rows = [row for row, _ in found]
            slugs = await _named(session, select(Tenant.id, Tenant.slug), "tenant_id", rows)
            names = await _key_names(session, rows)
        return [_entry(row, kept, slugs, names) for row, kept in found]

    async def request(self, tenant_id: str | None, record_id: str) -> UsageEntry | None:
        """One request by its own id. None: there is no such one of this tenant."""
        has_contents = select(UsageContents.id).where(UsageContents.id == UsageRow.id).exists()
        statement = select(UsageRow, has_contents).where(UsageRow.id == record_id)
        if tenant_id is not None:
            statement = statement.where(UsageRow.tenant_id == tenant_id)
        async with self._database.read() as session:
            found = (await session.execute(statement)).first()
            if found is None:
                return None
            slugs = await _named(session, select(Tenant.id, Tenant.slug), "tenant_id", [found[0]])
            names = await _key_names(session, [found[0]])
        return _entry(found[0], found[1], slugs, names)

    async def every_request(self, asked: Asked) -> AsyncIterator[list[UsageEntry]]:
        """All of them, a page at a time, the newest first."""
        after = None
        while page := await self.requests(asked, EXPORT_PAGE, after):
            yield page
            after = page[-1].started_at, page[-1].id

    async def contents(self, tenant_id: str | None, record_id: str) -> tuple[str, str] | None:
        """What a request asked and was answered. None: nothing is kept of it."""
        kept = select(UsageContents.request, UsageContents.answer).where(*_contents(tenant_id, record_id))
        async with self._database.read() as session:
            return (await session.execute(kept)).first()

    async def delete_contents(self, tenant_id: str | None, record_id: str, *, by: Actor = SERVER) -> bool:
        """Whether there were any."""
        deleted = delete(UsageContents).where(*_contents(tenant_id, record_id)).returning(UsageContents.tenant_id)
        async with self._database.transaction() as session:
            whose = await session.scalar(deleted)
            if whose is not None:
                await record(session, by, "contents.delete", f"requests/{record_id}", tenant_id=whose)
            return whose is not None

    async def delete_all_contents(self, tenant_id: str, *, by: Actor = SERVER) -> int:
        """How many there were."""
        deleted = delete(UsageContents).where(UsageContents.tenant_id == tenant_id).returning(UsageContents.id)
        async with self._database.transaction() as session:
            count = len((await session.execute(deleted)).all())
            if count:
                before = {"requests": count}
                await record(session, by, "contents.delete", "requests", tenant_id=tenant_id, before=before)
            return count


def _moment(step: Step) -> ColumnElement[int] | None:
    """Hours or days since 1970."""
    return {"hour": UsageHour.hour.expression, "day": UsageHour.hour // 24, "all": None}[step]


def _hours(asked: Asked) -> list[ColumnElement[bool]]:
    last = int(asked.end.timestamp() - 1) // HOUR_SECONDS
    wanted: list[ColumnElement[bool]] = [UsageHour.hour.between(int(asked.start.timestamp()) // HOUR_SECONDS, last)]
    if asked.errors:
        wanted.append(UsageHour.errors > 0)
    return wanted + _filters(asked, UsageHour)


def _rows(asked: Asked) -> list[ColumnElement[bool]]:
    wanted: list[ColumnElement[bool]] = [UsageRow.started_at >= asked.start, UsageRow.started_at < asked.end]
    if asked.errors:
        wanted.append(or_(UsageRow.status >= 400, UsageRow.finish_reason.in_(("error", "server_lost"))))
    return wanted + _filters(asked, UsageRow)


def _filters(asked: Asked, table: type[UsageHour] | type[UsageRow]) -> list[ColumnElement[bool]]:
    columns = {
        table.tenant_id: asked.tenant_id,
        table.key_id: asked.key_id,
        table.adapter: asked.adapter,
        table.endpoint: asked.endpoint,
    }
    return [column == value for column, value in columns.items() if value is not None]


def _contents(tenant_id: str | None, record_id: str) -> list[ColumnElement[bool]]:
    wanted = [UsageContents.id == record_id, UsageContents.expires_at > datetime.now(UTC)]
    return wanted if tenant_id is None else [*wanted, UsageContents.tenant_id == tenant_id]


async def _named(session: Any, names: Select[str, str], column: str, rows: Sequence[Any]) -> dict[str, str]:
    """Id to name, of those that the rows have in a column."""
    ids = {getattr(row, column, None) for row in rows} - {None}
    key = names.selected_columns[0]
    return dict((await session.execute(names.where(key.in_(ids)))).all()) if ids else {}


async def _key_names(session: Any, rows: Sequence[Any]) -> dict[str, str]:
    """Of keys, and of the accounts whose people asked from our pages."""
    keys = await _named(session, select(ApiKey.id, ApiKey.name), "key_id", rows)
    return keys | await _named(session, select(Account.id, Account.login), "key_id", rows)


def _sum(row: Row[Any], step: Step, slugs: dict[str, str], names: dict[str, str]) -> UsageSum:
    found = row._mapping
    seconds = {"hour": HOUR_SECONDS, "day": 24 * HOUR_SECONDS, "all": 0}[step]
    return UsageSum(
        start=datetime.fromtimestamp(found["moment"] * seconds, UTC) if seconds else None,
        tenant=slugs.get(found["tenant_id"]) if "tenant_id" in found else None,
        key=found.get("key_id"),
        key_name=names.get(found.get("key_id", "")),
        adapter=found.get("adapter"),
        version=found.get("version"),
        digest=found.get("digest"),
        endpoint=found.get("endpoint"),
        currency=found["currency"],
        **{column.key: int(found[column.key]) for column in _SUMS},
    )


def _entry(row: UsageRow, has_contents: bool, slugs: dict[str, str], names: dict[str, str]) -> UsageEntry:
    return UsageEntry(
        id=row.id,
        request_id=row.request_id,
        server_id=row.server_id,
        started_at=row.started_at,
        tenant=slugs.get(row.tenant_id),
        key=row.key_id,
        key_name=names.get(row.key_id),
        endpoint=row.endpoint,
        asked=row.asked,
        model=row.model,
        adapter=row.adapter,
        version=row.version,
        digest=row.digest,
        choices=row.choices,
        prompt_tokens=row.prompt_tokens,
        cached_tokens=row.cached_tokens,
        completion_tokens=row.completion_tokens,
        queue_ms=row.queue_ms,
        load_ms=row.load_ms,
        ttft_ms=row.ttft_ms,
        total_ms=row.total_ms,
        finish_reason=row.finish_reason,
        status=row.status,
        cost_micros=row.cost_micros,
        currency=row.currency,
        has_contents=has_contents,
    )

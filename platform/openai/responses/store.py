"""Stored responses as rows: whose they are, what they went on from, and until when.

Input and output are JSON that nobody here reads. Knows no wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import ColumnElement, delete, func, literal, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from loraplex.adapters.audit import SERVER, Actor, record
from loraplex.adapters.database import Database
from loraplex.adapters.lookup import lock_tenant
from loraplex.adapters.schema import now
from loraplex.platform.schema import StoredResponse

MAX_CHAIN = 1000
"""Responses that one conversation goes back to."""

ROOM_STEP = 1000
"""Responses that are looked at at a time to see which make room."""


@dataclass(frozen=True, slots=True)
class ResponseLimits:
    """Of one tenant: its responses and the sum of their sizes. lifetime: of each, from when it was last gone on from.
    conversation_bytes: of the input and output of all responses of one conversation."""

    max_responses: int
    max_bytes: int
    lifetime: timedelta
    conversation_bytes: int


@dataclass(frozen=True, slots=True)
class Turn:
    """What a stored response was asked and said: items, as JSON."""

    id: str
    input: bytes
    output: bytes


class ResponseNotFound(Exception):
    """No such response for this caller. Absent, foreign, deleted and expired read the same. `field`: that named it."""

    def __init__(self, message: str, code: str = "response_not_found", field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.field = field


class ConversationTooLong(Exception):
    """The conversation has more responses or bytes than one may be gone on from. `field`: that named it."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


class ResponseStore:
    """Each method is one transaction. Nothing is found of a response that has expired."""

    def __init__(self, database: Database, limits: ResponseLimits) -> None:
        self._database = database
        self._limits = limits

    async def keep(self, tenant_id: str, turn: Turn, head: bytes, earlier: Sequence[str] = ()) -> None:
        """Store a response. The tenant's oldest go where it has too many or too large ones.

        head: the response without its output. earlier: the conversation that it goes on from, which from now on is kept
        as long as it; the last is what it names.
        """
        size_bytes = len(turn.input) + len(turn.output) + len(head)
        created_at = now()
        expires_at = created_at + self._limits.lifetime
        async with self._database.transaction() as session:
            await lock_tenant(session, tenant_id)
            session.add(
                StoredResponse(
                    id=turn.id,
                    tenant_id=tenant_id,
                    previous_id=earlier[-1] if earlier else None,
                    created_at=created_at,
                    expires_at=expires_at,
                    size_bytes=size_bytes,
                    head=head,
                    input=turn.input,
                    output=turn.output,
                )
            )
            await session.flush()
            if earlier:
                kept = StoredResponse.tenant_id == tenant_id, StoredResponse.id.in_(earlier)
                await session.execute(update(StoredResponse).where(*kept).values(expires_at=expires_at))
            await self._make_room(session, tenant_id, turn.id)

    async def _make_room(self, session: AsyncSession, tenant_id: str, newest_id: str) -> None:
        """The index has all that this reads, and of the oldest no more is read than goes, or ROOM_STEP."""
        totals = select(func.count(), func.sum(StoredResponse.size_bytes)).where(StoredResponse.tenant_id == tenant_id)
        order = StoredResponse.created_at, StoredResponse.id
        columns = StoredResponse.id, StoredResponse.size_bytes
        others = StoredResponse.tenant_id == tenant_id, StoredResponse.id != newest_id
        oldest = select(*columns).where(*others).order_by(*order).limit(ROOM_STEP)
        while True:
            count, total_bytes = (await session.execute(totals)).one()
            surplus, surplus_bytes = count - self._limits.max_responses, total_bytes - self._limits.max_bytes
            if count == 1 or (surplus <= 0 and surplus_bytes <= 0):
                return
            going: list[str] = []
            for response_id, size_bytes in await session.execute(oldest):
                if len(going) >= surplus and surplus_bytes <= 0:
                    break
                going.append(response_id)
                surplus_bytes -= size_bytes
            await session.execute(delete(StoredResponse).where(StoredResponse.id.in_(going)))

    async def get(self, tenant_id: str, response_id: str) -> StoredResponse:
        """Raises ResponseNotFound."""
        async with self._database.read() as session:
            found = await session.scalar(
                select(StoredResponse).where(StoredResponse.id == response_id, *_is_of(tenant_id))
            )
        if found is None:
            raise _not_found(response_id)
        return found

    async def delete(self, tenant_id: str, response_id: str, *, by: Actor = SERVER) -> None:
        """Raises ResponseNotFound."""
        async with self._database.transaction() as session:
            deleted = delete(StoredResponse).where(StoredResponse.id == response_id, *_is_of(tenant_id))
            if not (await session.execute(deleted.returning(StoredResponse.id))).all():
                raise _not_found(response_id)
            await record(session, by, "response.delete", f"responses/{response_id}", tenant_id=tenant_id)

    async def conversation(self, tenant_id: str, last_id: str) -> list[Turn]:
        """The responses up to this one, the first first. Raises ResponseNotFound, where an earlier one is gone as well;
        ConversationTooLong."""
        async with self._database.read() as session:
            ids, is_whole, size_bytes = await _chain(session, tenant_id, last_id)
            if not ids:
                raise _no_previous(last_id)
            if not is_whole:
                raise _no_previous(last_id, " with all that it goes on from: an earlier one was deleted")
            if len(ids) > MAX_CHAIN or size_bytes > self._limits.conversation_bytes:
                raise ConversationTooLong(
                    f"This conversation has {len(ids)} responses and {size_bytes} bytes; {MAX_CHAIN} and "
                    f"{self._limits.conversation_bytes} are the most that a request goes on from. Begin a new one.",
                    "previous_response_id",
                )
            return await _turns(session, tenant_id, ids)

    async def remaining(self, tenant_id: str, last_id: str) -> list[Turn]:
        """The same, without what was deleted of it and came before that. Raises ResponseNotFound for the last alone."""
        async with self._database.read() as session:
            ids, _, _ = await _chain(session, tenant_id, last_id)
            if not ids:
                raise _not_found(last_id)
            return await _turns(session, tenant_id, ids)

    async def turns(self, tenant_id: str, response_ids: Sequence[str]) -> list[Turn]:
        """Those of these that there are, in their order. Raises ConversationTooLong."""
        wanted = StoredResponse.id.in_(response_ids), *_is_of(tenant_id)
        async with self._database.read() as session:
            size_bytes = await session.scalar(select(func.sum(_TURN_BYTES)).where(*wanted)) or 0
            if size_bytes > self._limits.conversation_bytes:
                most = self._limits.conversation_bytes
                message = (
                    f"Items are referred to in responses of {size_bytes} bytes, at most {most} are read; send them."
                )
                raise ConversationTooLong(message, "input")
            return await _turns(session, tenant_id, response_ids)

    async def drop_expired(self) -> None:
        """Forget the responses whose time is up."""
        async with self._database.transaction() as session:
            await session.execute(delete(StoredResponse).where(StoredResponse.expires_at <= now()))


_TURN_BYTES = func.length(StoredResponse.input) + func.length(StoredResponse.output)


async def _chain(session: AsyncSession, tenant_id: str, last_id: str) -> tuple[list[str], bool, int]:
    """Ids of a conversation up to a response, the first first, none for none; whether it is whole or longer than may
    be; and its size."""
    columns = StoredResponse.id, StoredResponse.previous_id, _TURN_BYTES.label("turn_bytes")
    last = select(*columns, literal(1).label("place")).where(StoredResponse.id == last_id, *_is_of(tenant_id))
    chain = last.cte("chain", recursive=True)
    is_before = StoredResponse.id == chain.c.previous_id, chain.c.place <= MAX_CHAIN
    chain = chain.union_all(select(*columns, chain.c.place + 1).where(*is_before, *_is_of(tenant_id)))
    rows = (await session.execute(select(chain).order_by(chain.c.place.desc()))).all()
    is_whole = bool(rows) and (rows[0].previous_id is None or len(rows) > MAX_CHAIN)
    return [row.id for row in rows], is_whole, sum(row.turn_bytes for row in rows)


async def _turns(session: AsyncSession, tenant_id: str, ids: Sequence[str]) -> list[Turn]:
    columns = select(StoredResponse.id, StoredResponse.input, StoredResponse.output)
    rows = await session.execute(columns.where(StoredResponse.id.in_(ids), *_is_of(tenant_id)))
    found = {row.id: Turn(row.id, row.input, row.output) for row in rows}
    return [found[response_id] for response_id in ids if response_id in found]


def _is_of(tenant_id: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return StoredResponse.tenant_id == tenant_id, StoredResponse.expires_at > now()


def _not_found(response_id: str) -> ResponseNotFound:
    return ResponseNotFound(f"Response with id '{ascii(response_id)[1:-1][:60]}' not found.")


def _no_previous(response_id: str, what: str = "") -> ResponseNotFound:
    message = f"Previous response with id '{ascii(response_id)[1:-1][:60]}' not found{what}."
    return ResponseNotFound(message, "previous_response_not_found", "previous_response_id")

"""Names that clients gave to requests (Idempotency-Key), so that a request sent twice is done once.

A name belongs to the API key that sent it, and to one request. What failed has made nothing: its name is free again.
So is, after IN_FLIGHT, that of a request whose server died at work. Knows rows and answers as bytes; knows no HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.exc import IntegrityError

from loraplex.adapters.database import Database
from loraplex.adapters.schema import now
from loraplex.platform.schema import IdempotencyKey

KEPT = timedelta(hours=24)
"""How long an answer is kept."""

IN_FLIGHT = timedelta(minutes=5)
"""Longer than any request is at work once it has been received."""

MAX_KEPT = 1000
"""Names of one API key."""


class IdempotencyKeyReused(Exception):
    """The name is another request's."""


class IdempotencyKeyInUse(Exception):
    """The request of that name is still at work."""


class TooManyIdempotencyKeys(Exception):
    """There is no room for one more name."""


@dataclass(frozen=True, slots=True)
class NamedRequest:
    """sha256: of all that makes two requests the same."""

    api_key_id: str
    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    status: int
    body: bytes


class IdempotencyKeys:
    """Each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, request: NamedRequest) -> KeptAnswer | None:
        """The answer from before. None: the request is ours to be done, and then to be kept or released.

        Raises IdempotencyKeyReused, IdempotencyKeyInUse, TooManyIdempotencyKeys.
        """
        try:
            async with self._database.transaction() as session:
                await session.execute(delete(IdempotencyKey).where(*_is(request), IdempotencyKey.expires_at <= now()))
                known = await session.get(IdempotencyKey, (request.api_key_id, request.name))
                if known is not None:
                    return _answer(known, request)
                kept = IdempotencyKey.api_key_id == request.api_key_id, IdempotencyKey.expires_at > now()
                if (await session.scalar(select(func.count()).where(*kept)) or 0) >= MAX_KEPT:
                    raise TooManyIdempotencyKeys(f"Idempotency-Key: {MAX_KEPT} are remembered, the most; send none")
                claim = IdempotencyKey(api_key_id=request.api_key_id, name=request.name, request_sha256=request.sha256)
                claim.expires_at = now() + IN_FLIGHT
                session.add(claim)
        except IntegrityError:
            raise _in_use() from None  # the same name at the same moment
        return None

    async def keep(self, request: NamedRequest, answer: KeptAnswer) -> None:
        """What the request is answered from now on."""
        kept = {"status": answer.status, "body": answer.body, "expires_at": now() + KEPT}
        async with self._database.transaction() as session:
            await session.execute(update(IdempotencyKey).where(*_is_claim(request)).values(kept))

    async def release(self, request: NamedRequest) -> None:
        """Nothing was made: the name is free."""
        async with self._database.transaction() as session:
            await session.execute(delete(IdempotencyKey).where(*_is_claim(request)))

    async def drop_expired(self) -> None:
        """Forget the names whose time is up."""
        async with self._database.transaction() as session:
            await session.execute(delete(IdempotencyKey).where(IdempotencyKey.expires_at <= now()))


def _is(request: NamedRequest) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return IdempotencyKey.api_key_id == request.api_key_id, IdempotencyKey.name == request.name


def _is_claim(request: NamedRequest) -> tuple[ColumnElement[bool], ...]:
    """Not what another request put there when our time was up."""
    return *_is(request), IdempotencyKey.request_sha256 == request.sha256, IdempotencyKey.status.is_(None)


def _answer(known: IdempotencyKey, request: NamedRequest) -> KeptAnswer:
    if known.request_sha256 != request.sha256:
        raise IdempotencyKeyReused("Idempotency-Key: it was sent with another request; choose a new one for each")
    if known.status is None or known.body is None:
        raise _in_use()
    return KeptAnswer(known.status, known.body)


def _in_use() -> IdempotencyKeyInUse:
    return IdempotencyKeyInUse("Idempotency-Key: its request is still at work; send it again later for its answer")

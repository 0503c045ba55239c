"""What the aliases of an adapter stand for, how that changes, and what it was before.

Knows rows. A move is one transaction with its place in the alias's history; a request that was resolved before it keeps
its version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from loraplex.adapters.audit import SERVER, Actor, Facts, record
from loraplex.adapters.changes import names_of, record_change
from loraplex.adapters.database import Database
from loraplex.adapters.errors import AliasMoved, NothingToRestore, VersionNotFound, VersionNotReady
from loraplex.adapters.lookup import AliasInfo, find_adapter, lock_adapter, no_version, not_ready
from loraplex.adapters.names import check_alias, version_number
from loraplex.adapters.schema import Adapter, AdapterVersion, Alias, AliasMove, AliasTarget, now

MAX_HISTORY = 100
"""Moves of an alias that are remembered."""

ABSENT = 0
"""The revision of an alias, or of anything else with revisions, that does not exist."""


@dataclass(frozen=True, slots=True)
class MoveInfo:
    """One move of an alias. `split`: version number -> weight; empty: it was deleted. `restores`: a rollback's goal."""

    revision: int
    split: dict[int, int]
    restores: int | None
    moved_at: datetime
    moved_by: str | None


class AdapterAliases:
    """Each method is one transaction.

    `expected`: the revision that the alias must be at, ABSENT: it must not exist; else AliasMoved is raised and nothing
    changes.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, tenant_id: str, name: str, alias: str) -> AliasInfo:
        """Raises AdapterNotFound; VersionNotFound where the adapter has no such alias."""
        async with self._database.read() as session:
            return await _find(session, tenant_id, name, alias)

    async def move(
        self,
        tenant_id: str,
        name: str,
        alias: str,
        split: Mapping[int, int],
        *,
        expected: int | None = None,
        by: Actor = SERVER,
    ) -> AliasInfo:
        """Let the alias, new or not, stand for these versions: number -> weight.

        Raises InvalidName, AdapterNotFound, VersionNotFound, VersionNotReady, AliasMoved.
        """
        check_alias(alias)
        async with self._database.transaction() as session:
            adapter = await lock_adapter(session, tenant_id, name)
            await _require_revision(session, adapter, alias, expected)
            before = await _facts(session, adapter, alias)
            await _point(session, adapter, alias, split, moved_by=by.id)
            await record_change(session, names_of(tenant_id, name))
            await _record(session, by, "alias.move", adapter, alias, before)
            return await _find(session, tenant_id, name, alias)

    async def roll_back(
        self,
        tenant_id: str,
        name: str,
        alias: str,
        *,
        to: int | None = None,
        expected: int | None = None,
        by: Actor = SERVER,
    ) -> AliasInfo:
        """Let the alias stand for what it stood for at the revision `to`; by default at the one before its last move.

        A rollback counts as being at the revision that it restored, so that each further one goes one further back.
        Raises AdapterNotFound, AliasMoved, NothingToRestore; VersionNotReady where a version of it was taken out.
        """
        async with self._database.transaction() as session:
            adapter = await lock_adapter(session, tenant_id, name)
            await _require_revision(session, adapter, alias, expected)
            moves = await _moves(session, adapter.id, alias)
            goal = _goal(moves, to)
            if goal is None:
                wanted = "earlier revision" if to is None else f"revision {to}"
                raise NothingToRestore(f'alias: {ascii(alias)[:70]} of "{name}" has no {wanted} to go back to')
            restores = goal.restores or goal.revision
            before = await _facts(session, adapter, alias)
            try:
                await _point(session, adapter, alias, _numbers(goal.split), restores=restores, moved_by=by.id)
            except VersionNotFound as error:
                raise NothingToRestore(f"{error}, which revision {goal.revision} of the alias stood for") from error
            await record_change(session, names_of(tenant_id, name))
            await _record(session, by, "alias.roll_back", adapter, alias, before)
            return await _find(session, tenant_id, name, alias)

    async def delete(
        self, tenant_id: str, name: str, alias: str, *, expected: int | None = None, by: Actor = SERVER
    ) -> None:
        """Raises AdapterNotFound, AliasMoved; VersionNotFound where the adapter has no such alias."""
        async with self._database.transaction() as session:
            adapter = await lock_adapter(session, tenant_id, name)
            await _require_revision(session, adapter, alias, expected)
            if await session.get(Alias, (adapter.id, alias)) is None:
                raise VersionNotFound(_no_alias(name, alias))
            revision, before = await _next_revision(session, adapter, alias), await _facts(session, adapter, alias)
            await _clear(session, adapter, alias)
            await session.execute(delete(Alias).where(Alias.adapter_id == adapter.id, Alias.name == alias))
            session.add(AliasMove(adapter_id=adapter.id, alias=alias, revision=revision, split={}, moved_by=by.id))
            await record_change(session, names_of(tenant_id, name))
            await _record(session, by, "alias.delete", adapter, alias, before)

    async def history(self, tenant_id: str, name: str, alias: str) -> list[MoveInfo]:
        """The last MAX_HISTORY moves, newest first; none of an alias that never was. Raises AdapterNotFound."""
        async with self._database.read() as session:
            adapter = await find_adapter(session, tenant_id, name)
            return [
                MoveInfo(move.revision, _numbers(move.split), move.restores, move.moved_at, move.moved_by)
                for move in await _moves(session, adapter.id, alias)
            ]


async def _find(session: AsyncSession, tenant_id: str, name: str, alias: str) -> AliasInfo:
    found = (await find_adapter(session, tenant_id, name)).aliases.get(alias)
    if found is None:
        raise VersionNotFound(_no_alias(name, alias))
    return found


async def _facts(session: AsyncSession, adapter: Adapter, alias: str) -> Facts | None:
    """What the audit log says of an alias: what it stands for; None where there is no such alias."""
    moves = select(AliasMove).where(AliasMove.adapter_id == adapter.id, AliasMove.alias == alias)
    move = await session.scalar(moves.order_by(AliasMove.revision.desc()).limit(1))
    return {"revision": move.revision, "split": move.split} if move is not None and move.split else None


async def _record(
    session: AsyncSession, by: Actor, action: str, adapter: Adapter, alias: str, before: Facts | None
) -> None:
    where, after = f"adapters/{adapter.name}@{alias}", await _facts(session, adapter, alias)
    await record(session, by, action, where, tenant_id=adapter.tenant_id, before=before, after=after)


async def _require_revision(session: AsyncSession, adapter: Adapter, alias: str, expected: int | None) -> None:
    if expected is None:
        return
    row = await session.get(Alias, (adapter.id, alias))
    revision = ABSENT if row is None else row.revision
    if revision != expected:
        stands = "does not exist" if revision == ABSENT else f"is at revision {revision}"
        raise AliasMoved(f"alias: {ascii(alias)[:70]} {stands} by now; look at it and decide again")


async def _point(
    session: AsyncSession,
    adapter: Adapter,
    alias: str,
    split: Mapping[int, int],
    *,
    restores: int | None = None,
    moved_by: str | None,
) -> None:
    """Write the alias, its targets and the move; forget moves beyond MAX_HISTORY."""
    version_ids = await _version_ids(session, adapter, split)
    revision, moved_at = await _next_revision(session, adapter, alias), now()
    await session.merge(Alias(adapter_id=adapter.id, name=alias, revision=revision, updated_at=moved_at))
    await _clear(session, adapter, alias)
    for number, weight in split.items():
        session.add(AliasTarget(adapter_id=adapter.id, alias=alias, version_id=version_ids[number], weight=weight))
    session.add(
        AliasMove(
            adapter_id=adapter.id,
            alias=alias,
            revision=revision,
            split={str(number): weight for number, weight in split.items()},
            restores=restores,
            moved_at=moved_at,
            moved_by=moved_by,
        )
    )
    old = AliasMove.adapter_id == adapter.id, AliasMove.alias == alias, AliasMove.revision <= revision - MAX_HISTORY
    await session.execute(delete(AliasMove).where(*old))
    await session.flush()


async def _clear(session: AsyncSession, adapter: Adapter, alias: str) -> None:
    await session.flush()
    await session.execute(delete(AliasTarget).where(AliasTarget.adapter_id == adapter.id, AliasTarget.alias == alias))


async def _version_ids(session: AsyncSession, adapter: Adapter, split: Mapping[int, int]) -> dict[int, str]:
    storable = [number for number in split if version_number(str(number)) is not None]
    wanted = AdapterVersion.adapter_id == adapter.id, AdapterVersion.number.in_(storable)
    found = {version.number: version for version in await session.scalars(select(AdapterVersion).where(*wanted))}
    if missing := split.keys() - found.keys():
        raise VersionNotFound(no_version(adapter.name, min(missing)))
    for number, version in found.items():
        if version.state != "ready":
            raise VersionNotReady(not_ready(adapter.name, number, version.state, version.state_reason))
    return {number: version.id for number, version in found.items()}


async def _moves(session: AsyncSession, adapter_id: str, alias: str) -> list[AliasMove]:
    """Newest first."""
    wanted = select(AliasMove).where(AliasMove.adapter_id == adapter_id, AliasMove.alias == alias)
    return list(await session.scalars(wanted.order_by(AliasMove.revision.desc())))


async def _next_revision(session: AsyncSession, adapter: Adapter, alias: str) -> int:
    wanted = AliasMove.adapter_id == adapter.id, AliasMove.alias == alias
    return (await session.scalar(select(func.max(AliasMove.revision)).where(*wanted)) or ABSENT) + 1


def _goal(moves: list[AliasMove], to: int | None) -> AliasMove | None:
    """What a rollback to that revision restores: by default the newest one before the one that counts now."""
    if not moves:
        return None
    if to is not None:
        return next((move for move in moves if move.revision == to and move.split), None)
    now_at = moves[0].restores or moves[0].revision
    return next((move for move in moves if move.revision < now_at and move.split), None)


def _numbers(split: Mapping[str, int]) -> dict[int, int]:
    return {int(number): weight for number, weight in split.items()}


def _no_alias(name: str, alias: str) -> str:
    return f'alias: "{name}" has no alias {ascii(alias)[:70]}'

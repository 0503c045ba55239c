"""Versions that are taken out of service, and let back in.

Knows rows. What is bad is the bytes: it is all versions that have them, whoever they belong to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import undefer

from loraplex.adapters.audit import SERVER, Actor, Facts, record
from loraplex.adapters.changes import names_of, record_change, release_of
from loraplex.adapters.database import Database
from loraplex.adapters.errors import VersionNotFound
from loraplex.adapters.lookup import VersionInfo, VersionState, select_all_versions, version_infos
from loraplex.adapters.names import check_text
from loraplex.adapters.publication import of_checks
from loraplex.adapters.schema import Adapter, AdapterVersion
from loraplex.adapters.types import is_digest

MAX_REASON_LENGTH = 500


class Quarantine:
    """Each method is one transaction, returns the versions that it changed, and raises VersionNotFound if there are
    none; InvalidName for a reason that is not a text of up to MAX_REASON_LENGTH characters."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(
        self, digest: str, reason: str, *, only_ready: bool = False, by: Actor = SERVER
    ) -> list[VersionInfo]:
        """From now on no name stands for a version with these bytes; requests that run keep it.

        only_ready: leave alone what does not serve anyway.
        """
        states: list[VersionState] = ["ready"] if only_ready else ["validating", "ready", "rejected", "quarantined"]
        async with self._database.transaction() as session:
            versions = await _locked(session, digest, states)
            before = _states(versions)
            moved = await _moved(session, versions, "quarantined", reason)
            await _record(session, by, "version.quarantine", before, moved)
            return moved

    async def end(self, digest: str, reason: str, *, by: Actor = SERVER) -> list[VersionInfo]:
        """They are validated anew before they serve. Raises VersionNotFound where none is quarantined."""
        async with self._database.transaction() as session:
            versions = await _locked(session, digest, ["quarantined"])
            before = _states(versions)
            for version in versions:
                version.report = of_checks(version.report)
            released = await _moved(session, versions, "validating", reason)
            await record_change(session, release_of(digest))
            await _record(session, by, "version.release", before, released)
            return released


async def _locked(session: AsyncSession, digest: str, states: Sequence[VersionState]) -> list[AdapterVersion]:
    """The versions with these bytes in one of these states. Their adapters are locked, in one order for everybody."""
    if not is_digest(digest):
        return []
    owners = select(AdapterVersion.adapter_id).where(AdapterVersion.digest == digest)
    await session.execute(select(Adapter.id).where(Adapter.id.in_(owners)).order_by(Adapter.id).with_for_update())
    wanted = select(AdapterVersion).where(AdapterVersion.digest == digest, AdapterVersion.state.in_(states))
    return list(await session.scalars(wanted.options(undefer(AdapterVersion.report))))


async def _moved(
    session: AsyncSession, versions: Sequence[AdapterVersion], state: VersionState, reason: str
) -> list[VersionInfo]:
    check_text(reason, "reason", MAX_REASON_LENGTH)
    if not versions:
        raise VersionNotFound("digest: no version with these bytes is in a state for that")
    for version in versions:
        version.state, version.state_reason = state, reason
    await session.flush()
    wanted = select_all_versions().where(AdapterVersion.id.in_([version.id for version in versions]))
    moved = await version_infos(session, wanted)
    for info in moved:
        await record_change(session, names_of(info.tenant_id, info.name))
    return moved


_States = Mapping[tuple[str, int], Facts]
"""By adapter and number."""


def _states(versions: Sequence[AdapterVersion]) -> _States:
    return {(row.adapter_id, row.number): {"state": row.state, "reason": row.state_reason} for row in versions}


async def _record(
    session: AsyncSession, by: Actor, action: str, before: _States, versions: Sequence[VersionInfo]
) -> None:
    for version in versions:
        await record(
            session,
            by,
            action,
            f"adapters/{version.name}@{version.number}",
            tenant_id=version.tenant_id,
            before=before[version.adapter_id, version.number],
            after={"state": version.state, "reason": version.state_reason},
        )

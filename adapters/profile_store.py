"""The serving profiles of versions, as rows: read, set, taken away.

A change is one transaction that other servers learn of. Knows rows; knows no template's meaning and no cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import undefer

from loraplex.adapters.aliases import ABSENT
from loraplex.adapters.audit import SERVER, Actor, Facts, record
from loraplex.adapters.changes import names_of, record_change
from loraplex.adapters.database import Database
from loraplex.adapters.errors import ProfileChanged, VersionNotFound
from loraplex.adapters.lookup import find_adapter, is_adapter, lock_adapter, no_version
from loraplex.adapters.names import version_number
from loraplex.adapters.profile import DEFAULT_PROFILE, ServingProfile
from loraplex.adapters.schema import Adapter, AdapterVersion

Change = Callable[[ServingProfile | None], ServingProfile | None]
"""From the profile as it is to what it becomes; None: there is none. Called inside of the transaction."""


@dataclass(frozen=True, slots=True)
class ProfileInfo:
    """The profile of a version, if it has one. Every change raises `revision`; without a profile it is ABSENT."""

    profile: ServingProfile | None
    revision: int


class ProfileStore:
    """Each method is one transaction. All raise AdapterNotFound, and VersionNotFound where there is no such version."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, tenant_id: str, name: str, number: int) -> ProfileInfo:
        async with self._database.read() as session:
            return _info(await _find(session, tenant_id, name, number))

    async def change(
        self,
        tenant_id: str,
        name: str,
        number: int,
        change: Change,
        *,
        expected: int | None = None,
        by: Actor = SERVER,
    ) -> ProfileInfo:
        """The profile after the change. expected: the revision that it must be at; else ProfileChanged is raised."""
        async with self._database.transaction() as session:
            await lock_adapter(session, tenant_id, name)
            version = await _find(session, tenant_id, name, number)
            before = _info(version)
            if expected is not None and before.revision != expected:
                stands = "does not exist" if before.profile is None else f"is at revision {before.revision}"
                raise ProfileChanged(f"profile: that of version {number} {stands} by now; look at it and decide again")
            _write(version, change(before.profile))
            await session.flush()
            await record_change(session, names_of(tenant_id, name))
            changed = _info(version)
            action = "profile.clear" if changed.profile is None else "profile.set"
            told = {"before": _facts(before.profile), "after": _facts(changed.profile)}
            await record(session, by, action, f"adapters/{name}@{number}", tenant_id=tenant_id, **told)
            return changed


def set_template(version: AdapterVersion, chat_template: str) -> bool:
    """Give a row, whose column `profile` was asked for, this chat template; whether that changed its profile."""
    before = _profile(version)
    after = msgspec.structs.replace(before or DEFAULT_PROFILE, chat_template=chat_template)
    if after != before:
        _write(version, after)
    return after != before


def template_of(version: AdapterVersion) -> str | None:
    """The chat template in the profile of a row whose column `profile` was asked for."""
    profile = _profile(version)
    return None if profile is None else profile.chat_template


def _facts(profile: ServingProfile | None) -> Facts | None:
    """Of what a tenant wrote for its prompts the audit log, which is kept for ever, has digests alone."""
    if profile is None:
        return None
    facts = {name: value for name, value in msgspec.to_builtins(profile).items() if value is not None}
    for name in ("chat_template", "system_prompt"):
        if name in facts:
            facts[name] = {"sha256": sha256(facts[name].encode(errors="replace")).hexdigest()}
    return facts


def _profile(version: AdapterVersion) -> ServingProfile | None:
    return None if version.profile is None else msgspec.convert(version.profile, ServingProfile)


def _write(version: AdapterVersion, profile: ServingProfile | None) -> None:
    version.profile = None if profile is None else msgspec.to_builtins(profile)
    version.profile_digest = None if profile is None else profile.digest
    version.profile_revision = (version.profile_revision or ABSENT) + 1


async def _find(session: AsyncSession, tenant_id: str, name: str, number: int) -> AdapterVersion:
    wanted = *is_adapter(tenant_id, name), AdapterVersion.number == version_number(str(number))
    versions = select(AdapterVersion).join(Adapter, Adapter.id == AdapterVersion.adapter_id).where(*wanted)
    version = await session.scalar(versions.options(undefer(AdapterVersion.profile)))
    if version is None:
        await find_adapter(session, tenant_id, name)
        raise VersionNotFound(no_version(name, number))
    return version


def _info(version: AdapterVersion) -> ProfileInfo:
    profile = _profile(version)
    return ProfileInfo(profile, ABSENT if profile is None else version.profile_revision)

"""Which adapters there are, their versions, and what a name stands for now. Aliases are moved in `aliases`.

Knows rows. Knows no file, no HTTP and no tensor. Everything that a call returns is a fact that no later call changes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import String, cast, delete, func, select, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import undefer

from loraplex.adapters import audit
from loraplex.adapters.audit import SERVER, Actor
from loraplex.adapters.changes import deletion_of, names_of, record_change
from loraplex.adapters.database import Database
from loraplex.adapters.errors import (
    AdapterExists,
    AdapterNotFound,
    BaseModelUnknown,
    InvalidName,
    VersionInUse,
    VersionNotFound,
)
from loraplex.adapters.lookup import (
    AdapterInfo,
    Target,
    VersionInfo,
    VersionState,
    adapter_info,
    find_adapter,
    find_targets,
    first_version,
    is_adapter,
    lock_adapter,
    no_version,
    select_adapters,
    select_all_versions,
    select_versions,
    tenants,
    version_infos,
)
from loraplex.adapters.names import check_slug, check_text, version_number
from loraplex.adapters.publication import of_checks, select_received, write_version
from loraplex.adapters.quarantine import MAX_REASON_LENGTH
from loraplex.adapters.quotas import (
    QuotaOf,
    check_new_adapter,
    check_new_bytes,
    check_size,
    lock_quota,
    unlimited,
)
from loraplex.adapters.schema import (
    Adapter,
    AdapterPin,
    AdapterVersion,
    Alias,
    AliasMove,
    AliasTarget,
    BaseModel,
    ImportJob,
    Upload,
    now,
    storable,
)

__all__ = ["AdapterInfo", "AdapterRegistry", "Target", "VersionInfo"]

MAX_PAGE = 1000
MAX_DESCRIPTION_LENGTH = 2000
MAX_TOLD_DELETIONS = 1000
"""Of an adapter's versions, those that servers are told to free the memory of; others go when the room is needed."""

Recorder = Callable[[AsyncSession, VersionInfo], Awaitable[None]]
"""Writes down elsewhere that a version is published, in the same transaction: what it raises undoes both."""


class AdapterRegistry:
    """Each method is one transaction. Changes of one adapter wait for each other; those of different ones only where
    they are about the same bytes."""

    def __init__(self, database: Database, quota_of: QuotaOf = unlimited) -> None:
        self._database = database
        self._quota_of = quota_of

    async def create_adapter(
        self, tenant_id: str, name: str, base_model: str, description: str = "", *, by: Actor = SERVER
    ) -> AdapterInfo:
        """A new adapter without versions. Raises InvalidName, BaseModelUnknown, AdapterExists, StorageLimitReached."""
        check_slug(name, "name")
        check_text(description, "description", MAX_DESCRIPTION_LENGTH)
        try:
            async with self._database.transaction() as session:
                base = await session.scalar(select(BaseModel).where(BaseModel.name == base_model))
                if base is None:
                    raise BaseModelUnknown(f"base_model: no base model {ascii(base_model)[:140]} is served here")
                if await session.scalar(select(BaseModel.id).where(BaseModel.name == name)):
                    raise InvalidName("name", f'"{name}" is the name of a base model; choose another')
                await check_new_adapter(session, self._quota_of, tenant_id)
                session.add(Adapter(tenant_id=tenant_id, name=name, base_model_id=base.id, description=description))
                await session.flush()
                after = {"base_model": base_model, "description": description}
                await audit.record(session, by, "adapter.create", f"adapters/{name}", tenant_id=tenant_id, after=after)
                return await find_adapter(session, tenant_id, name)
        except IntegrityError as error:
            raise AdapterExists(f'name: you have an adapter "{name}" already; publish a version of it') from error

    async def get_adapter(self, tenant_id: str, name: str) -> AdapterInfo:
        """Raises AdapterNotFound."""
        async with self._database.read() as session:
            return await find_adapter(session, tenant_id, name)

    async def list_adapters(
        self,
        tenant_id: str | None,
        limit: int = 100,
        after: str | None = None,
        containing: str = "",
        among: Collection[str] | None = None,
    ) -> list[AdapterInfo]:
        """At most `limit` (1 to 1000) adapters of one tenant, or of all, ordered by tenant and name.

        after: `tenant/name` of the last adapter of the page before. containing: part of the names that are wanted.
        among: the names that are wanted; None: all. Raises InvalidName.
        """
        page, last = select_adapters().limit(min(max(limit, 1), MAX_PAGE)), None
        if after is not None:
            tenant, _, name = after.partition("/")
            last = check_slug(tenant, "after"), check_slug(name, "after")
        if tenant_id is None:
            page = page.order_by(tenants.c.slug, Adapter.name)
            page = page if last is None else page.where(tuple_(tenants.c.slug, Adapter.name) > last)
        else:  # by the name alone, as it stands in the index: a deep page costs what the first one does
            page = page.where(Adapter.tenant_id == tenant_id).order_by(Adapter.name)
            page = page if last is None else page.where(Adapter.name > last[1])
        if containing:
            page = page.where(cast(Adapter.name, String).contains(containing, autoescape=True))
        if among is not None:
            page = page.where(Adapter.name.in_(among))
        async with self._database.read() as session:
            return [adapter_info(adapter, slug) for adapter, slug in (await session.execute(page))]

    async def count_versions(self, tenant_id: str | None) -> tuple[int, dict[str, int]]:
        """How many adapters one tenant has, or all have, and how many versions in each state."""
        adapters = select(func.count()).select_from(Adapter)
        states = select(AdapterVersion.state, func.count()).group_by(AdapterVersion.state)
        if tenant_id is not None:
            adapters = adapters.where(Adapter.tenant_id == tenant_id)
            states = states.join(Adapter, Adapter.id == AdapterVersion.adapter_id).where(Adapter.tenant_id == tenant_id)
        async with self._database.read() as session:
            by_state = {state: number for state, number in await session.execute(states)}  # noqa: C416  rows are no pairs
            return await session.scalar(adapters) or 0, by_state

    async def delete_adapter(self, tenant_id: str, name: str, *, by: Actor = SERVER) -> None:
        """Delete it with its versions, their pins, its aliases, imports and uploads. Raises AdapterNotFound."""
        async with self._database.transaction() as session:
            adapter = await lock_adapter(session, tenant_id, name)
            newest = select(AdapterVersion.digest).where(AdapterVersion.adapter_id == adapter.id)
            newest = newest.order_by(AdapterVersion.number.desc()).limit(MAX_TOLD_DELETIONS)
            digests = (await session.scalars(newest)).all()
            before = {"description": adapter.description, "versions": await _numbers(session, adapter.id)}
            for rows in (AdapterPin, AliasTarget, AliasMove, Alias, AdapterVersion, ImportJob, Upload):
                await session.execute(delete(rows).where(rows.adapter_id == adapter.id))
            await session.execute(delete(Adapter).where(Adapter.id == adapter.id))
            await record_change(session, names_of(tenant_id, name), *map(deletion_of, digests))
            await audit.record(session, by, "adapter.delete", f"adapters/{name}", tenant_id=tenant_id, before=before)

    async def publish(
        self,
        tenant_id: str,
        name: str,
        *,
        digest: str,
        size_bytes: int,
        max_rank: int,
        targets: Sequence[str],
        report: Sequence[dict[str, Any]],
        by: Actor = SERVER,
        invocation_tokens: Sequence[int] = (),
        is_additive: bool = True,
        vocab_size: int | None = None,
        chat_template: str | None = None,
        record: Recorder | None = None,
        received_sha256: str | None = None,
    ) -> VersionInfo:
        """The version of these bytes: a new one, numbered one above all that ever were, or the one that has them.

        It is validating, and serves once `settle` has made it ready, unless the tenant serves these bytes already: see
        `publication.write_version`. One that was rejected begins anew. The bytes must be in the blob store already.
        received_sha256: by which `find_received` finds it. chat_template: goes into its profile. Raises
        AdapterNotFound, StorageLimitReached, and what `record` raises.
        """
        new = AdapterVersion(
            digest=digest,
            size_bytes=size_bytes,
            max_rank=max_rank,
            targets=list(targets),
            invocation_tokens=list(invocation_tokens) or None,
            is_additive=is_additive,
            vocab_size=vocab_size,
            report=list(report),
            created_by=by.id,
            received_sha256=received_sha256,
        )
        async with self._database.transaction() as session:
            quota = await lock_quota(session, self._quota_of, tenant_id)
            row, changed, state_before = await write_version(session, tenant_id, name, new, chat_template, quota)
            version = await first_version(session, select_versions(tenant_id, name).where(AdapterVersion.id == row.id))
            assert version is not None, "the transaction has just seen or written it"
            if record is not None:
                await record(session, version)
            if changed:
                await record_change(session, names_of(tenant_id, name))
            if changed or version.state != state_before:
                await _record_published(session, by, state_before, version)
            return version

    async def check_room(self, tenant_id: str, size_bytes: int, digest: str | None = None) -> None:
        """Before weights are stored, or even sent: raises StorageLimitReached where `publish` would, as far as can be
        known. digest: of the version; None where only the size is known, which may be too much in any case."""
        async with self._database.read() as session:
            quota = await self._quota_of(session, tenant_id)
            if digest is None:
                check_size(quota, size_bytes)
            else:
                await check_new_bytes(session, quota, tenant_id, digest=digest, size_bytes=size_bytes)

    async def find_received(self, tenant_id: str, name: str, received_sha256: str) -> VersionInfo | None:
        """The version that files with this `types.received_digest` last became: one of this adapter that is not
        rejected, else a ready one of another adapter of the tenant's on the same base, fit for `publish_again`."""
        async with self._database.read() as session:
            return await first_version(session, select_received(tenant_id, name, received_sha256))

    async def publish_again(
        self, known: VersionInfo, name: str, *, received_sha256: str, chat_template: str | None, by: Actor = SERVER
    ) -> VersionInfo:
        """The bytes of a version as one of another adapter of the same tenant, as `publish` has it. Raises
        AdapterNotFound; VersionNotFound where the known version was deleted meanwhile."""
        return await self.publish(
            known.tenant_id,
            name,
            digest=known.digest,
            size_bytes=known.size_bytes,
            max_rank=known.max_rank,
            targets=known.targets,
            report=of_checks(await self.get_report(known.tenant_id, known.name, known.number)),
            by=by,
            invocation_tokens=known.invocation_tokens,
            is_additive=known.is_additive,
            vocab_size=known.vocab_size,
            chat_template=chat_template,
            received_sha256=received_sha256,
        )

    async def settle(
        self,
        version: VersionInfo,
        state: VersionState,
        *,
        reason: str = "",
        report: Sequence[dict[str, Any]] = (),
    ) -> VersionInfo:
        """End the validation of a version, with what it adds to the report; one that has ended stays as it is.

        Raises AdapterNotFound, VersionNotFound: it was deleted meanwhile.
        """
        async with self._database.transaction() as session:
            adapter = await lock_adapter(session, version.tenant_id, version.name)
            wanted = AdapterVersion.adapter_id == adapter.id, AdapterVersion.digest == version.digest
            row = await session.scalar(select(AdapterVersion).where(*wanted).options(undefer(AdapterVersion.report)))
            if row is None:
                raise VersionNotFound(no_version(version.name, version.number))
            if row.state == "validating":
                row.state, row.state_reason = state, storable(reason[:MAX_REASON_LENGTH])
                row.report = [*row.report, *storable(report)]
                await session.flush()
                await record_change(session, names_of(version.tenant_id, version.name))
                told = {"before": {"state": "validating"}, "after": {"state": state, "reason": reason}}
                where = f"adapters/{version.name}@{row.number}"
                await audit.record(session, SERVER, "version.settle", where, tenant_id=version.tenant_id, **told)
            found = await first_version(session, select_versions(version.tenant_id, version.name).where(*wanted))
            assert found is not None, "the transaction has just seen it"
            return found

    async def validating(self, base_model: str, older_than: timedelta) -> list[VersionInfo]:
        """Versions on a base whose validation began so long ago that whoever began it must have gone; oldest first."""
        begun = AdapterVersion.created_at < now() - older_than
        wanted = select_all_versions().where(AdapterVersion.state == "validating", begun, BaseModel.name == base_model)
        async with self._database.read() as session:
            return await version_infos(session, wanted.order_by(AdapterVersion.created_at).limit(MAX_PAGE))

    async def not_serving(self, tenant_id: str | None, limit: int) -> list[VersionInfo]:
        """At most `limit` versions of one tenant, or of all, in another state than ready, newest first."""
        wanted = select_all_versions().where(AdapterVersion.state.in_(("validating", "rejected", "quarantined")))
        if tenant_id is not None:
            wanted = wanted.where(Adapter.tenant_id == tenant_id)
        newest_first = wanted.order_by(AdapterVersion.created_at.desc(), AdapterVersion.id).limit(limit)
        async with self._database.read() as session:
            return await version_infos(session, newest_first)

    async def get_report(self, tenant_id: str, name: str, number: int) -> list[dict[str, Any]]:
        """What validation found out about a version. Raises AdapterNotFound, VersionNotFound."""
        async with self._database.read() as session:
            wanted = *is_adapter(tenant_id, name), AdapterVersion.number == _storable(number)
            reports = select(AdapterVersion.report).join(Adapter, Adapter.id == AdapterVersion.adapter_id)
            report = await session.scalar(reports.where(*wanted))
            if report is None:
                await find_adapter(session, tenant_id, name)
                raise VersionNotFound(no_version(name, number))
            return list(report)

    async def get_version(self, tenant_id: str, name: str, number: int) -> VersionInfo:
        """Raises AdapterNotFound; VersionNotFound where the adapter has no such version."""
        async with self._database.read() as session:
            wanted = select_versions(tenant_id, name).where(AdapterVersion.number == _storable(number))
            version = await first_version(session, wanted)
            if version is None:
                await find_adapter(session, tenant_id, name)
                raise VersionNotFound(no_version(name, number))
            return version

    async def delete_version(self, tenant_id: str, name: str, number: int, *, by: Actor = SERVER) -> None:
        """Raises AdapterNotFound, VersionNotFound; VersionInUse while an alias points at it."""
        async with self._database.transaction() as session:
            adapter = await lock_adapter(session, tenant_id, name)
            wanted = AdapterVersion.adapter_id == adapter.id, AdapterVersion.number == _storable(number)
            found = (await session.execute(select(AdapterVersion.id, AdapterVersion.digest).where(*wanted))).first()
            if found is None:
                raise VersionNotFound(no_version(name, number))
            version_id, digest = found
            pointing_here = select(AliasTarget.alias).where(AliasTarget.version_id == version_id)
            if aliases := (await session.scalars(pointing_here)).all():
                pointing = ", ".join(sorted(aliases))
                raise VersionInUse(
                    f'version {number} of "{name}" is in use by {pointing}: point that elsewhere or delete it first'
                )
            await session.execute(delete(AdapterPin).where(AdapterPin.version_id == version_id))
            await session.execute(delete(AdapterVersion).where(AdapterVersion.id == version_id))
            await record_change(session, names_of(tenant_id, name), deletion_of(digest))
            where, before = f"adapters/{name}@{number}", {"digest": digest}
            await audit.record(session, by, "version.delete", where, tenant_id=tenant_id, before=before)

    async def resolve(self, tenant_id: str, name: str, selector: str | None) -> tuple[Target, ...]:
        """The versions that share the traffic of `name@selector`, newest first; see `lookup.find_targets`.

        Raises AdapterNotFound, with one text, for every kind of miss.
        """
        async with self._database.read() as session:
            targets = await find_targets(session, tenant_id, name, selector)
        if not targets:
            raise AdapterNotFound("no such adapter, or no such version of it")
        return targets

    async def others_have(self, tenant_id: str, digest: str) -> bool:
        """Whether another tenant has a version of these bytes. Not for tenants to know."""
        theirs = select(AdapterVersion.id).join(Adapter, Adapter.id == AdapterVersion.adapter_id)
        theirs = theirs.where(AdapterVersion.digest == digest, Adapter.tenant_id != tenant_id).limit(1)
        async with self._database.read() as session:
            return await session.scalar(theirs) is not None

    async def versions_of(self, digests: Collection[str]) -> dict[str, list[str]]:
        """Digest -> the canonical names of all tenants' versions of these bytes. Not for tenants to know."""
        found = await self.versions_with(digests)
        return {digest: sorted(version.canonical_name for version in found[digest]) for digest in found}

    async def versions_with(self, digests: Collection[str]) -> dict[str, list[VersionInfo]]:
        """Digest -> all tenants' versions of these bytes. Not for tenants to know."""
        wanted = select_all_versions().where(AdapterVersion.digest.in_(digests))
        found: dict[str, list[VersionInfo]] = {}
        async with self._database.read() as session:
            for version in await version_infos(session, wanted):
                found.setdefault(version.digest, []).append(version)
        return found

    async def live_digests(self) -> set[str]:
        """The digests of all versions: every other blob is an orphan."""
        async with self._database.read() as session:
            return set(await session.scalars(select(AdapterVersion.digest).distinct()))


async def _numbers(session: AsyncSession, adapter_id: str) -> list[int]:
    numbers = select(AdapterVersion.number).where(AdapterVersion.adapter_id == adapter_id)
    return list(await session.scalars(numbers.order_by(AdapterVersion.number)))


async def _record_published(session: AsyncSession, by: Actor, state_before: str | None, version: VersionInfo) -> None:
    """state_before: of a version that was there already."""
    before = None if state_before is None else {"state": state_before, "digest": version.digest}
    after = {"state": version.state, "digest": version.digest, "size_bytes": version.size_bytes}
    where = f"adapters/{version.name}@{version.number}"
    await audit.record(session, by, "version.publish", where, tenant_id=version.tenant_id, before=before, after=after)


def _storable(number: int) -> int | None:
    """The number if a version can have it: PostgreSQL refuses to compare with integers that its column cannot hold."""
    return version_number(str(number))

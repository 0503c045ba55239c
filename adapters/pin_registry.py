"""Which versions are to stay on the device, and until when, as the database has it.

Knows rows. Every server reads them for its own engine, so that a pin holds on all of them and outlives each. A version
takes its pin with it when it is deleted.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from loraplex.adapters.audit import SERVER, Actor, record
from loraplex.adapters.changes import names_of, record_change
from loraplex.adapters.database import Database
from loraplex.adapters.errors import VersionNotFound, VersionNotReady
from loraplex.adapters.lookup import VersionInfo, lock_adapter, no_version, not_ready, tenants
from loraplex.adapters.schema import Adapter, AdapterPin, AdapterVersion, BaseModel, now


@dataclass(frozen=True, slots=True)
class PinInfo:
    """A pin that has not ended: whose, of which bytes, and until when."""

    tenant_id: str
    digest: str
    expires_at: datetime


class PinRegistry:
    """Each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, version: VersionInfo, expires_at: datetime, *, by: Actor = SERVER) -> None:
        """Pin a version, or change until when. Raises AdapterNotFound, VersionNotFound, VersionNotReady."""
        async with self._database.transaction() as session:
            row = await _find_version(session, version)
            if row.state != "ready":
                raise VersionNotReady(not_ready(version.name, version.number, row.state, row.state_reason))
            await session.execute(delete(AdapterPin).where(AdapterPin.expires_at <= now()))
            old = await session.get(AdapterPin, row.id)
            before = None if old is None else {"expires_at": old.expires_at}
            pin = AdapterPin(version_id=row.id, adapter_id=row.adapter_id, expires_at=expires_at, created_by=by.id)
            await session.merge(pin)
            await record_change(session, names_of(version.tenant_id, version.name))
            where, after = f"adapters/{version.name}@{version.number}", {"expires_at": expires_at}
            await record(session, by, "version.pin", where, tenant_id=version.tenant_id, before=before, after=after)

    async def delete(self, version: VersionInfo, *, by: Actor = SERVER) -> None:
        """End a pin; nothing changes where there is none. Raises AdapterNotFound, VersionNotFound."""
        async with self._database.transaction() as session:
            row = await _find_version(session, version)
            ended = delete(AdapterPin).where(AdapterPin.version_id == row.id).returning(AdapterPin.expires_at)
            expires_at = await session.scalar(ended)
            if expires_at is None:
                return
            await record_change(session, names_of(version.tenant_id, version.name))
            where, before = f"adapters/{version.name}@{version.number}", {"expires_at": expires_at}
            await record(session, by, "version.unpin", where, tenant_id=version.tenant_id, before=before)

    async def on_base(self, base_model: str) -> list[PinInfo]:
        """The pins of ready versions on a base model, in the order in which they were made.

        A tenant that is suspended keeps no memory from the others.
        """
        pins = (
            select(Adapter.tenant_id, AdapterVersion.digest, AdapterPin.expires_at)
            .select_from(AdapterPin)
            .join(AdapterVersion, AdapterVersion.id == AdapterPin.version_id)
            .join(Adapter, Adapter.id == AdapterPin.adapter_id)
            .join(BaseModel, BaseModel.id == Adapter.base_model_id)
            .join(tenants, tenants.c.id == Adapter.tenant_id)
            .where(BaseModel.name == base_model, AdapterVersion.state == "ready", AdapterPin.expires_at > now())
            .where(tenants.c.suspended_at.is_(None))
            .order_by(AdapterPin.created_at)
        )
        async with self._database.read() as session:
            return [PinInfo(*row) for row in await session.execute(pins)]


async def _find_version(session: AsyncSession, version: VersionInfo) -> AdapterVersion:
    adapter = await lock_adapter(session, version.tenant_id, version.name)
    wanted = AdapterVersion.adapter_id == adapter.id, AdapterVersion.digest == version.digest
    row = await session.scalar(select(AdapterVersion).where(*wanted))
    if row is None:
        raise VersionNotFound(no_version(version.name, version.number))
    return row

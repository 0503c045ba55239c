"""What of the audit log is told to whom: operators see it as it is, a tenant what was done to what is its own.

Who among the operators did it, and from where, is not for tenants: of those they learn that it was one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct

from loraplex.adapters.audit import Actor
from loraplex.adapters.audit_log import AuditLog, Entry, Wanted

_STRANGER = dict.fromkeys(("actor_id", "actor_name", "actor_tenant_id", "request_id", "address"))


def seen_by(reader_tenant_id: str | None, entry: Entry) -> Entry:
    """An entry as a tenant sees it; None: as operators do."""
    if reader_tenant_id in (None, entry.actor.tenant_id):
        return entry
    return replace(entry, actor=Actor(entry.actor.kind))


async def lines(log: AuditLog, wanted: Wanted, reader_tenant_id: str | None) -> AsyncIterator[bytes]:
    """JSON lines, the first entry first. All of them, for operators, hold what it takes to verify the chain."""
    async for content in log.contents(wanted):
        if reader_tenant_id is not None and content["actor_tenant_id"] != reader_tenant_id:
            content |= _STRANGER
        yield msgspec.json.encode(content, order="sorted") + b"\n"


class ActorView(Struct, frozen=True, kw_only=True):
    """`kind`: key, account, command (a user of the server's machine), server (by itself) or visitor (not signed in).
    `id`: of the key or account, or the user's name; null where that is not for you. `name`: of an account."""

    kind: str
    id: str | None
    name: str | None


class AuditEntryView(Struct, frozen=True, kw_only=True):
    """`before` and `after`: the object's facts that changed with it; null: it was not there, or there is none to tell.

    `hash`: SHA-256 over the entry before and this one.
    """

    number: int
    at: datetime
    action: str
    object: str
    tenant: str | None
    actor: ActorView
    request_id: str | None
    address: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    hash: str

    @classmethod
    def of(cls, entry: Entry, slugs: dict[str, str]) -> AuditEntryView:
        """slugs: tenants' names by their ids."""
        actor = entry.actor
        return cls(
            number=entry.number,
            at=entry.at,
            action=entry.action,
            object=entry.object,
            tenant=None if entry.tenant_id is None else slugs.get(entry.tenant_id, entry.tenant_id),
            actor=ActorView(kind=actor.kind, id=actor.id, name=actor.name),
            request_id=actor.request_id,
            address=actor.address,
            before=entry.before,
            after=entry.after,
            hash=entry.hash,
        )

"""The writing side of the audit log: who changed what, from what to what, in the transaction that changes it.

Entries are a chain: the hash of each covers its content and the hash before it, so that one which is altered, taken
out or put in shows (`audit_log`). Knows rows. Knows no request: who asks is handed in as an `Actor`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from loraplex.adapters.audit_actions import ACTIONS
from loraplex.adapters.schema import AuditEntry, AuditHead, now, storable

ActorKind = Literal["key", "account", "visitor", "command", "server"]
"""An API key; a person's account; somebody who is not signed in; a user of this machine, by the command line; the
server by itself, whose `id` is that of the key or account for which it finishes what was begun, if there is one."""

GENESIS = "0" * 64
"""What stands where the first entry has the hash of the one before it."""

LONGEST_TEXT = 200
"""Characters of one text in `before` and `after`; of a longer one there are its length and its SHA-256."""

MAX_LISTED = 50
"""Elements of one list or mapping in `before` and `after`; of a longer one there is its length."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who makes a change. `id`: the API key's, the account's, or the user's name. `name`: of an account, its login.

    `tenant_id`: whose the key or account is; None: an operator's. `request_id`, `address`: of the HTTP request.
    """

    kind: ActorKind
    id: str | None = None
    name: str | None = None
    tenant_id: str | None = None
    request_id: str | None = None
    address: str | None = None


SERVER = Actor("server")
"""What nobody asked for."""

Facts = Mapping[str, Any]
"""What is told of a thing before or after a change. Never a secret, nor anything that one can be told from."""


async def record(
    session: AsyncSession,
    by: Actor,
    action: str,
    object: str,
    *,
    tenant_id: str | None = None,
    before: Facts | None = None,
    after: Facts | None = None,
) -> None:
    """Append an entry: the very last thing that a transaction does, after `changes.record_change`.

    It holds the row of the chain's end until the transaction ends, so that entries are numbered in the order of commits
    whichever server writes them. In this order of locks for everybody, for else two transactions could wait for each
    other. object: as `adapters/support@3`, within `tenant_id`: whose it is, if it is a tenant's.
    """
    assert action in ACTIONS, f"{action} is not in audit_actions"
    await session.flush()
    end = select(AuditHead).with_for_update().execution_options(populate_existing=True)
    head = (await session.scalars(end)).one()
    entry = AuditEntry(
        number=head.number + 1,
        at=now(),
        tenant_id=tenant_id,
        action=action,
        object=object,
        actor_kind=by.kind,
        actor_id=storable(by.id),
        actor_name=storable(by.name),
        actor_tenant_id=by.tenant_id,
        request_id=by.request_id,
        address=storable(by.address),
        before=_told(before),
        after=_told(after),
    )
    entry.hash = chained(head.hash, entry)
    head.number, head.hash = entry.number, entry.hash
    session.add(entry)
    await session.flush()


def chained(previous_hash: str, entry: AuditEntry) -> str:
    """The hash of an entry: SHA-256, in hex, of the hash before it and of the entry's canonical JSON."""
    return hashlib.sha256(previous_hash.encode() + canonical(entry)).hexdigest()


def canonical(entry: AuditEntry) -> bytes:
    """All of an entry but its hash, as JSON with sorted keys and without spaces: the same for ever and on each
    database. `before` and `after` stand in it as they were written."""
    return msgspec.json.encode(content(entry), order="sorted")


def content(entry: AuditEntry) -> dict[str, Any]:
    """What an entry says."""
    return {
        "number": entry.number,
        "at": entry.at.isoformat(timespec="microseconds"),
        "tenant_id": entry.tenant_id,
        "action": entry.action,
        "object": entry.object,
        "actor_kind": entry.actor_kind,
        "actor_id": entry.actor_id,
        "actor_name": entry.actor_name,
        "actor_tenant_id": entry.actor_tenant_id,
        "request_id": entry.request_id,
        "address": entry.address,
        "before": _raw(entry.before),
        "after": _raw(entry.after),
    }


def _raw(facts: str | None) -> msgspec.Raw | None:
    return None if facts is None else msgspec.Raw(facts.encode())


def _told(facts: Facts | None) -> str | None:
    return None if facts is None else msgspec.json.encode(_brief(storable(facts)), order="sorted").decode()


def _brief(value: Any) -> Any:
    """Bounded, whatever a tenant has put into it; and what it wrote at length can still be compared."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        return {"characters": len(value), "sha256": hashlib.sha256(value.encode()).hexdigest()}
    if isinstance(value, Mapping):
        return {key: _brief(entry) for key, entry in value.items()} if len(value) <= MAX_LISTED else {"of": len(value)}
    if isinstance(value, list | tuple):
        return [_brief(entry) for entry in value] if len(value) <= MAX_LISTED else {"of": len(value)}
    return value

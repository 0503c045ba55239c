"""Entries of the audit log as people read them: who, what, to what, and what is otherwise than before.

Knows the log, and where things have their pages. Knows no request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from loraplex.adapters.audit import Actor
from loraplex.adapters.audit_actions import ACTIONS
from loraplex.adapters.audit_log import Entry, Wanted
from loraplex.platform.audit_views import seen_by
from loraplex.platform.services import Services
from loraplex.platform.web_sessions import Person

RECENT = 5
"""Entries on the page of what they are about."""

_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")
_DIGEST_CHARS = 12
_LONGEST = 60
_ADAPTER = re.compile(r"adapters/([^/@]+)(?:@(.+))?")

GOOD = frozenset({"resume", "enable", "release"})
BAD = frozenset({"delete", "revoke", "suspend", "disable", "quarantine", "lock_out", "login_fail"})


@dataclass(frozen=True, slots=True)
class FieldChange:
    """A fact of the object, as text; None: it was not there, or is not any more."""

    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Row:
    """`who`, `who_kind`: as what the actor is told. `object_url`: of its page, if it has one. `tone`: good, bad, ""."""

    entry: Entry
    what: str
    tone: str
    object: str
    object_url: str | None
    tenant: str | None
    who: str
    who_kind: str
    who_url: str | None
    changes: tuple[FieldChange, ...]


async def read_rows(
    services: Services, person: Person, wanted: Wanted, limit: int = RECENT, before: int | None = None
) -> list[Row]:
    """Entries for a page, the newest first, as the person may see them."""
    entries = await services.audit.list(wanted, limit, before)
    slugs = await services.tenants.slugs({entry.tenant_id for entry in entries if entry.tenant_id})
    return [row_of(seen_by(person.tenant_id, entry), slugs) for entry in entries]


def row_of(entry: Entry, slugs: Mapping[str, str]) -> Row:
    """slugs: tenants' names by their ids."""
    tenant = None if entry.tenant_id is None else slugs.get(entry.tenant_id, entry.tenant_id)
    who, kind, who_url = _who(entry.actor)
    verb = entry.action.partition(".")[2]
    return Row(
        entry=entry,
        what=ACTIONS.get(entry.action, entry.action),
        tone="bad" if verb in BAD else "good" if verb in GOOD else "",
        object=_named(entry.object),
        object_url=_url(entry, tenant),
        tenant=tenant,
        who=who,
        who_kind=kind,
        who_url=who_url,
        changes=tuple(_changes(entry.before or {}, entry.after or {})),
    )


def _who(actor: Actor) -> tuple[str, str, str | None]:
    match actor.kind:
        case "server":
            return "the server", "" if actor.id is None else f"for {actor.id}", None
        case "visitor":
            return "somebody", "not signed in", None
        case _ if actor.id is None:
            return "an operator", "", None
        case "account":
            return actor.name or actor.id, "", None
        case "command":
            return actor.id, "command line", None
    return f"lk_{actor.id}…", "", f"/admin/keys/{actor.id}"


def _named(object: str) -> str:
    """Without the kind, which the action tells: adapters/bot@3 is bot@3."""
    kind, _, name = object.partition("/")
    return f"lk_{name}…" if kind == "keys" else name


def _url(entry: Entry, tenant: str | None) -> str | None:
    kind, _, name = entry.object.partition("/")
    if kind in ("tenants", "keys"):
        return f"/admin/{kind}/{quote(name)}"
    found = _ADAPTER.fullmatch(entry.object)
    if found is None or tenant is None:
        return None
    url = f"/admin/adapters/{quote(tenant)}/{quote(found[1])}"
    return f"{url}/versions/{found[2]}" if (found[2] or "").isdigit() else url


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterable[FieldChange]:
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old != new and (old or new or isinstance(old, bool) or isinstance(new, bool)):
            yield FieldChange(name.replace("_", " "), _text(name, old), _text(name, new))


def _text(name: str, value: Any) -> str | None:
    """Of a fact, or None where there is none."""
    if value is None or value == "" or value == {}:
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    if isinstance(value, dict) and "sha256" in value:
        return f"text {value['sha256'][:_DIGEST_CHARS]}…"
    if isinstance(value, dict) and name == "split":
        total = sum(value.values()) or 1
        return ", ".join(f"v{number} {100 * weight / total:.3g}%" for number, weight in value.items())
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_text('', entry) or 'none'}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(_text("", entry) or "none" for entry in value) or None
    if name in ("digest", "sha256"):
        return f"{str(value)[:_DIGEST_CHARS]}…"
    text = str(value)
    if _MOMENT.match(text):
        return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M} UTC"
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"

"""From what a handler found out to a page: the templates, what all of them may use, and the frame around each.

Knows Jinja and who looks; knows no service.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from litestar import Request
from litestar.plugins.jinja import JinjaTemplateEngine
from litestar.response import Redirect, Template
from litestar.template import TemplateConfig
from markupsafe import Markup

from loraplex import __version__
from loraplex.platform.errors import ApiError
from loraplex.platform.web import figures
from loraplex.platform.web.access import csrf_token, session_token
from loraplex.platform.web.assets import assets
from loraplex.platform.web.forms import CSRF_FIELD
from loraplex.platform.web_sessions import Person

FAR = timedelta(days=60)
"""From here on a date says more than a number of days."""

TEMPLATES_DIR = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class Section:
    """An entry of the navigation. `path` may hold {tenant}, for tenant-admins. `icon`: of static/icons.svg."""

    name: str
    path: str
    icon: str
    for_operators: bool = True
    for_tenants: bool = True


SECTIONS = (
    Section("Overview", "/admin", "overview"),
    Section("Live engine", "/admin/live", "live"),
    Section("Adapters", "/admin/adapters", "adapters"),
    Section("Tenants", "/admin/tenants", "tenants", for_tenants=False),
    Section("Tenant", "/admin/tenants/{tenant}", "tenants", for_operators=False),
    Section("API keys", "/admin/keys", "keys"),
    Section("Limits", "/admin/limits", "limits", for_tenants=False),
    Section("Limits", "/admin/limits/{tenant}", "limits", for_operators=False),
    Section("Jobs", "/admin/jobs", "jobs"),
    Section("Usage", "/admin/usage", "usage"),
    Section("Requests", "/admin/requests", "requests"),
    Section("Playground", "/admin/playground", "playground"),
    Section("People", "/admin/people", "people", for_tenants=False),
    Section("Audit", "/admin/audit", "audit"),
    Section("Settings", "/admin/settings", "settings", for_tenants=False),
)

DONE: Mapping[str, str] = {
    "adapter-deleted": "The adapter is deleted with all its versions. Requests that run will finish.",
    "all-contents-deleted": "All that was kept of what was asked and answered is deleted.",
    "alias-deleted": "The alias is deleted. Its history is kept, so it can be rolled back.",
    "alias-moved": "The alias has moved. Requests that run keep their version.",
    "alias-restored": "The alias stands for what it stood for before.",
    "batch-cancelled": "The batch is being cancelled. What was answered is kept, in a file.",
    "contents-deleted": "What was asked and answered is deleted. What it used stays.",
    "contents-set": "Set. It holds for requests from now on; what is kept stays until its own time is up.",
    "evicted": "The version's memory is free.",
    "key-changed": "The key is changed. That holds here at once, on other servers within 2 seconds.",
    "import-again": "The import begins again, as a new job.",
    "import-cancelled": "The import is cancelled. Its server stops within seconds.",
    "key-revoked": "The key is revoked. It stops working here at once, on other servers within 2 seconds.",
    "old-secret-ended": "The old secret has ended. The key has one secret now.",
    "limits-changed": "Limits and weight hold: here at once, on other servers within 2 seconds.",
    "password-changed": "Your password is changed, and all your other sessions have ended.",
    "person-disabled": "The account is disabled and signed out everywhere.",
    "person-enabled": "The account can sign in again.",
    "pinned": "The version is pinned: it stays on the device.",
    "prices-set": "The prices are set. They hold for requests from now on; what was used keeps the price it had.",
    "resumed": "The tenant is active again: its keys work.",
    "signed-out": "You are signed out.",
    "signed-out-everywhere": "You are signed out, here and everywhere else.",
    "suspended": "The tenant is suspended: its keys are refused, and its data stays.",
    "tenant-created": "The tenant is there. It needs a key to do anything.",
    "unpinned": "The pin has ended. The version stays where it is until others need the room.",
    "upload-dropped": "The upload is dropped, with what had come of it.",
    "version-deleted": "The version is deleted.",
    "warming": "The version is on its way to the device.",
    "welcome": "Your account is there. Begin with a tenant: adapters and keys belong to one.",
}
"""What a page says after a change, by the code in its URL: never a text out of the URL."""


@cache
def template_config() -> TemplateConfig[JinjaTemplateEngine]:
    """For `Litestar(template_config=...)`."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES_DIR),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bytes": _bytes,
        "count": _count,
        "short": figures.short,
        "percent": figures.percent,
        "ms": figures.ms,
        "money": figures.money,
        "moment": _moment,
        "ago": _ago,
        "until": _until,
        "reason": _reason,
    }
    environment.globals |= {"asset": assets().url, "version": __version__, "csrf_field": CSRF_FIELD}
    return TemplateConfig(instance=JinjaTemplateEngine.from_environment(environment))


def page(
    request: Request[Any, Any, Any],
    template: str,
    /,
    *,
    code: int = 200,
    refusal: ApiError | None = None,
    **context: Any,
) -> Template:
    """A page, or a part of one, for whoever asks. refusal: why what was asked for by a form was not done."""
    person: Person | None = request.scope.get("auth")
    session = session_token(request)
    frame = {
        "person": person,
        "sections": list(_sections(person)),
        "path": request.url.path,
        "csrf": csrf_token(session) if session else "",
        "done": DONE.get(request.query_params.get("done", "")),
        "refusal": refusal,
    }
    if refusal is not None:
        code = refusal.status
    headers = dict(refusal.headers) if refusal else {}
    return Template(template, context=frame | context, status_code=code, headers=headers, media_type="text/html")


def go(path: str, done: str | None = None) -> Redirect:
    """To the page that shows what a change came to, by GET, so that a reload does not repeat it."""
    assert done is None or done in DONE, done
    return Redirect(path if done is None else f"{path}?done={done}", status_code=303)


def wants_part(request: Request[Any, Any, Any]) -> bool:
    """Whether htmx asks, which puts the answer into a part of the page. After a step back it wants all of it."""
    return "hx-request" in request.headers and "hx-history-restore-request" not in request.headers


def _sections(person: Person | None) -> Iterable[tuple[Section, str]]:
    for section in SECTIONS if person else ():
        assert person is not None
        if section.for_operators if person.is_operator else section.for_tenants:
            yield section, section.path.format(tenant=person.tenant)


def _reason(refusal: ApiError) -> str:
    """Its message for people, to whom the field is shown in another way."""
    text = re.sub(r"^[A-Za-z_-]+: ", "", refusal.message)
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _bytes(size: float | None) -> str:
    """1536 -> "1.5 KiB"."""
    if size is None:
        return "no limit"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    digits = 0 if unit == "B" or size >= 100 else 1
    return f"{size:,.{digits}f} {unit}"


def _count(number: float) -> str:
    return f"{number:,}".replace(",", "\u202f")


def _moment(moment: datetime | None, never: str = "never") -> Markup | str:
    """In UTC, since people in several places look at the same page."""
    if moment is None:
        return never
    return _time(moment, f"{moment:%Y-%m-%d %H:%M}")


def _ago(moment: datetime | None, never: str = "never") -> Markup | str:
    if moment is None:
        return never
    passed = datetime.now(UTC) - moment
    return _time(moment, _span(passed, "{} ago", "just now") if passed < FAR else f"{moment:%Y-%m-%d}")


def _until(moment: datetime | None, never: str = "never") -> Markup | str:
    """Of a moment to come; "3 days ago" of one that has passed."""
    if moment is None:
        return never
    left = moment - datetime.now(UTC)
    if left <= timedelta():
        return _ago(moment)
    return _time(moment, _span(left, "in {}", "now") if left < FAR else f"{moment:%Y-%m-%d}")


def _time(moment: datetime, text: str) -> Markup:
    exact = f"{moment:%Y-%m-%d %H:%M:%S} UTC"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(moment.isoformat(), exact, text)


def _span(span: timedelta, form: str, short: str) -> str:
    seconds = span.total_seconds()
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length:
            number = round(seconds / length)
            return form.format(f"{number} {unit}{'' if number == 1 else 's'}")
    return short

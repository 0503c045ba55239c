"""The pages for people, and what holds for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from litestar import Response, Router, get
from litestar.di import Provide
from litestar.exceptions import NotFoundException
from litestar.params import FromPath

from loraplex.platform.web.access import provide_person
from loraplex.platform.web.adapters import ADAPTER_PAGES
from loraplex.platform.web.aliases import ALIAS_PAGES
from loraplex.platform.web.assets import get_asset
from loraplex.platform.web.audit import AUDIT_PAGES
from loraplex.platform.web.entry import ENTRY_PAGES
from loraplex.platform.web.errors import PAGE_EXCEPTION_HANDLERS
from loraplex.platform.web.forms import MAX_FORM_BYTES
from loraplex.platform.web.jobs import JOB_PAGES
from loraplex.platform.web.key_changes import KEY_CHANGE_PAGES
from loraplex.platform.web.keys import KEY_PAGES
from loraplex.platform.web.limits import LIMIT_PAGES
from loraplex.platform.web.live import LIVE_PAGES
from loraplex.platform.web.oidc_login import OIDC_PAGES
from loraplex.platform.web.overview import OVERVIEW_PAGES
from loraplex.platform.web.people import PEOPLE_PAGES
from loraplex.platform.web.playground import PLAYGROUND_PAGES
from loraplex.platform.web.prices import PRICE_PAGES
from loraplex.platform.web.requests import REQUEST_PAGES
from loraplex.platform.web.security_headers import security_headers
from loraplex.platform.web.server_settings import SETTINGS_PAGES
from loraplex.platform.web.tenants import TENANT_PAGES
from loraplex.platform.web.usage import USAGE_PAGES
from loraplex.platform.web.versions import VERSION_PAGES


@get("/{rest:path}", opt={"page": "person"})
async def show_nothing(rest: FromPath[Path]) -> Response[Any]:
    """Whatever else is asked for here is absent, and told as a page."""
    raise NotFoundException


PAGE_ROUTES = [
    Router(
        "/admin",
        route_handlers=[
            get_asset,
            *ENTRY_PAGES,
            *OIDC_PAGES,
            *OVERVIEW_PAGES,
            *LIVE_PAGES,
            *TENANT_PAGES,
            *KEY_PAGES,
            *KEY_CHANGE_PAGES,
            *LIMIT_PAGES,
            *ADAPTER_PAGES,
            *VERSION_PAGES,
            *ALIAS_PAGES,
            *JOB_PAGES,
            *USAGE_PAGES,
            *PRICE_PAGES,
            *REQUEST_PAGES,
            *PLAYGROUND_PAGES,
            *PEOPLE_PAGES,
            *AUDIT_PAGES,
            *SETTINGS_PAGES,
            show_nothing,
        ],
        dependencies={"person": Provide(provide_person, sync_to_thread=False)},
        exception_handlers=PAGE_EXCEPTION_HANDLERS,
        middleware=[security_headers],
        request_max_body_size=MAX_FORM_BYTES,
        include_in_schema=False,
    )
]

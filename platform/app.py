"""The Litestar application: every route, and the rules that hold for all of them.

Closed by default (auth), one error shape (errors), an id on every response, bounded bodies, a complete document.
"""

from __future__ import annotations

import asyncio

from litestar import Litestar
from litestar.datastructures import State
from litestar.di import Provide

from loraplex.platform.actors import provide_actor
from loraplex.platform.anthropic.errors import error_body
from loraplex.platform.anthropic.routes import ANTHROPIC_ROUTES, MESSAGES_PATH
from loraplex.platform.audit_rules import require_audited
from loraplex.platform.auth import Authenticator, make_guard, provide_principal, provide_tenant_id, require_closed
from loraplex.platform.errors import exception_handlers
from loraplex.platform.health import HEALTH_ROUTES, make_drain_guard, metrics
from loraplex.platform.ledger.meter import metering
from loraplex.platform.manage.adapters import ADAPTER_ROUTES
from loraplex.platform.manage.admin import ADMIN_ROUTES
from loraplex.platform.manage.aliases import ALIAS_ROUTES
from loraplex.platform.manage.audit import AUDIT_ROUTES
from loraplex.platform.manage.budgets import BUDGET_ROUTES
from loraplex.platform.manage.idempotency import provide_once
from loraplex.platform.manage.imports import IMPORT_ROUTES
from loraplex.platform.manage.live import LIVE_ROUTES
from loraplex.platform.manage.lora_adapters import LORA_ROUTES
from loraplex.platform.manage.profiles import PROFILE_ROUTES
from loraplex.platform.manage.residency import RESIDENCY_ROUTES
from loraplex.platform.manage.resumable import UPLOAD_ROUTES
from loraplex.platform.manage.uploads import UploadSlots
from loraplex.platform.manage.usage import USAGE_ROUTES
from loraplex.platform.manage.versions import VERSION_ROUTES
from loraplex.platform.observability.requests import observe_requests, response_hook
from loraplex.platform.openai.body import JsonRequest
from loraplex.platform.openai.routes import OPENAI_ROUTES
from loraplex.platform.openai.sse import PING_SECONDS
from loraplex.platform.openapi import openapi_config, openapi_json
from loraplex.platform.services import Services
from loraplex.platform.web.access import make_page_guard
from loraplex.platform.web.rendering import template_config
from loraplex.platform.web.routes import PAGE_ROUTES
from loraplex.platform.web.script_routes import FEED_ROUTES, script_routes


def create_app(services: Services, drain: asyncio.Event | None = None) -> Litestar:
    """Build the application. Set `drain` to refuse new inference. Raises RuntimeError for a handler without
    scope, or for one that may change something and does not say what the audit log has of it."""
    draining = drain or asyncio.Event()
    authenticator = Authenticator(services.tenants, services.changes, ttl_seconds=services.settings.auth_cache_seconds)
    upload_slots = UploadSlots(services.settings.max_uploads_per_tenant)
    lora_lock = asyncio.Lock()
    app = Litestar(
        route_handlers=[
            *HEALTH_ROUTES,
            *([metrics] if services.settings.metrics_port is None else []),
            *OPENAI_ROUTES,
            *ANTHROPIC_ROUTES,
            *ADAPTER_ROUTES,
            *VERSION_ROUTES,
            *UPLOAD_ROUTES,
            *PROFILE_ROUTES,
            *ALIAS_ROUTES,
            *RESIDENCY_ROUTES,
            *LORA_ROUTES,
            *IMPORT_ROUTES,
            *ADMIN_ROUTES,
            *USAGE_ROUTES,
            *AUDIT_ROUTES,
            *LIVE_ROUTES,
            *BUDGET_ROUTES,
            *PAGE_ROUTES,
            script_routes(services),
            FEED_ROUTES,
            openapi_json,
        ],
        dependencies={
            "services": Provide(lambda: services, sync_to_thread=False),
            "drain": Provide(lambda: draining, sync_to_thread=False),
            "upload_slots": Provide(lambda: upload_slots, sync_to_thread=False),
            "lora_lock": Provide(lambda: lora_lock, sync_to_thread=False),
            "principal": Provide(provide_principal, sync_to_thread=False),
            "tenant_id": Provide(provide_tenant_id, sync_to_thread=False),
            "by": Provide(provide_actor, sync_to_thread=False),
            "once": Provide(provide_once, sync_to_thread=False),
        },
        guards=[
            make_guard(authenticator),
            make_page_guard(services.web_sessions, services.settings),
            make_drain_guard(draining),
        ],
        exception_handlers=exception_handlers({MESSAGES_PATH: error_body}),
        request_class=JsonRequest,
        middleware=[
            observe_requests(services.tracing, access_log=services.settings.access_log),
            metering(services.ledger, services.budgets),
        ],
        before_send=[response_hook(services.metrics), services.limiter.refusals.note_busy],
        request_max_body_size=services.settings.max_body_bytes,
        openapi_config=openapi_config(),
        template_config=template_config(),
        state=State({PING_SECONDS: services.settings.stream_ping_seconds}),
        logging_config=None,
    )
    require_closed(app)
    require_audited(app)
    return app

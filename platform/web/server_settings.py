"""What the server runs with, for operators: settings, versions, device, database, disk; and all of it as a file."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Response, get
from litestar.di import NamedDependency

from loraplex.platform.services import Services
from loraplex.platform.web.rendering import page


@get("/settings", opt={"page": "operator"})
async def show_settings(request: Request[Any, Any, Any], services: NamedDependency[Services]) -> Response[Any]:
    """Secrets are masked; what is set by somebody comes first."""
    return page(request, "settings.html", report=await services.diagnostics.report())


@get("/settings/support-bundle", opt={"page": "operator"})
async def get_bundle(services: NamedDependency[Services]) -> Response[bytes]:
    """The same as JSON, with what there is and whether the audit log is whole: to be read before it is sent away."""
    adapters, versions = await services.registry.count_versions(None)
    chain = await services.audit_chain.look()
    bundle = {
        **msgspec.to_builtins(await services.diagnostics.report()),
        "counts": {"tenants": len(await services.tenants.list_tenants()), "adapters": adapters, "versions": versions},
        "audit": {"entries": chain.end.number, "verified_through": chain.verified.number, "broken": chain.why},
    }
    headers = {"content-disposition": 'attachment; filename="loraplex-support.json"', "cache-control": "no-store"}
    content = msgspec.json.format(msgspec.json.encode(bundle), indent=2)
    return Response(content, media_type="application/json", headers=headers)


SETTINGS_PAGES = [show_settings, get_bundle]

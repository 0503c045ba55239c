"""Where a tenant's adapters are in the management API."""

from __future__ import annotations

from urllib.parse import quote

ADAPTERS = "/api/v1/adapters"


def path(*parts: str) -> str:
    """Whatever stands in a name stays one part of the path."""
    return "/".join([ADAPTERS, *(quote(part, safe="") for part in parts)])

"""What the engine's opaque ids mean: tenants by their slugs, digests by the versions that have those bytes.

Looked up when they are first seen and remembered for a while, so that watching costs the database next to nothing.
While it is away, ids stand for themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import structlog
from sqlalchemy.exc import SQLAlchemyError

from loraplex.adapters.lookup import VersionInfo
from loraplex.adapters.registry import AdapterRegistry
from loraplex.engine.messages import AdapterUse
from loraplex.platform.tenants import TenantDirectory

REMEMBERED_SECONDS = 30.0
KEY_CHARS = 12

logger = structlog.get_logger(__name__)


def key_of(digest: str) -> str:
    """Enough of a digest to tell those in one memory apart."""
    return digest[:KEY_CHARS]


class LiveNames:
    """For the tasks of one event loop."""

    def __init__(
        self,
        registry: AdapterRegistry,
        tenants: TenantDirectory,
        base_model: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._tenants = tenants
        self._base_model = base_model
        self._clock = clock
        self._slugs: dict[str, str] = {}
        self._versions: dict[str, list[VersionInfo]] = {}
        self._forget_at = 0.0

    async def learn(self, tenant_ids: Iterable[str], digests: Iterable[str]) -> None:
        """Look up what is not known yet of these."""
        if self._clock() >= self._forget_at:
            self._slugs, self._versions = {"": ""}, {}
            self._forget_at = self._clock() + REMEMBERED_SECONDS
        new_tenants, new_digests = set(tenant_ids) - self._slugs.keys(), set(digests) - self._versions.keys()
        try:
            if new_tenants:
                self._slugs |= {tenant_id: tenant_id for tenant_id in new_tenants}
                self._slugs |= await self._tenants.slugs_of(new_tenants)
            if new_digests:
                self._versions |= {digest: [] for digest in new_digests}
                self._versions |= await self._registry.versions_with(new_digests)
        except SQLAlchemyError as error:
            logger.warning("live_names_unknown", error=type(error).__name__)

    def tenant(self, tenant_id: str) -> str:
        """ "" for the server itself."""
        return self._slugs.get(tenant_id, tenant_id)

    def names(self, digest: str) -> list[str]:
        """Of all tenants' versions of these bytes."""
        return sorted(version.canonical_name for version in self._versions.get(digest, ()))

    def rank(self, digest: str) -> int | None:
        return max((version.max_rank for version in self._versions.get(digest, ())), default=None)

    def model(self, tenant_id: str, uses: Sequence[AdapterUse]) -> str:
        """As that tenant names what its request runs with."""
        return "+".join(self._term(tenant_id, use) for use in uses) or self._base_model

    def own_name(self, tenant_id: str, digest: str) -> str:
        """The tenant's name of these bytes, or that of anyone for the server itself; else their key."""
        own = [v.canonical_name for v in self._versions.get(digest, ()) if tenant_id in ("", v.tenant_id)]
        return min(own, default=key_of(digest))

    def _term(self, tenant_id: str, use: AdapterUse) -> str:
        name = self.own_name(tenant_id, use.digest)
        return name if use.scale == 1 else f"{name}*{use.scale:g}"

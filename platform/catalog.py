"""Which model a name means for a caller: the base, or one version of one of the caller's own adapters.

Knows the rules of names and who may use what. Absent, foreign and malformed names are one and the same 404.
"""

from __future__ import annotations

from dataclasses import dataclass

from loraplex.adapters.errors import AdapterNotFound, InvalidName
from loraplex.adapters.names import ModelName, parse_model_name
from loraplex.adapters.registry import AdapterRegistry, VersionInfo
from loraplex.platform.errors import ApiError
from loraplex.platform.tenants import Principal

MAX_ECHO_CHARS = 128


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """`name` is canonical and stands in responses. The base has neither digest nor version."""

    name: str
    digest: str | None = None
    version: VersionInfo | None = None


def model_not_found(model: str) -> ApiError:
    """The same answer for a name that is malformed, absent, or another tenant's."""
    shown = model if len(model) <= MAX_ECHO_CHARS else model[:MAX_ECHO_CHARS] + "..."
    message = f"The model `{shown}` does not exist or you do not have access to it."
    return ApiError(404, "model_not_found", message, param="model")


class Catalog:
    """Names to models. Holds nothing between calls: an alias that moves is seen by the next request."""

    def __init__(self, registry: AdapterRegistry, base_model_name: str) -> None:
        self.base_model_name = base_model_name
        self._registry = registry

    async def resolve(self, principal: Principal, model: str) -> ResolvedModel:
        """The base by its exact name; `[tenant/]adapter[@alias|@version]` in the caller's tenant; or a 404 ApiError.

        A key without a tenant (an operator's) may use the base only.
        """
        if model == self.base_model_name:
            return ResolvedModel(model)
        name = _parse(model)
        if name is None or principal.tenant_id is None or name.tenant not in (None, principal.tenant):
            raise model_not_found(model)
        try:
            version = await self._registry.resolve(principal.tenant_id, name.adapter, name.selector)
        except AdapterNotFound:
            raise model_not_found(model) from None
        if version.base_model != self.base_model_name:
            message = f"This adapter was made for `{version.base_model}`; this server serves `{self.base_model_name}`."
            raise ApiError(404, "model_not_found", message, param="model")
        return ResolvedModel(version.canonical_name, version.digest, version)


def _parse(model: str) -> ModelName | None:
    try:
        return parse_model_name(model)
    except InvalidName:
        return None

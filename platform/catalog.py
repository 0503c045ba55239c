"""Which model a name means for a caller: the base, or one version of one of the caller's own adapters.

Knows the rules of names and who may use what. Absent, foreign and malformed names are one and the same 404, and so is
what the caller's key may not name, whether it is there or not: that is seen before anything is looked up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from loraplex.adapters.changes import ChangeFeed
from loraplex.adapters.errors import AdapterNotFound, InvalidName
from loraplex.adapters.names import ModelName, WeightedName, parse_model_name, split_sum, without_base
from loraplex.adapters.registry import AdapterRegistry, Target, VersionInfo
from loraplex.engine.messages import MAX_ADAPTERS
from loraplex.platform.errors import ApiError
from loraplex.platform.key_terms import BASE
from loraplex.platform.name_cache import NameCache
from loraplex.platform.tenants import Principal

MAX_ECHO_CHARS = 128
WEIGHT_DECIMALS = 12
"""Of a weight: terms that cancel out leave nothing of what floating point would."""


@dataclass(frozen=True, slots=True)
class WeightedVersion:
    """An adapter version, and what its part of every sum is multiplied by."""

    version: VersionInfo
    weight: float

    @property
    def name(self) -> str:
        if self.weight == 1:
            return self.version.canonical_name
        # Without an exponent, which `names.split_sum` does not know.
        digits = f"{self.weight:.{WEIGHT_DECIMALS}f}".rstrip("0").rstrip(".")
        return f"{self.version.canonical_name}*{digits}"


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """`name` is canonical and stands in responses. The base has no adapters."""

    name: str
    adapters: tuple[WeightedVersion, ...] = ()

    @property
    def version(self) -> VersionInfo | None:
        """The one that says how to ask: the first of a sum."""
        return self.adapters[0].version if self.adapters else None


def model_not_found(model: str, field: str) -> ApiError:
    """The same answer for a name that is malformed, absent, or another tenant's."""
    shown = model if len(model) <= MAX_ECHO_CHARS else model[:MAX_ECHO_CHARS] + "..."
    message = f"The model `{shown}` does not exist or you do not have access to it."
    return ApiError(404, "model_not_found", message, param=field)


class Catalog:
    """Names to models, remembered until they change.

    A change through this server is seen by the next request, one through another after `changes.MAX_STALE_SECONDS` at
    most.
    """

    def __init__(self, registry: AdapterRegistry, changes: ChangeFeed, base_model_name: str) -> None:
        self.base_model_name = base_model_name
        self._registry = registry
        self._changes = changes
        self._names = NameCache()
        changes.subscribe(self._names.forget)

    async def resolve(
        self, principal: Principal, model: str, user: str | None = None, field: str = "model"
    ) -> ResolvedModel:
        """The base by its exact name; `[base:][tenant/]adapter[@alias|@version]` in the caller's tenant; a weighted sum
        of such names, `a*0.7+b*0.3`; or a 404 ApiError. A sum that cannot be is a 400 one, InvalidName for a weight.

        Where versions share the traffic of a name, the same `user`, or without one the same key, gets the same version.
        A key without a tenant (an operator's) may use the base only. field: of the request, which errors name.
        """
        if model == self.base_model_name:
            return self._base(principal, model, field)
        return await self.resolve_sum(principal, split_sum(model, field), user, field)

    async def resolve_sum(
        self, principal: Principal, terms: Sequence[WeightedName], user: str | None, field: str
    ) -> ResolvedModel:
        """As `resolve`, of terms that each name an adapter. Two that name the same version become one."""
        if len(terms) > MAX_ADAPTERS:
            message = f"'{field}' adds up {len(terms)} adapters; at most {MAX_ADAPTERS} may be in one request."
            raise ApiError(400, "invalid_value", message, param=field)
        weights: dict[str, WeightedVersion] = {}
        for term in terms:
            version = await self._version(principal, term.name, user, field)
            before = weights[version.digest].weight if version.digest in weights else 0.0
            weights[version.digest] = WeightedVersion(version, round(before + term.weight, WEIGHT_DECIMALS))
        adapters = tuple(adapter for adapter in weights.values() if adapter.weight)
        _require_additive(adapters, field)
        if not adapters:  # all cancelled out
            return self._base(principal, "+".join(f"{term.name}*{term.weight:g}" for term in terms), field)
        return ResolvedModel("+".join(adapter.name for adapter in adapters), adapters)

    def _base(self, principal: Principal, model: str, field: str) -> ResolvedModel:
        if not principal.may_name(BASE):
            raise model_not_found(model, field)
        return ResolvedModel(self.base_model_name)

    def own_name(self, principal: Principal, model: str, field: str = "model") -> tuple[str, ModelName]:
        """The caller's tenant, and a name in it that may mean nothing there; a 404 ApiError for any other name, and for
        one that the caller's key may not name."""
        name = _parse(without_base(model, self.base_model_name))
        if name is None or principal.tenant_id is None or name.tenant not in (None, principal.tenant):
            raise model_not_found(model, field)
        if not principal.may_name(name.adapter):
            raise model_not_found(model, field)
        return principal.tenant_id, name

    async def _version(self, principal: Principal, model: str, user: str | None, field: str) -> VersionInfo:
        tenant_id, name = self.own_name(principal, model, field)
        try:
            targets = await self._targets(tenant_id, name.adapter, name.selector)
        except AdapterNotFound:
            raise model_not_found(model, field) from None
        version = choose(targets, f"key {principal.key_id}" if user is None else f"user {user}")
        if version.base_model != self.base_model_name:
            message = f"This adapter was made for `{version.base_model}`; this server serves `{self.base_model_name}`."
            raise ApiError(404, "model_not_found", message, param=field)
        return version

    async def _targets(self, tenant_id: str, adapter: str, selector: str | None) -> tuple[Target, ...]:
        await self._changes.refresh()
        targets = self._names.get(tenant_id, adapter, selector)
        if targets is None:
            generation = self._names.generation
            targets = await self._registry.resolve(tenant_id, adapter, selector)
            # What changed while we asked must not come into the cache as it was before.
            if generation == self._names.generation:
                self._names.put(tenant_id, adapter, selector, targets)
        return targets


def choose(targets: Sequence[Target], who: str) -> VersionInfo:
    """The target, of those that are given newest first, that `who` gets: each gets its share of all there are.

    It depends on the adapter and on `who`, so it is the same on every server and for every alias; and it comes from one
    fixed point per `who`, so that whoever has the newest version keeps it while its share grows.
    """
    seed = f"{targets[0].version.adapter_id} {who}".encode()
    point = int.from_bytes(hashlib.sha256(seed).digest()[:8]) % 2**53 / 2**53 * sum(target.weight for target in targets)
    for target in targets:
        if point < target.weight:
            return target.version
        point -= target.weight
    return targets[-1].version


def _require_additive(adapters: Sequence[WeightedVersion], field: str) -> None:
    """Raises ApiError 400 for a sum with a version in it that does more than add to the base."""
    for adapter in adapters if len(adapters) > 1 else ():
        if not adapter.version.is_additive:
            why = "rescales the base or replaces parts of it (DoRA, IA3, embeddings of its own)"
            message = f"`{adapter.version.canonical_name}` {why}, so nothing can be added to it; use it alone."
            raise ApiError(400, "adapter_not_additive", message, param=field)


def _parse(model: str) -> ModelName | None:
    try:
        return parse_model_name(model)
    except InvalidName:
        return None

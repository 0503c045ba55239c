"""Budgets: operators set them, tenants see their own, both with what was spent."""

from __future__ import annotations

from litestar import Router, get, put
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import Struct

from loraplex.adapters.audit import Actor
from loraplex.platform.audit_rules import audited
from loraplex.platform.budgets.owners import BudgetUse
from loraplex.platform.budgets.rules import Budget
from loraplex.platform.services import Services
from loraplex.platform.tenants import Principal


class OwnBudgets(Struct, frozen=True):
    """Both hold for requests with this key."""

    tenant: BudgetUse
    key: BudgetUse


@get("/tenants/{slug:str}/budget")
async def get_tenant_budget(slug: FromPath[str], services: NamedDependency[Services]) -> BudgetUse:
    """What a tenant may spend with all its keys together, and what it has spent; null: without bound."""
    return await services.budget_owners.of_tenant(slug)


@put("/tenants/{slug:str}/budget", opt=audited("tenant.budget"))
async def set_tenant_budget(
    slug: FromPath[str], data: JSONBody[Budget], services: NamedDependency[Services], by: NamedDependency[Actor]
) -> BudgetUse:
    """Set a tenant's budget: at once on this server, within 2 seconds on others. What was spent in the period before
    counts; without an amount nothing is bounded."""
    return await services.budget_owners.set_tenant(slug, lambda _: data, by=by)


@get("/keys/{key_id:str}/budget")
async def get_key_budget(key_id: FromPath[str], services: NamedDependency[Services]) -> BudgetUse:
    """What may be spent with a key, of its tenant's budget, and what was; null: without bound."""
    return await services.budget_owners.of_key(key_id)


@put("/keys/{key_id:str}/budget", opt=audited("key.budget"))
async def set_key_budget(
    key_id: FromPath[str], data: JSONBody[Budget], services: NamedDependency[Services], by: NamedDependency[Actor]
) -> BudgetUse:
    """Set a key's budget: at once on this server, within 2 seconds on others. What was spent in the period before
    counts; without an amount nothing is bounded."""
    return await services.budget_owners.set_key(key_id, lambda _: data, by=by)


@get("/")
async def get_own_budgets(principal: NamedDependency[Principal], services: NamedDependency[Services]) -> OwnBudgets:
    """What this key's tenant, and this key, may spend and have spent; null: without bound."""
    assert principal.tenant is not None
    owners = services.budget_owners
    return OwnBudgets(await owners.of_tenant(principal.tenant), await owners.of_key(principal.key_id))


BUDGET_ROUTES = [
    Router("/api/v1/budget", route_handlers=[get_own_budgets], opt={"scope": "inference"}, tags=["usage"]),
    Router(
        "/api/v1/admin",
        route_handlers=[get_tenant_budget, set_tenant_budget, get_key_budget, set_key_budget],
        opt={"scope": "admin"},
        tags=["admin"],
    ),
]

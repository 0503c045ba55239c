"""The registry over the test's database, with one base model, and a tenant."""

from __future__ import annotations

import pytest

from loraplex.adapters.aliases import AdapterAliases
from loraplex.adapters.base_models import register_base_model
from loraplex.adapters.database import Database
from loraplex.adapters.registry import AdapterRegistry
from loraplex.platform.tenants import TenantDirectory


@pytest.fixture
async def registry(database: Database) -> AdapterRegistry:
    registry = AdapterRegistry(database)
    await register_base_model(database, "base", "0" * 64, "hub:base")
    return registry


@pytest.fixture
async def acme(database: Database) -> str:
    """A tenant without adapters."""
    return (await TenantDirectory(database).create_tenant("acme")).id


@pytest.fixture
async def acme_with_bot(database: Database, registry: AdapterRegistry) -> str:
    """The tenant with an adapter `bot`, which has no version."""
    tenant = await TenantDirectory(database).create_tenant("acme")
    await registry.create_adapter(tenant.id, "bot", "base")
    return tenant.id


@pytest.fixture
def aliases(database: Database) -> AdapterAliases:
    return AdapterAliases(database)

"""The registry over the test's database, with one base model."""

from __future__ import annotations

import pytest

from loraplex.adapters.aliases import AdapterAliases
from loraplex.adapters.base_models import register_base_model
from loraplex.adapters.database import Database
from loraplex.adapters.registry import AdapterRegistry


@pytest.fixture
async def registry(database: Database) -> AdapterRegistry:
    registry = AdapterRegistry(database)
    await register_base_model(database, "base", "0" * 64, "hub:base")
    return registry


@pytest.fixture
def aliases(database: Database) -> AdapterAliases:
    return AdapterAliases(database)

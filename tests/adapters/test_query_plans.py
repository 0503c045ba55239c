"""What the registry does about one adapter costs the same however many there are: SQLite's plans say what it reads."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from database_fixtures import on_sqlite
from sqlalchemy import event
from sqlalchemy.engine import Engine

from loraplex.adapters.aliases import AdapterAliases
from loraplex.adapters.base_models import register_base_model
from loraplex.adapters.database import Database
from loraplex.adapters.errors import VersionInUse
from loraplex.adapters.quarantine import Quarantine
from loraplex.adapters.registry import AdapterRegistry
from loraplex.platform.tenants import TenantDirectory

pytestmark = [pytest.mark.anyio, on_sqlite]

ONE_ROW = {"registry_state", "audit_head"}


@pytest.fixture
async def statements(database: Database) -> AsyncIterator[list[tuple[str, tuple]]]:
    """What is sent to the database while the test runs, with its parameters."""
    sent: list[tuple[str, tuple]] = []

    def note(connection, cursor, statement, parameters, context, executemany):
        sent.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    yield sent
    event.remove(Engine, "before_cursor_execute", note)


async def test_no_whole_table_is_read_for_one_adapter(database, statements):
    """Neither for a page of a tenant's, nor to look for what somebody has left validating or who has some bytes."""
    registry, aliases = AdapterRegistry(database), AdapterAliases(database)
    await register_base_model(database, "base", "0" * 64, "hub:base")
    tenant = (await TenantDirectory(database).create_tenant("acme")).id
    await registry.create_adapter(tenant, "bot", "base")
    for digest in "abc":
        published = await registry.publish(
            tenant, "bot", digest=digest * 64, size_bytes=1, max_rank=8, targets=["q"], report=[]
        )
        await registry.settle(published, "ready")
    await registry.find_received(tenant, "bot", "f" * 64)
    await aliases.move(tenant, "bot", "prod", {1: 90, 2: 10})
    await aliases.move(tenant, "bot", "prod", {2: 1})
    await aliases.roll_back(tenant, "bot", "prod")
    await aliases.history(tenant, "bot", "prod")
    for selector in (None, "prod", "3"):
        await registry.resolve(tenant, "bot", selector)
    await registry.list_adapters(tenant, after="acme/a")
    await registry.get_report(tenant, "bot", 1)
    await registry.validating("base", timedelta(0))
    await registry.find_received(tenant, "bot", "f" * 64)
    await registry.others_have(tenant, "a" * 64)
    await Quarantine(database).begin("a" * 64, "bad")
    with pytest.raises(VersionInUse):
        await registry.delete_version(tenant, "bot", 1)
    await aliases.delete(tenant, "bot", "prod")
    await registry.delete_version(tenant, "bot", 1)
    await registry.delete_adapter(tenant, "bot")

    asked = [sent for sent in statements if sent[0].startswith(("SELECT", "UPDATE", "DELETE"))]
    assert len(asked) > 50
    searches = []
    for statement, parameters in asked:
        async with database.read() as session:
            connection = await session.connection()
            plan = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            steps = [text for *_, text in plan]
        assert {step.split()[1] for step in steps if step.startswith("SCAN")} <= ONE_ROW, statement
        assert not any(step.endswith("(state=?)") for step in steps), "all versions in a state are nearly all there are"
        searches += [step for step in steps if step.startswith("SEARCH adapters ")]
    assert any("(tenant_id=? AND name>?)" in search for search in searches), "a deep page begins where it begins"

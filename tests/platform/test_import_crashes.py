"""Acceptance: a server that dies at any step of an import leaves a job that ends well, once, with one version."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from api_running import run_api, stored_digests
from dying import STEPS, Death
from hub_server import COMMIT, running_hub

from loraplex.adapters.database import Database
from loraplex.adapters.import_leases import ImportLeases
from loraplex.adapters.schema import now
from loraplex.platform.imports import worker

pytestmark = pytest.mark.anyio

UNPINNED = ("import leased",)
SETTLED = ("import settled",)
PUBLISHED = ("import published", "import validated", *SETTLED)
LATER_COMMIT = COMMIT[::-1]


@pytest.mark.parametrize("step", [step for step in STEPS if step.startswith("import ")])
async def test_an_import_survives_the_death_of_its_server(
    step: str,
    database_url: str,
    database: Database,
    tmp_path: Path,
    tiny_model_dir: Path,
    make_adapter: Callable[..., Path],
    die: Callable[[Death], None],
) -> None:
    """Whole versions or none are to be seen after the crash; after the restart there is one, and the job succeeded.

    It is of the commit for which the branch stood when that was written down, though the branch has moved since."""
    first, second, newer = [make_adapter(tmp_path / f"rank-{rank}", rank=rank) for rank in (1, 2, 4)]
    with running_hub() as hub:
        hub.add("acme/bot", second)
        if step == "import downloading":
            hub.proceed.clear()
        death = Death(step, database_url, str(tmp_path), str(tiny_model_dir), str(first), str(second), hub.url)
        die(death)
        hub.proceed.set()
        hub.add("acme/bot", newer, LATER_COMMIT)

        answers = death.answers()
        async with run_api(database, tmp_path, tiny_model_dir, keys=answers["keys"], **death.settings) as api:
            services, acme = api.services, await api.tenant_id("acme")
            crashed = await services.imports.get(acme, answers["import"])
            versions = (await services.registry.get_adapter(acme, "bot")).versions
            assert (crashed.state, crashed.version) == (
                "succeeded" if step in SETTLED else "running",
                2 if step in PUBLISHED else None,
            )
            assert crashed.source == f"hf://acme/bot@{'main' if step in UNPINNED else COMMIT}"
            assert {version.digest for version in versions} <= stored_digests(services)
            assert len(versions) == (2 if step in PUBLISHED else 1)

            assert not await worker.run_next(services), "the lease of the dead server has not ended"
            later = replace(services, import_leases=ImportLeases(database, lambda: now() + timedelta(hours=1)))
            assert await worker.run_next(later) == (step not in SETTLED)
            assert not await worker.run_next(later)

            ended = await services.imports.get(acme, answers["import"])
            assert (ended.state, ended.version, ended.version_state, ended.error) == ("succeeded", 2, "ready", None)
            assert ended.attempt == (1 if step in SETTLED else 2)
            versions = (await services.registry.get_adapter(acme, "bot")).versions
            services.blobs.sweep(live := {version.digest for version in versions}, grace_seconds=-60)
            assert stored_digests(services) == live
            assert list((services.settings.adapters_dir / "staging").iterdir()) == []
            imported = await api.upload("acme", "bot", newer if step in UNPINNED else second)
            assert (imported.json()["version"], len(versions)) == (2, 2)

"""Acceptance: a server that dies at any step of an import leaves a job that ends well, once, with one version."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import crashing_import
import pytest
from api_running import make_services
from e2e.server import environment
from hub_server import COMMIT, running_hub

from loraplex.adapters.database import Database
from loraplex.adapters.import_leases import ImportLeases
from loraplex.adapters.schema import now
from loraplex.adapters.types import adapter_digest
from loraplex.platform.imports import worker
from loraplex.platform.services import Services

pytest_plugins = ["database_fixtures"]
pytestmark = pytest.mark.anyio

SETTLED = ("settled",)
PUBLISHED = ("published", "validated", *SETTLED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_adapter: Callable[..., Path]) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter"), rank=2, modules=["v_proj"])


@pytest.fixture(scope="module")
def program() -> Iterator[subprocess.Popen[str]]:
    path = crashing_import.__file__
    settings = environment() | {"PYTHONPATH": ":".join([str(Path(path).parent), *filter(None, sys.path)])}
    with subprocess.Popen(
        [sys.executable, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=settings
    ) as running:
        yield running
        assert running.stdin is not None
        running.stdin.close()


def stored_digests(services: Services) -> list[str]:
    """Of all blobs, each computed anew from its bytes."""
    digests = []
    for directory in services.settings.adapters_dir.glob("blobs/*/*"):
        stored = services.blobs.open(directory.name)
        digests.append(adapter_digest(stored.spec, hashlib.sha256(stored.weights_path.read_bytes()).hexdigest()))
        assert digests[-1] == directory.name
    return digests


@pytest.mark.parametrize("step", crashing_import.STEPS)
async def test_an_import_survives_the_death_of_its_server(
    step, database_url, database: Database, tmp_path, tiny_model_dir, folder, program
):
    """Whole versions or none are to be seen after the crash; after the restart there is one, and the job succeeded."""
    with running_hub() as hub:
        hub.add("acme/bot", folder)
        settings = {"import_sources": "hf://acme/", "hf_endpoint": hub.url}
        services = await make_services(database, tmp_path, tiny_model_dir, **settings)
        acme = (await services.tenants.create_tenant("acme")).id
        await services.registry.create_adapter(acme, "bot", "tiny")
        job = await services.imports.create(acme, "bot", f"hf://acme/bot@{COMMIT}", max_open=1, created_by=None)

        order = {"step": step, "database_url": database_url, "folder": str(tmp_path), "model": str(tiny_model_dir)}
        if step == "downloading":
            hub.proceed.clear()
        program.stdin.write(json.dumps(order | {"hub_url": hub.url}) + "\n")
        program.stdin.flush()
        assert int(program.stdout.readline()) == crashing_import.CRASHED
        hub.proceed.set()

        crashed = await services.imports.get(acme, job.id)
        versions = (await services.registry.get_adapter(acme, "bot")).versions
        assert (crashed.state, crashed.version) == (
            "succeeded" if step in SETTLED else "running",
            1 if step in PUBLISHED else None,
        )
        assert {version.digest for version in versions} <= set(stored_digests(services))
        assert len(versions) == (step in PUBLISHED)

        restarted = await make_services(database, tmp_path, tiny_model_dir, **settings)
        assert not await worker.run_next(restarted), "the lease of the dead server has not ended"
        later = replace(restarted, import_leases=ImportLeases(database, lambda: now() + timedelta(hours=1)))
        assert await worker.run_next(later) == (step not in SETTLED)
        assert not await worker.run_next(later)

        ended = await services.imports.get(acme, job.id)
        assert (ended.state, ended.version, ended.version_state, ended.error) == ("succeeded", 1, "ready", None)
        assert ended.attempt == (1 if step in SETTLED else 2)
        [version] = (await services.registry.get_adapter(acme, "bot")).versions
        services.blobs.sweep({version.digest}, grace_seconds=0)
        assert stored_digests(services) == [version.digest]
        assert list(tmp_path.glob("adapters/staging/*")) == []

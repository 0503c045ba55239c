"""A real engine behind its client, for tests to which it matters what an engine does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from itertools import count
from pathlib import Path

import pytest

from loraplex.engine.client import EngineClient
from loraplex.engine.settings import EngineSettings


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of APIs in front of `engine`: it reads adapters there."""
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="module")
async def engine(engine_dir: Path, tiny_model_dir: Path) -> AsyncIterator[EngineClient]:
    """One for all tests of a module, because it starts slowly: adapters of earlier tests are in its memory."""
    settings = EngineSettings(
        model_path=str(tiny_model_dir),
        adapter_blobs=str(engine_dir / "adapters"),
        kv_cache_bytes=16 << 20,
        adapter_device_bytes=16 << 20,
        kernels="reference",
    )
    client = await EngineClient.start(settings)
    yield client
    await client.stop()


@pytest.fixture(scope="session")
def new_seed() -> Callable[[], int]:
    """Seeds of adapters that no engine has seen."""
    return count(1000).__next__

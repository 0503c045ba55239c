"""A small adapter; a real engine behind its client, for tests to which it matters what one does; servers that die;
passwords that cost little."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from argon2.profiles import CHEAPEST
from dying import Death, dying_servers

from loraplex.engine.client import EngineClient
from loraplex.engine.settings import EngineSettings


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, make_adapter: Callable[..., Path]) -> Path:
    """A small adapter as PEFT saves it, to be copied or sent from there."""
    return make_adapter(tmp_path_factory.mktemp("adapter"), rank=2, modules=["q_proj", "v_proj"])


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
def die() -> Iterator[Callable[[Death], None]]:
    """Has a server die at a step."""
    with dying_servers() as die:
        yield die


@pytest.fixture(scope="session")
def new_seed() -> Callable[[], int]:
    """Seeds of adapters that no engine has seen."""
    return count(1000).__next__


@pytest.fixture(autouse=True)
def cheap_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """argon2id as it is, with the parameters that its library has for tests."""
    monkeypatch.setattr("loraplex.platform.passwords.PasswordHasher", lambda: PasswordHasher.from_parameters(CHEAPEST))

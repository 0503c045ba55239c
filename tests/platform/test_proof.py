"""No version serves before the engine has run it: what it finds is told, and what serves is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from api_running import Api, StandingEngine, ready_of, run_api
from database_fixtures import on_sqlite
from msgspec.structs import replace
from peft import TrainableTokensConfig
from peft_kinds import write
from safetensors.torch import load_file, save_file

from loraplex.adapters.database import Database
from loraplex.adapters.types import AdapterSpec
from loraplex.engine.client import EngineClient, EngineUnavailable, Generation
from loraplex.engine.messages import Generate
from loraplex.engine.models.config import ModelConfig, lora_shape
from loraplex.platform import validation
from loraplex.platform.proof import PROBES

pytestmark = pytest.mark.anyio

VERSIONS = "/api/v1/adapters/bot/versions"


@pytest.fixture
async def api(database: Database, engine_dir: Path, tiny_model_dir: Path, engine: EngineClient) -> AsyncIterator[Api]:
    """A real engine, and acme's `bot` without a version."""
    async with run_api(database, engine_dir, tiny_model_dir, engine=engine) as running:
        await running.client.post("/api/v1/adapters", json={"name": "bot"}, headers=running.auth("acme"))
        yield running


def scaled(folder: Path, factor: float) -> Path:
    """The adapter with every B multiplied."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor * (factor if "lora_B" in name else 1.0) for name, tensor in tensors.items()}, path)
    return folder


async def call(api: Api, model: str = "bot") -> Any:
    body = {"model": model, "prompt": "Hello", "max_tokens": 2}
    return await api.client.post("/v1/completions", json=body, headers=api.auth("acme"))


async def get(api: Api, path: str) -> Any:
    return (await api.client.get(path, headers=api.auth("acme"))).json()


async def test_a_version_is_ready_with_its_proof(
    api: Api, make_adapter: Callable[..., Path], tmp_path: Path, engine: EngineClient, new_seed: Callable[[], int]
) -> None:
    """201 when it has run; the report has norms by module, and an answer beside the base's. It is on the device."""
    folder = make_adapter(tmp_path / "peft", modules=("q_proj", "v_proj"), seed=new_seed())
    uploaded = await api.upload("acme", "bot", folder)
    assert (uploaded.status_code, uploaded.json()["state"]) == (201, "ready")
    statistics, proof = uploaded.json()["report"]
    assert statistics["share_of_modules"] == pytest.approx(2 / 7)
    assert len(statistics["norms"]) == statistics["modules"] == 4
    assert all(norm > 0 for module in statistics["norms"].values() for norm in module.values())
    assert (proof["code"], proof["prompts"]) == ("proof", len(PROBES))
    assert proof["answers_changed"] > 0
    assert proof["mean_first_logprob_change"] > 0
    assert proof["sample"]["base"] != proof["sample"]["adapter"]
    assert (await get(api, f"{VERSIONS}/1"))["report"] == [statistics, proof]
    assert uploaded.json()["digest"] in [adapter.digest for adapter in (await engine.inspect()).device]
    assert (await call(api)).json()["model"] == "acme/bot@1"


@pytest.mark.parametrize(("factor", "code"), [(1e-38, "no_effect"), (1e37, "not_finite")])
async def test_what_does_not_compute_is_rejected(
    api: Api, make_adapter: Callable[..., Path], tmp_path: Path, factor: float, code: str
) -> None:
    """With the reason, at upload and afterwards; the version before it goes on serving, alias or not."""
    assert (await api.upload("acme", "bot", make_adapter(tmp_path / "good"))).status_code == 201
    refused = await api.upload("acme", "bot", scaled(make_adapter(tmp_path / "bad", seed=2), factor))
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "adapter_invalid")
    assert [entry["code"] for entry in refused.json()["error"]["details"]] == [code]
    version = await get(api, f"{VERSIONS}/2")
    assert (version["state"], version["state_reason"]) == ("rejected", refused.json()["error"]["details"][0]["message"])
    assert version["report"][-1]["code"] == code
    assert (await call(api)).json()["model"] == "acme/bot@1"
    assert (await call(api, "bot@2")).status_code == 404
    moved = await api.client.put("/api/v1/adapters/bot/aliases/prod", json={"version": 2}, headers=api.auth("acme"))
    warmed = await api.client.post(f"{VERSIONS}/2/warm", headers=api.auth("acme"))
    for answer in (moved, warmed):
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "version_not_ready")


async def test_a_version_whose_validation_was_cut_short_is_taken_up(
    api: Api, make_adapter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """202 while the engine cannot say; later it becomes ready by itself, and serves."""
    prove = api.services.prover.prove

    async def unavailable(*_: Any) -> Any:
        raise EngineUnavailable("the engine is restarting")

    monkeypatch.setattr(api.services.prover, "prove", unavailable)
    waiting = await api.upload("acme", "bot", make_adapter(tmp_path / "peft"))
    assert (waiting.status_code, waiting.json()["state"]) == (202, "validating")
    assert (await call(api)).status_code == 404

    monkeypatch.setattr(api.services.prover, "prove", prove)
    monkeypatch.setattr(validation, "ABANDONED_AFTER", timedelta(seconds=-60))
    task = asyncio.create_task(validation.validate_abandoned(api.services))
    async with asyncio.timeout(60):
        while (await get(api, f"{VERSIONS}/1"))["state"] == "validating":  # noqa: ASYNC110 - what changes is a row
            await asyncio.sleep(0.02)
    task.cancel()
    assert (await call(api)).json()["model"] == "acme/bot@1"


async def test_a_version_whose_bytes_are_gone_is_rejected(
    api: Api, make_adapter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's own words are the reason."""
    proof = await api.services.prover.prove("0" * 64, AdapterSpec({}))
    assert [failure["code"] for failure in proof.failures] == ["cannot_run"]
    assert "upload it again" in proof.failures[0]["message"]


async def test_an_invocation_is_looked_for_in_the_prompt(
    api: Api, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    """Without it the base answers; with it the adapter does, on top of keys and values that the base has computed.

    The proof has it behind every probe: elsewhere the adapter would seem to change nothing."""
    folder = make_adapter(tmp_path / "peft", alora_invocation_tokens=[70, 71], std=0.5)
    uploaded = await api.upload("acme", "bot", folder)
    assert (uploaded.status_code, uploaded.json()["invocation_tokens"]) == (201, [70, 71])

    async def answer(model: str, prompt: list[int]) -> tuple[str, int]:
        body = {"model": model, "prompt": prompt, "max_tokens": 8, "temperature": 0}
        told = (await api.client.post("/v1/completions", json=body, headers=api.auth("acme"))).json()
        return told["choices"][0]["text"], told["usage"]["prompt_tokens_details"]["cached_tokens"]

    before = [3 + 7 * i % 60 for i in range(48)]
    base, _ = await answer("tiny", before)
    assert await answer("bot", before) == (base, 32)
    invoked, cached = await answer("bot", [*before, 70, 71])
    assert cached == 48
    assert invoked != (await answer("tiny", [*before, 70, 71]))[0]


OWN_TOKENS = [200, 7, 201]


class UntiedEngine(StandingEngine):
    """Its base has a head of its own: rows of the embedding do something only where a prompt has their tokens."""

    def generate(self, request: Generate) -> Generation:
        has_own = not {*OWN_TOKENS}.isdisjoint(request.prompt)
        return super().generate(request if has_own else replace(request, adapters=()))


@on_sqlite
async def test_rows_of_an_adapters_own_are_looked_for_in_the_prompt(
    database: Database, tmp_path: Path, tiny_model_dir: Path
) -> None:
    """The proof has their tokens behind every probe, which may be without them: else the adapter would seem to change
    nothing."""
    config = TrainableTokensConfig(token_indices=OWN_TOKENS, task_type="CAUSAL_LM")
    engine = UntiedEngine(ready_of(lora_shape(ModelConfig.from_folder(tiny_model_dir))))
    async with run_api(database, tmp_path / "data", tiny_model_dir, engine=engine) as api:
        await api.client.post("/api/v1/adapters", json={"name": "bot"}, headers=api.auth("acme"))
        uploaded = await api.upload("acme", "bot", write(tmp_path / "peft", tiny_model_dir, config, seed=1))
    assert (uploaded.status_code, uploaded.json()["state"]) == (201, "ready")


async def test_warming_brings_a_version_back_to_the_device(
    api: Api, make_adapter: Callable[..., Path], tmp_path: Path, engine: EngineClient
) -> None:
    """202 at once; unknown versions are 404."""
    digest = (await api.upload("acme", "bot", make_adapter(tmp_path / "peft"))).json()["digest"]
    warmed = await api.client.post(f"{VERSIONS}/1/warm", headers=api.auth("acme"))
    assert (warmed.status_code, warmed.json()["digest"]) == (202, digest)
    assert (await api.client.post(f"{VERSIONS}/9/warm", headers=api.auth("acme"))).status_code == 404
    assert digest in [adapter.digest for adapter in (await engine.inspect()).device]

"""Run a real engine inside the test process."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraplex.adapters.blobs import BlobStore
from loraplex.adapters.peft_checks import AdapterLimits, check_adapter
from loraplex.adapters.tokenizer_file import TokenizerDifference
from loraplex.adapters.types import BaseShape
from loraplex.engine.build import BuiltEngine, build_engine
from loraplex.engine.events import SamplingParams, TokenScore
from loraplex.engine.loop import Engine
from loraplex.engine.settings import EngineSettings

MAX_STEPS = 20_000


@dataclass
class Outcome:
    """Everything that one request was told."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    stopped_by: TokenScore | None = None
    prompt_scores: list[TokenScore] = field(default_factory=list)
    finish_reason: str | None = None
    cached_tokens: int = 0
    failure: tuple[str, str] | None = None
    embedding: bytes | None = None

    @property
    def ended(self) -> bool:
        return self.finish_reason is not None or self.failure is not None


def start_engine(model: Path, blobs: Path, **options: Any) -> BuiltEngine:
    """An engine with small memories; `options` are EngineSettings'."""
    defaults: dict[str, Any] = {"kv_cache_bytes": 64 << 20, "adapter_device_bytes": 64 << 20, "max_model_len": 512}
    return build_engine(EngineSettings(model_path=str(model), adapter_blobs=str(blobs), **defaults | options))


def store_adapter(blobs: Path, folder: Path, shape: BaseShape) -> str:
    """Check and store a PEFT folder as an upload would; its digest."""
    store = BlobStore(blobs)
    with store.stage() as staging:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            staging.path(name).write_bytes((folder / name).read_bytes())
        config, weights = staging.path("adapter_config.json"), staging.path("adapter_model.safetensors")
        tokenizer = TokenizerDifference(size=1)  # whatever the embedding's size is, this explains it
        checked = check_adapter(config, weights, shape, AdapterLimits(), tokenizer)
        return store.commit(staging, checked.spec, checked.weights_sha256)


def greedy(max_tokens: int, **options: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, **options)


def collect(
    engine: Engine, request_ids: Iterable[str], outcomes: dict[str, Outcome] | None = None
) -> dict[str, Outcome]:
    """Step until these requests have ended."""
    outcomes = outcomes if outcomes is not None else {}
    wanted = list(request_ids)
    for _ in range(MAX_STEPS):
        take(engine, outcomes)
        if all(request_id in outcomes and outcomes[request_id].ended for request_id in wanted):
            return outcomes
    raise AssertionError(f"not finished: {[r for r in wanted if r not in outcomes or not outcomes[r].ended]}")


def take(engine: Engine, outcomes: dict[str, Outcome]) -> None:
    """One step, its results added to the outcomes."""
    result = engine.step()
    if not result.ran:
        engine.wait(0.1)
    for chunk in result.chunks:
        outcome = outcomes.setdefault(chunk.request_id, Outcome())
        outcome.tokens.extend(chunk.token_ids)
        outcome.logprobs.extend(chunk.logprobs or [])
        outcome.scores.extend(chunk.scores or [])
        outcome.stopped_by = chunk.stopped_by
        outcome.prompt_scores.extend(chunk.prompt_scores or [])
        outcome.finish_reason = chunk.finish_reason
        outcome.cached_tokens = chunk.cached_tokens
        outcome.embedding = chunk.embedding
    for failure in result.failures:
        outcomes.setdefault(failure.request_id, Outcome()).failure = (failure.code, failure.message)

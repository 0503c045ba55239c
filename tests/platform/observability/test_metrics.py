"""Numbers for Prometheus: what is told of requests, of the engine, and under vLLM's names."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from api_running import IDLE, VERSION, StandingEngine, ready_of
from prometheus_client.parser import text_string_to_metric_families

from loraplex.adapters.database import Database
from loraplex.adapters.types import BaseShape
from loraplex.engine.events import STEP_SECONDS, Started
from loraplex.platform.catalog import ResolvedModel, WeightedVersion
from loraplex.platform.ledger.ledger import Ledger
from loraplex.platform.metrics import Metrics
from loraplex.platform.observability.in_hand import RequestsInHand
from loraplex.platform.observability.owners import Owner
from loraplex.platform.services import metrics_of
from loraplex.platform.settings import Settings
from loraplex.platform.tenants import Principal

PRINCIPAL = Principal(key_id="k1", tenant_id="t1", tenant="acme", scopes=frozenset(), salt=b"")
BOT = ResolvedModel("acme/bot@7", (WeightedVersion(VERSION, 1.0),))

Labels = tuple[tuple[str, str], ...]


@pytest.fixture
def engine() -> StandingEngine:
    return StandingEngine(ready_of(BaseShape("llama", 9, 1, ())))


def scraped(metrics: Metrics) -> dict[tuple[str, Labels], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    samples = (sample for family in families for sample in family.samples)
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}


def made(engine: StandingEngine, folder: Path, **settings: Any) -> Metrics:
    config = Settings(data_dir=folder, served_model_name="tiny", max_num_seqs=8, **settings)
    database = Database(f"sqlite:///{folder}/x.db")
    ledger = Ledger(folder / "ledger", database, max_bytes=1 << 20)
    return metrics_of(config, database, engine, ledger)  # type: ignore[arg-type]


def generation(*, runs: bool) -> Any:
    return SimpleNamespace(started=Started("r", 0.0, 0.0, {}) if runs else None)


def test_routers_find_vllms_names(engine: StandingEngine, tmp_path: Path) -> None:
    """The five that they need, as they need them."""
    engine.status = replace(IDLE, running=3, waiting=2, pages_used=16)
    told = scraped(made(engine, tmp_path))
    of_model = (("engine", "0"), ("model_name", "tiny"))
    assert told["vllm:num_requests_running", of_model] == 3
    assert told["vllm:num_requests_waiting", of_model] == 2
    assert told["vllm:kv_cache_usage_perc", of_model] == 0.25
    config = (("block_size", "16"), ("engine", "0"), ("num_gpu_blocks", "64"))
    assert told["vllm:cache_config_info", config] == 1


def test_a_scrape_has_one_sample_of_adapters_in_hand(engine: StandingEngine, tmp_path: Path) -> None:
    """Each adapter once, by its id; the value is the time. Whatever came before leaves no sample behind."""
    metrics = made(engine, tmp_path)
    name = "vllm:lora_requests_info"

    def adapters() -> tuple[Labels, float]:
        (sample,) = ((key[1], value) for key, value in scraped(metrics).items() if key[0] == name)
        return sample

    runs = [metrics.request_begun(PRINCIPAL, BOT, generation(runs=True)) for _ in range(2)]
    metrics.request_begun(PRINCIPAL, ResolvedModel("tiny"), generation(runs=False))
    before = time.time()
    labels, value = adapters()
    assert labels == (("max_lora", "8"), ("running_lora_adapters", "a1"), ("waiting_lora_adapters", ""))
    assert before - 1 <= value <= time.time() + 1
    for request in runs:
        metrics.request_finished("chat", "stop", 1, 0, 1, 0.1, 0.2, request)
    metrics.request_begun(PRINCIPAL, BOT, generation(runs=False))
    assert adapters()[0][1:] == (("running_lora_adapters", ""), ("waiting_lora_adapters", "a1"))


def test_vllms_names_are_our_facts(engine: StandingEngine, tmp_path: Path) -> None:
    """Histograms and reasons are those of our own metrics, in vLLM's words; or they are not told at all."""
    metrics = made(engine, tmp_path)
    metrics.request_finished("chat", "stop", 10, 4, 5, 0.1, 0.5)
    metrics.request_finished("completions", "client_closed", 10, 4, 0, None, 9.0)
    told = scraped(metrics)
    of_model = (("engine", "0"), ("model_name", "tiny"))
    assert told["vllm:time_to_first_token_seconds_bucket", (of_model[0], ("le", "0.1"), of_model[1])] == 1
    assert told["vllm:e2e_request_latency_seconds_sum", of_model] == 9.5
    reasons = {
        dict(labels)["finished_reason"]: value
        for (name, labels), value in told.items()
        if name == "vllm:request_success_total"
    }
    assert reasons == {"stop": 1, "length": 0, "abort": 1, "error": 0}
    assert b"vllm:" not in made(engine, tmp_path, vllm_metrics=False).render()


def test_the_histogram_of_steps_is_the_engines(engine: StandingEngine, tmp_path: Path) -> None:
    """Two steps of at most a millisecond, one that took longer than all bounds."""
    counts = (2, *(0,) * (len(STEP_SECONDS) - 1), 1)
    engine.status = replace(IDLE, step_seconds=11.5, steps_by_seconds=counts)
    told = scraped(made(engine, tmp_path))
    assert told["loraplex_step_seconds_bucket", (("le", "0.001"),)] == 2
    assert told["loraplex_step_seconds_bucket", (("le", "10.0"),)] == 2
    assert told["loraplex_step_seconds_count", ()] == 3
    assert told["loraplex_step_seconds_sum", ()] == 11.5


def test_of_an_engine_that_is_down_only_that_is_told(engine: StandingEngine, tmp_path: Path) -> None:
    """What it last said of itself is no longer so; before its first word there is nothing to tell."""
    metrics = made(engine, tmp_path)
    assert scraped(metrics)["loraplex_engine_up", ()] == 1
    engine.is_alive = False
    told = scraped(metrics)
    assert told["loraplex_engine_up", ()] == 0
    assert ("loraplex_running_sequences", ()) not in told
    engine.is_alive, engine.status = True, None
    assert ("loraplex_running_sequences", ()) not in scraped(metrics)


def test_the_age_of_the_queue_is_that_of_the_oldest() -> None:
    """Of those that were in no step."""
    now = 0.0
    in_hand = RequestsInHand(lambda: now)
    in_hand.add(Owner("t1", ()), generation(runs=True))
    now = 5.0
    in_hand.add(Owner("t1", ()), generation(runs=False))
    now = 12.0
    told = {(s.name, *s.labels.values()): s.value for family in in_hand.collect() for s in family.samples}
    assert told["loraplex_oldest_waiting_seconds",] == 7
    assert told["loraplex_requests_in_hand", "running"] == told["loraplex_requests_in_hand", "waiting"] == 1

"""Traces of requests, as a collector receives them; the engine's times are scripted."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from api_running import Api, StandingEngine, ready_of, run_api
from otlp_receiver import Receiver, receiving_traces

from loraplex.adapters.whereabouts import LoadTimes
from loraplex.engine.generation import GenerationFailed
from loraplex.engine.messages import Generate, Started
from loraplex.engine.models.config import ModelConfig, lora_shape
from loraplex.platform.observability.tracing import SequenceEnd, phases
from loraplex.platform.settings import Settings

pytestmark = pytest.mark.anyio

SECRET_PROMPT = "the prompt that nobody else may read"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class TimedEngine(StandingEngine):
    """Says that a sequence waited 0.02 s in the queue, and 0.03 s for its adapters. fails: says that it failed."""

    fails = False

    def generate(self, request: Generate) -> Any:
        generation = super().generate(request)
        loads = {use.digest: LoadTimes(0.01, 0.01, 0.03) for use in request.adapters}
        generation.started = Started(request.request_id, 0.02, 0.03, loads)
        if self.fails:
            generation.fail(GenerationFailed("adapter_load_failed", "gone"))
        return generation


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiving_traces() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=eu-1,deployment.environment.name=tests")
        yield receiver


@pytest.fixture
async def api(sqlite_database: Any, tmp_path: Path, tiny_model_dir: Path, receiver: Receiver) -> AsyncIterator[Api]:
    engine = TimedEngine(ready_of(lora_shape(ModelConfig.from_folder(tiny_model_dir))))
    async with run_api(sqlite_database, tmp_path, tiny_model_dir, engine=engine, traces=True) as running:
        yield running


async def ask(api: Api, **fields: Any) -> Any:
    headers = api.auth("acme") | {"traceparent": f"00-{TRACE}-{PARENT}-01"} | fields.pop("headers", {})
    body = {"model": "tiny", "messages": [{"role": "user", "content": SECRET_PROMPT}], "max_tokens": 3} | fields
    return await api.client.post("/v1/chat/completions", json=body, headers=headers)


async def sent(api: Api) -> None:
    """All that there is to be sent is."""
    await asyncio.to_thread(api.services.tracing.close)


async def test_a_request_is_part_of_its_callers_trace(api: Api, receiver: Receiver) -> None:
    """One tree from the HTTP request to the engine's phases, told by OTLP as the variables say; and no text in it."""
    response = await ask(api)
    assert response.status_code == 200, response.text
    await sent(api)
    (tree,) = receiver.trees().values()
    assert {span.trace_id for span in receiver.spans} == {TRACE}
    root, sequence = tree["POST /v1/chat/completions"], tree["chat tiny"]
    assert root.parent_id == PARENT
    assert {name for name, span in tree.items() if span.parent_id == root.span_id} == {
        "tokenise",
        "admission",
        "chat tiny",
    }
    assert {name for name, span in tree.items() if span.parent_id == sequence.span_id} == {"queue", "prefill", "decode"}
    assert root.attributes["http.response.status_code"] == 200
    assert root.attributes["http.route"] == "/v1/chat/completions"
    assert sequence.attributes["gen_ai.operation.name"] == "chat"
    assert sequence.attributes["gen_ai.response.id"] == response.json()["id"]
    assert sequence.attributes["gen_ai.response.finish_reasons"] == ["length"]
    usage = response.json()["usage"]
    assert sequence.attributes["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert sequence.attributes["gen_ai.usage.output_tokens"] == usage["completion_tokens"] == 1
    assert receiver.resource["service.name"] == "eu-1"
    assert receiver.resource["deployment.environment.name"] == "tests"
    secrets = (SECRET_PROMPT, *api.keys.values())
    assert not any(secret.encode() in receiver.raw for secret in secrets)


async def test_the_engines_times_are_in_the_trace(api: Api, receiver: Receiver) -> None:
    """The queue is as long as the engine says, and follows what it waited for."""
    await ask(api)
    await sent(api)
    (tree,) = receiver.trees().values()
    assert tree["queue"].end - tree["queue"].start == pytest.approx(0.02, abs=1e-5)
    assert tree["queue"].start - tree["chat tiny"].start == pytest.approx(0.03, abs=0.02)
    assert tree["prefill"].start == pytest.approx(tree["queue"].end, abs=1e-6)


async def test_each_choice_is_a_sequence(api: Api, receiver: Receiver) -> None:
    """Of a stream too, whose sequences end after the handler."""
    response = await ask(api, n=3, stream=True)
    assert response.text.endswith("data: [DONE]\n\n")
    await sent(api)
    assert sum(span.name == "chat tiny" for span in receiver.spans) == 3
    assert sum(span.name == "decode" for span in receiver.spans) == 3


async def test_what_failed_is_marked(api: Api, receiver: Receiver) -> None:
    """By the code of the error, whether the request was refused or the engine failed it."""
    assert (await ask(api, model="acme/none")).status_code == 404
    engine = api.services.engine
    assert isinstance(engine, TimedEngine)
    engine.fails = True
    assert (await ask(api)).status_code == 503
    await sent(api)
    roots = [span for span in receiver.spans if span.name.startswith("POST")]
    assert [(span.attributes["error.type"], span.is_error) for span in roots] == [
        ("model_not_found", False),
        ("adapter_load_failed", True),
    ]
    assert [span.is_error for span in receiver.spans if span.name == "chat tiny"] == [True]


async def test_the_caller_decides_whether_it_is_sampled(api: Api, receiver: Receiver) -> None:
    """By the last number of its `traceparent`; a header that is none starts a trace of its own."""
    await ask(api, headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    await ask(api, headers={"traceparent": "nonsense"})
    await api.client.get("/v1/models", headers=api.auth("acme"))
    await sent(api)
    (trace,) = receiver.trees()
    assert trace != TRACE


def test_phases_follow_each_other() -> None:
    """Load, queue, prefill, decode; what did not come to pass is left out."""
    started = Started("r", 2.0, 3.0, {"d": LoadTimes(1, 1, 3)})
    whole = list(phases(10.0, SequenceEnd("stop", 0, 5, started, 16.0, 20.0)))
    assert whole == [("adapter load", 10, 13), ("queue", 13, 15), ("prefill", 15, 16), ("decode", 16, 20)]
    warm = list(phases(10.0, SequenceEnd("client_closed", 0, 0, Started("r", 2.0, 0.0, {}), None, 13.0)))
    assert warm == [("queue", 10, 12), ("prefill", 12, 13)]
    assert list(phases(10.0, SequenceEnd("error", 0, 0, None, None, 13.0))) == [("queue", 10, 13)]


def test_without_the_setting_nothing_is_imported() -> None:
    """A server that sends no traces does not pay for them."""
    code = (
        "import sys, loraplex.platform.server; print([m for m in sys.modules if m.startswith('opentelemetry.sdk') "
        "or m.startswith('opentelemetry.exporter')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_protocol_that_is_not_spoken_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, and not by silence."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    assert Settings().traces is False
    with pytest.raises(ValueError, match="OTEL_EXPORTER_OTLP_PROTOCOL has to be http/protobuf"):
        Settings(traces=True)

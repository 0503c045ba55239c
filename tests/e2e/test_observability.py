"""A server as an operator watches it: metrics on a port of their own, traces at a collector, a log to search."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from e2e.server import BASE, running_server
from otlp_receiver import receiving_traces


def test_an_operator_can_follow_a_request(
    tiny_model_dir: Path, make_adapter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request is in the metrics by its names, in the log by its ids, and in a trace from the client into the engine;
    the last of it is sent when the server stops. Its key is in none of them."""
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    variables = {"traces": "true", "metrics_owner_labels": "names"}
    options = {"served_model_name": BASE, "metrics_port": 0, "log_format": "json", "kv_cache_bytes": 16 << 20}
    with receiving_traces() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        with running_server(tiny_model_dir, tmp_path / "data", variables, **options) as server:
            key = server.create_tenant("acme")
            adapter = make_adapter(tmp_path / "adapter", rank=2, modules=("q_proj",), seed=71)
            server.upload(key, "bot", adapter)
            with server.http(key) as client:
                body = {"model": "bot", "prompt": "hello", "max_tokens": 4}
                headers = {"traceparent": f"00-{trace}-{parent}-01"}
                answer = client.post("/v1/completions", json=body, headers=headers)
                assert answer.status_code == 200, answer.text
                assert client.get("/metrics").status_code == 404
            log = server.log.read_text()
            metrics = httpx.get(re.findall(r"Metrics: (\S+)", log)[0]).text
            assert server.stop() == 0
            log = server.log.read_text()

    assert 'loraplex_tenant_requests_total{tenant="acme"} 1.0' in metrics
    assert 'loraplex_adapter_tokens_total{adapter="acme/bot",kind="completion",tenant="acme"} 4.0' in metrics
    assert len(re.findall(r"^vllm:lora_requests_info\{", metrics, re.MULTILINE)) == 1
    assert f'vllm:request_success_total{{engine="0",finished_reason="length",model_name="{BASE}"}} 1.0' in metrics
    assert "process_resident_memory_bytes" in metrics

    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    (line,) = [line for line in lines if line["event"] == "request" and line["route"] == "/v1/completions"]
    assert line["trace_id"] == trace
    assert line["request_id"] == answer.headers["x-request-id"]

    spans = receiver.trees()[trace]
    assert spans["POST /v1/completions"].parent_id == parent
    assert {"tokenise", "admission", "text_completion acme/bot@1", "queue", "prefill", "decode"} <= set(spans)
    assert spans["text_completion acme/bot@1"].attributes["gen_ai.usage.output_tokens"] == 4
    assert spans["decode"].end >= spans["prefill"].end >= spans["queue"].end

    for secret in (key, server.admin_key):
        assert secret not in log
        assert secret not in metrics
        assert secret.encode() not in receiver.raw

"""What load balancers, Prometheus and support see: health, metrics, request ids, logs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from api_running import Api, StandingEngine, run_api

from loraplex import __version__
from loraplex.adapters.database import Database
from loraplex.platform.metrics import Metrics

pytestmark = pytest.mark.anyio


@pytest.fixture
async def api(database: Database, tmp_path: Path, tiny_model_dir: Path) -> AsyncIterator[Api]:
    async with run_api(database, tmp_path, tiny_model_dir) as running:
        yield running


def engine_of(api: Api) -> StandingEngine:
    assert isinstance(api.services.engine, StandingEngine)
    return api.services.engine


async def test_a_server_with_a_running_engine_is_ready(api: Api) -> None:
    """Live and ready, without a key; /health is the name that others use."""
    for path in ("/livez", "/readyz", "/health", "/ping"):
        response = await api.client.get(path)
        assert (response.status_code, response.json()) == (200, {"status": "ok", "reason": None})
    assert (await api.client.post("/ping", content=b"anything")).status_code == 200
    assert (await api.client.get("/version")).json() == {"version": __version__}


async def test_a_dead_engine_makes_unready_but_not_dead(api: Api) -> None:
    """While the engine restarts, requests go elsewhere and nobody kills the API for it."""
    engine_of(api).is_alive = False
    assert (await api.client.post("/ping")).status_code == 503
    response = await api.client.get("/readyz")
    assert (response.status_code, response.json()["reason"]) == (503, "the engine is restarting")
    assert (await api.client.get("/livez")).status_code == 200


async def test_a_silent_engine_makes_unready(api: Api) -> None:
    """An engine process that is there but whose step loop hangs is found out."""
    engine_of(api).progress_at -= api.services.settings.engine_stall_seconds + 1
    response = await api.client.get("/readyz")
    assert response.status_code == 503
    assert "no progress" in response.json()["reason"]


async def test_draining_refuses_new_inference_only(api: Api) -> None:
    """After SIGTERM: not ready, 503 `draining` for inference, management and liveness go on."""
    api.drain.set()
    assert (await api.client.get("/readyz")).status_code == 503
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
    response = await api.client.post("/v1/chat/completions", json=body, headers=api.auth("acme"))
    assert (response.status_code, response.json()["error"]["code"]) == (503, "draining")
    assert response.headers["retry-after"] == "5"
    assert (await api.client.get("/api/v1/adapters", headers=api.auth("acme"))).status_code == 200
    assert (await api.client.get("/livez")).status_code == 200


async def test_metrics_count_responses_by_template_and_name_no_tenant(api: Api) -> None:
    """Prometheus sees the engine and every status; no path, tenant or adapter name becomes a label."""
    await api.client.post("/api/v1/adapters", json={"name": "secret-bot"}, headers=api.auth("acme"))
    await api.client.get("/api/v1/adapters/secret-bot", headers=api.auth("acme"))
    await api.client.get("/no/such/path")
    api.services.metrics.request_finished("chat", "stop", 10, 4, 5, 0.1, 0.5)
    text = (await api.client.get("/metrics")).text
    assert 'loraplex_http_requests_total{method="GET",route="/api/v1/adapters/{name}",status="200"} 1.0' in text
    assert 'route="unmatched",status="404"' in text
    assert 'loraplex_requests_total{endpoint="chat",finish_reason="stop"} 1.0' in text
    assert 'loraplex_tokens_total{kind="cached"} 4.0' in text
    assert "loraplex_steps_total 7.0" in text
    assert "loraplex_kv_pages 64.0" in text
    assert not any(name in text for name in ("secret-bot", "acme", "globex"))


def test_time_per_token_is_the_mean_after_the_first() -> None:
    """5 tokens, the first after 0.1 s and the last after 0.5 s: 0.1 s a token. No token: no such time."""
    metrics = Metrics()
    metrics.request_finished("chat", "stop", 1, 0, 5, 0.1, 0.5)
    metrics.request_finished("chat", "abort", 1, 0, 0, None, 3.0)
    text = metrics.render().decode()
    assert "loraplex_time_per_output_token_seconds_sum 0.1\n" in text
    assert "loraplex_time_to_first_token_seconds_count 1.0" in text
    assert "loraplex_request_duration_seconds_count 2.0" in text


@pytest.mark.parametrize("path", ["/livez", "/v1/models", "/no/such/path"])
async def test_every_response_has_an_id(api: Api, path: str) -> None:
    """The client's id where it is harmless, else one of ours; on errors and unknown paths too."""
    given = await api.client.get(path, headers={"x-request-id": "trace-1.a_B"})
    assert given.headers["x-request-id"] == "trace-1.a_B"
    for bad in ("a b", "x" * 129, "<script>", "\u00e9"):
        made = await api.client.get(path, headers={"x-request-id": bad.encode()})
        assert made.headers["x-request-id"].startswith("req_")
        assert len(made.headers.get_list("x-request-id")) == 1


async def test_unknown_paths_and_methods_have_the_one_error_shape(api: Api) -> None:
    """404 and 405 carry OpenAI's envelope, not the framework's."""
    for method, path, status, code in (
        ("GET", "/nope", 404, "unknown_url"),
        ("GET", "/v1/nope", 404, "unknown_url"),
        ("PATCH", "/v1/models", 405, "method_not_allowed"),
    ):
        response = await api.client.request(method, path, headers=api.auth("acme"))
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)

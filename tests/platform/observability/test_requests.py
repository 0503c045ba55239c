"""What is seen of a request beside its answer: its line in the log, its counters, and where metrics are served."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from api_running import Api, run_api
from structlog.testing import LogCapture

from loraplex.platform.limits.rules import TenantLimits
from loraplex.platform.metrics import Metrics
from loraplex.platform.observability.metrics_listener import serving_metrics
from loraplex.platform.server import bind

pytestmark = pytest.mark.anyio

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lines that are logged, with what is bound to the request."""
    capture = LogCapture()
    # A logger keeps the configuration under which it was used first.
    monkeypatch.setattr("loraplex.platform.observability.requests.logger", structlog.get_logger())
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, capture], cache_logger_on_first_use=False)
    yield capture.entries
    structlog.reset_defaults()


@pytest.fixture
async def api(sqlite_database: Any, tmp_path: Path, tiny_model_dir: Path) -> AsyncIterator[Api]:
    limits = TenantLimits(requests_per_minute=1)
    async with run_api(sqlite_database, tmp_path, tiny_model_dir, tenant_limits=limits, metrics_port=0) as running:
        yield running


def of_requests(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == "request"]


async def test_a_request_is_one_line(api: Api, lines: list[dict[str, Any]]) -> None:
    """Of whom by ids, and nothing that the client wrote but the id that it gave; of a stream when it has ended."""
    headers = api.auth("acme") | {"x-request-id": "mine-1", "user-agent": "curl"}
    response = await api.client.post("/v1/chat/completions?a=b", json=CHAT | {"stream": True}, headers=headers)
    assert response.status_code == 200
    (line,) = of_requests(lines)
    assert line.pop("seconds") >= 0
    assert line.pop("key_id") in api.keys["acme"]
    assert line == {
        "event": "request", "log_level": "info", "method": "POST", "route": "/v1/chat/completions", "status": 200,
        "request_id": "mine-1", "code": None, "tenant_id": await api.tenant_id("acme"),
    }  # fmt: skip


async def test_probes_and_paths_that_are_none_are_told_at_debug(api: Api, lines: list[dict[str, Any]]) -> None:
    """Else they would be most of the log."""
    await api.client.get("/livez")
    await api.client.get("/no/such/path")
    assert [(line["log_level"], line["route"], line["status"]) for line in of_requests(lines)] == [
        ("debug", "/livez", 200),
        ("debug", "unmatched", 404),
    ]


async def test_refusals_are_counted_by_limit_and_code(api: Api) -> None:
    """Whose limit it was is told by its kind, not by its name."""
    for status in (200, 429):
        response = await api.client.post("/v1/chat/completions", json=CHAT, headers=api.auth("acme"))
        assert response.status_code == status
    told = api.services.metrics.render().decode()
    assert 'loraplex_limited_requests_total{limit="requests_per_minute",owner="tenant"} 1.0' in told
    assert 'loraplex_errors_total{code="rate_limit_exceeded",status="429"} 1.0' in told


async def test_with_a_port_of_their_own_metrics_are_there_alone(api: Api) -> None:
    """The main port has none; the other has nothing else, and tells of tenants by ids."""
    await api.client.post("/v1/chat/completions", json=CHAT, headers=api.auth("acme"))
    assert (await api.client.get("/metrics")).status_code == 404
    listener = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with serving_metrics(api.services.metrics, listener), httpx.AsyncClient(base_url=url) as client:
        response = await client.get("/metrics")
        assert (await client.get("/livez")).status_code == 404
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert f'loraplex_tenant_requests_total{{tenant="{await api.tenant_id("acme")}"}} 1.0' in response.text
    assert "acme" not in response.text
    assert api.services.metrics.in_hand.adapters(running=True) == []


async def test_without_a_listener_nothing_is_served() -> None:
    """The default."""
    async with serving_metrics(Metrics(), None):
        pass

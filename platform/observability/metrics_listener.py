"""`/metrics` on an address of its own, which operators keep to themselves. Knows metrics; knows no server beside it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import uvicorn
from litestar import Litestar, Response, get
from litestar.types import ASGIApp

from loraplex.platform.http_protocol import BoundedHttpToolsProtocol
from loraplex.platform.metrics import CONTENT_TYPE, Metrics

CLOSE_SECONDS = 2


class _Server(uvicorn.Server):
    """Signals are the main server's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serving_metrics(metrics: Metrics, listener: socket.socket | None) -> AsyncIterator[None]:
    """As long as the block runs. listener: bound; None: nothing is served."""
    if listener is None:
        yield
        return
    config = uvicorn.Config(
        metrics_app(metrics),
        http=BoundedHttpToolsProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=CLOSE_SECONDS,
    )
    server = _Server(config)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await running


def metrics_app(metrics: Metrics) -> ASGIApp:
    """Of one path."""

    @get("/metrics", media_type="text/plain")
    async def scrape() -> Response[bytes]:
        return Response(metrics.render(), media_type=CONTENT_TYPE)

    return Litestar([scrape], openapi_config=None, logging_config=None)

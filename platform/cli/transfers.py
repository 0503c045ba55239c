"""How work on its way is shown: a bar for each part of it on stderr, so that stdout has the outcome alone."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)


def transfer_progress() -> Progress:
    """Name or state, bar, bytes of all bytes, speed. Where stderr is no terminal, it is drawn once, at the end."""
    return _progress(DownloadColumn(), TransferSpeedColumn())


def count_progress() -> Progress:
    """State, bar, done of all, time; drawn as `transfer_progress` is."""
    return _progress(MofNCompleteColumn(), TimeElapsedColumn())


def _progress(*columns: ProgressColumn) -> Progress:
    text = TextColumn("{task.description}", markup=False)  # it may quote what people wrote
    return Progress(text, BarColumn(), *columns, console=Console(stderr=True))

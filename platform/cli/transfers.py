"""How files on their way are shown: a bar for each on stderr, so that stdout has the outcome alone."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn


def transfer_progress() -> Progress:
    """Name or state, bar, bytes of all bytes, speed. Where stderr is no terminal, it is drawn once, at the end."""
    text = TextColumn("{task.description}", markup=False)  # it may quote what people wrote
    columns = [text, BarColumn(), DownloadColumn(), TransferSpeedColumn()]
    return Progress(*columns, console=Console(stderr=True))

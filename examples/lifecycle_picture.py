"""What users saw while versions changed, as a picture in the terminal: a row a second, and then the sums.

Knows records and words. Judges nothing.
"""

from __future__ import annotations

import asyncio
import statistics
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from live_traffic import Record, Traffic
from rich.console import Console
from rich.markup import escape
from rich.table import Table

BAR_CHARS = 30
MARKS = {1: ("█", "cyan"), 2: ("▒", "magenta")}


class Picture:
    """`tell` adds what the operator did to the row of the second in which it happened."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told: list[str] = []
        self._second = self._records = self._failures = 0

    def tell(self, words: str) -> None:
        self._told.append(words)

    @asynccontextmanager
    async def following(self, traffic: Traffic) -> AsyncIterator[None]:
        """While the block runs, a row a second of the answers that ended in it."""
        key = "  ".join(f"[{colour}]{mark * 3}[/] version {number}" for number, (mark, colour) in MARKS.items())
        self._console.print(f"\nShare of each version in a second's answers:  {key}\n")
        self._console.print(f"[bold]second  {'':{BAR_CHARS}}  answers  failed  the operator[/]")
        drawing = asyncio.create_task(self._draw(traffic))
        try:
            yield
        finally:
            drawing.cancel()
            await asyncio.gather(drawing, return_exceptions=True)
            self._draw_row(traffic)

    async def _draw(self, traffic: Traffic) -> None:
        while True:
            await asyncio.sleep(1)
            self._draw_row(traffic)

    def _draw_row(self, traffic: Traffic) -> None:
        """What is new since the row before."""
        self._second += 1
        new, failed = traffic.records[self._records :], len(traffic.failures) - self._failures
        self._records, self._failures = len(traffic.records), len(traffic.failures)
        told, self._told = "; ".join(self._told), []
        row = f"{self._second:>6}  {bar(new)}  {len(new):>7}  {failed:>6}  {escape(told)}"
        self._console.print(row, highlight=False, soft_wrap=True, style="red" if failed else "")


def bar(records: Sequence[Record]) -> str:
    """BAR_CHARS wide; blank where there were no answers. A version with any answer has at least one character."""
    counts = Counter(record.version for record in records)
    if not counts:
        return " " * BAR_CHARS
    widths = {number: max(1, round(BAR_CHARS * counts[number] / len(records))) for number in counts}
    most = max(widths, key=widths.__getitem__)
    widths[most] += BAR_CHARS - sum(widths.values())
    return "".join(f"[{MARKS[number][1]}]{MARKS[number][0] * widths[number]}[/]" for number in sorted(widths))


def sums(traffic: Traffic) -> Table:
    """A row for each phase, and one for all answers that were under way when what the name stands for changed."""
    table = Table(title="\nWho answered, phase by phase", title_justify="left")
    table.add_column("phase", no_wrap=True)
    for heading in ("answers", "version 1", "version 2", "users", "users of version 2", "TTFT p50"):
        table.add_column(heading, justify="right")
    for phase in (*traffic.phases, ""):
        own = [record for record in traffic.records if record.phase == phase]
        if own:
            table.add_row(phase or "at a change", *cells(own))
    return table


def cells(records: Sequence[Record]) -> list[str]:
    versions = Counter(record.version for record in records)
    users = {record.user for record in records}
    of_second = {record.user for record in records if record.version == 2}
    return [
        str(len(records)),
        f"{versions[1] / len(records):.0%}",
        f"{versions[2] / len(records):.0%}",
        str(len(users)),
        f"{len(of_second)} ({len(of_second) / len(users):.0%})",
        f"{statistics.median(record.first_token_seconds for record in records) * 1e3:.0f} ms",
    ]

"""Frames of the live engine as text: a few lines of numbers, then lanes, queues and adapters as far as they fit."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from loraplex.platform.live.frame import Adapter, Event, Frame, Lane, Queue, Step

COLOURS = ("cyan", "yellow", "magenta", "green", "blue", "red", "bright_cyan", "bright_yellow", "bright_magenta")
HEAD_LINES = 7
BAR_CHARS = 24
TICKS = 24
MOST_LANES = 64
MOST_EVENTS = 3


class Screen:
    """What there is to see, after each frame."""

    def __init__(self) -> None:
        self._frame: Frame | None = None
        self._before: Frame | None = None
        self._events: list[Event] = []

    def take(self, frame: Frame) -> None:
        self._before, self._frame = self._frame, frame
        self._events = [*self._events, *frame.events][-MOST_EVENTS:]

    def render(self, width: int, height: int | None) -> RenderableType:
        """height: lines there are room for; None: as many as are needed."""
        frame = self._frame
        if frame is None:
            return Text("Waiting for the engine.")
        if frame.engine == "down" or frame.totals is None:
            return Text("The engine does not answer. It is started again if it has died.", "red")
        room = MOST_LANES if height is None else max(height - HEAD_LINES - len(self._events), 1)
        queues = frame.queues[: max(room // 4, 1)]
        lanes = room - (len(queues) + 1 if queues else 0)
        parts: list[RenderableType] = [*self._head(frame), _lanes(frame, width, max(lanes, 1))]
        if queues:
            parts += [Text("waiting", "dim"), *map(_queue, queues)]
        parts += [_event(event) for event in self._events]
        return Group(*parts)

    def _head(self, frame: Frame) -> list[Text]:
        assert frame.totals is not None
        totals, bounds = frame.totals, frame.bounds
        device = _megabytes(totals.device_bytes, bounds.device_bytes)
        host = _megabytes(totals.host_bytes, bounds.host_bytes)
        return [
            Text(
                f"{frame.base_model}  running {totals.running}/{bounds.sequences}  waiting {totals.waiting}  "
                f"{self._tokens_per_second(frame):.0f} tok/s  step {_steps(frame.steps)}",
                "bold",
            ),
            _bar("KV pages", totals.pages_used, bounds.pages, f"{totals.pages_used}/{bounds.pages}"),
            _bar("adapters", totals.device_bytes, bounds.device_bytes, device),
            _bar("host", totals.host_bytes, bounds.host_bytes, host),
            _adapters(frame),
        ]

    def _tokens_per_second(self, frame: Frame) -> float:
        before = self._before
        if before is None or before.totals is None or frame.totals is None or frame.at <= before.at:
            return 0.0
        written = frame.totals.generated_tokens - before.totals.generated_tokens
        return max(written, 0) / (frame.at - before.at)


def _steps(steps: list[Step]) -> str:
    """What they took and held, in the mean."""
    if not steps:
        return "-"
    spent = sum(step.schedule_ms + step.execute_ms + step.commit_ms for step in steps)
    return f"{spent / len(steps):.1f} ms, {sum(step.adapters for step in steps) / len(steps):.1f} adapters"


def _lanes(frame: Frame, width: int, most: int) -> RenderableType:
    if not frame.lanes:
        return Text("Nothing runs.", "dim")
    table = Table(box=None, padding=(0, 1, 0, 0), show_edge=False, header_style="dim", width=width)
    table.add_column("model", no_wrap=True, ratio=2, overflow="ellipsis")
    wide = width >= 100
    if wide:
        table.add_column("", no_wrap=True, ratio=1)
    for name in ("in", "out", "pages", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    hidden = len(frame.lanes) - most + 1 if len(frame.lanes) > most else 0
    for lane in frame.lanes[: most - 1 if hidden else most]:
        style = _style(lane.key)
        cells = [Text(f"■ {lane.model}", style), *([Text(_progress(lane), style)] if wide else [])]
        table.add_row(*cells, *map(str, (lane.prompt, lane.generated, lane.pages)), f"{lane.age:.1f} s")
    return Group(table, Text(f"and {hidden} more", "dim")) if hidden else table


def _progress(lane: Lane) -> str:
    """A prompt that is being read as hatching, tokens that are written as ticks."""
    if lane.computed < lane.prompt:
        return "▨" * max(round(TICKS * lane.computed / lane.prompt), 1)
    return "|" * (1 + (lane.generated - 1) % TICKS)


def _queue(queue: Queue) -> Text:
    counter = "" if queue.counter is None else f"  counter {queue.counter:.0f}"
    return Text(
        f"{queue.waiting:>4}  {queue.model}  oldest {queue.oldest:.1f} s{counter}",
        _style(queue.key),
        no_wrap=True,
        overflow="ellipsis",
    )


def _adapters(frame: Frame) -> Text:
    text = Text("device    ", no_wrap=True, overflow="ellipsis")
    shown = [adapter for adapter in frame.adapters if adapter.tier in ("device", "loading")]
    for adapter in sorted(shown, key=lambda adapter: -adapter.leases):
        text.append(_adapter(adapter), _style(adapter.key)).append("  ")
    return text


def _adapter(adapter: Adapter) -> str:
    name = adapter.names[0] if adapter.names else adapter.key
    marks = [f"x{adapter.leases}"] * bool(adapter.leases) + ["pinned"] * bool(adapter.pins)
    return " ".join([name, *marks, *(["loading"] if adapter.tier == "loading" else [])])


def _event(event: Event) -> Text:
    told = {
        "load": f"load      {event.name}" + (f" {event.ms.total:.1f} ms" if event.ms else ""),
        "eviction": f"eviction  {event.name}",
        "preemption": f"preempted {event.count} sequences",
        "restart": "the engine is up",
        "down": "the engine is down",
    }
    return Text(told[event.kind], "dim", no_wrap=True, overflow="ellipsis")


def _bar(label: str, used: float, whole: float, text: str) -> Text:
    filled = round(BAR_CHARS * min(used / whole, 1)) if whole else 0
    return Text(f"{label:<10}[{'#' * filled}{'.' * (BAR_CHARS - filled)}] {text}", no_wrap=True, overflow="ellipsis")


def _megabytes(used: int, whole: int) -> str:
    return f"{used / 1e6:.1f}/{whole / 1e6:.0f} MB"


def _style(key: str) -> str:
    return COLOURS[int(key[:8], 16) % len(COLOURS)] if key else "default"

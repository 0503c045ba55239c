"""`loraplex top`: the live engine in a terminal. Follows the feed; what a frame looks like knows `top_view`."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Generator
from contextlib import closing

import click
import httpx
import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from loraplex.platform.cli.remote import refusal, server_options
from loraplex.platform.cli.top_view import Screen
from loraplex.platform.live.frame import Frame

FEED = "/api/v1/admin/engine/live"
RETRY_SECONDS = 2.0
SILENT_SECONDS = 20.0
FIRST_FRAMES = 2
"""Of which `--once` shows the last: rates need two."""

_decoder = msgspec.json.Decoder(Frame)


@click.command()
@click.option("--once", is_flag=True, help="Print one picture and leave, for scripts.")
@click.option("--no-color", is_flag=True, help="No colours; NO_COLOR does the same.")
@server_options
def top(client: httpx.Client, once: bool, no_color: bool) -> None:
    """Watch the engine: who runs in the batch, memory, adapters, queues and steps. Needs an operator's key.

    Ctrl-C leaves. The same on a page, with more to see: /admin/live.
    """
    size = shutil.get_terminal_size()
    console = Console(no_color=no_color or None, highlight=False, width=None if os.isatty(1) else max(size.columns, 80))
    screen = Screen()
    if once:
        with closing(_frames(client)) as frames:
            for _ in range(FIRST_FRAMES):
                screen.take(next(frames))
        console.print(screen.render(console.width, None))
        return
    try:
        _watch(client, console, screen)
    except KeyboardInterrupt:
        return


def _watch(client: httpx.Client, console: Console, screen: Screen) -> None:
    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        while True:
            try:
                for frame in _frames(client):
                    screen.take(frame)
                    live.update(screen.render(console.width, console.height), refresh=True)
            except httpx.TransportError as error:
                why = Text(f"No connection: {str(error) or type(error).__name__}. Trying again.", "red")
                live.update(Group(why, screen.render(console.width, console.height - 1)), refresh=True)
                time.sleep(RETRY_SECONDS)


def _frames(client: httpx.Client) -> Generator[Frame, None, None]:
    """Until the stream ends, which it does every minute. Raises click.ClickException where it is refused."""
    timeout = httpx.Timeout(SILENT_SECONDS, connect=10)
    with client.stream("GET", FEED, timeout=timeout) as response:
        if response.is_error:
            response.read()
            raise refusal(response)
        event = "message"
        for line in response.iter_lines():
            if line.startswith("event: "):
                event = line[7:]
            elif line.startswith("data: ") and event == "message":
                yield _decode(line[6:])
            elif line.startswith("data: ") and event == "error":
                raise httpx.RemoteProtocolError(line[6:])
            elif not line:
                event = "message"


def _decode(data: str) -> Frame:
    try:
        return _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise click.ClickException(f"this server's frames are not those of this release: {error}") from error

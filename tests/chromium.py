"""A Chromium that is found on the system, driven by playwright, and the application of a test behind a real socket.

Where there is none, its tests are skipped, but failed when CI=true.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import uvicorn
from axe_playwright_python.async_playwright import Axe
from litestar import Litestar
from playwright.async_api import Browser, Page, async_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium() -> str | None:
    """The program at CHROMIUM, or one of the usual names."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@asynccontextmanager
async def running_chromium() -> AsyncIterator[Browser]:
    program = find_chromium()
    if program is None:
        refuse = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        refuse("no Chromium: install Debian's chromium, or set CHROMIUM to a program")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        await browser.close()


@asynccontextmanager
async def listening(app: Litestar, port: int = 0) -> AsyncIterator[str]:
    """The application on this machine, on a free port where none is named; its URL."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on", timeout_graceful_shutdown=1))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await serving


@dataclass
class Tab:
    """A page in the browser that minds what a person would not see: errors in its console, and barriers."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(20_000)
        self.page.on("console", lambda line: self._note(line.type, line.text))
        self.page.on("pageerror", lambda error: self._note("error", str(error)))

    def _note(self, kind: str, text: str) -> None:
        # A status of 4xx is one too, and may be meant: the page says so itself.
        if kind in ("error", "warning") and "Failed to load resource" not in text:
            self.complaints.append(f"{self.page.url}: {text}")

    async def open(self, path: str) -> None:
        await self.page.goto(self.url + path)

    async def press(self, text: str) -> None:
        """A button, a link or what opens a panel, by what it says."""
        await self.page.locator("button:visible, a:visible, summary:visible").filter(has_text=text).first.click()

    async def fill(self, **fields: str) -> None:
        for name, value in fields.items():
            await self.page.locator(f"[name='{name.replace('_', '-')}']:visible").fill(value)

    async def check(self) -> None:
        """No barrier that axe finds, nothing in the console."""
        for scheme in ("light", "dark"):
            await self.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
            results = await Axe().run(self.page)
            assert results.violations_count == 0, f"{self.page.url}, {scheme}: {results.generate_report()}"
        assert self.complaints == []

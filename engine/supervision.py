"""The engine process over all its lives: when it dies it is started again, until it has died too often.

Knows the process and how often it died; knows no request: `client` is told what came and when a life ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable

from loraplex.engine.messages import EngineSettings, FromEngine, Ready, Shutdown, ToEngine
from loraplex.engine.process import EngineProcess, EngineStartFailed

log = logging.getLogger(__name__)

MAX_CRASHES = 3
CRASH_WINDOW_SECONDS = 300.0


class SupervisedEngine:
    """After three crashes in five minutes it gives up, and `given_up` is set.

    on_message: takes what the engine tells; if it raises, the engine cannot be understood, which ends that life too.
    on_crash: what was sent and has no answer will have none. on_restart: messages can be sent again. on_end: they never
    will be.
    """

    def __init__(
        self,
        settings: EngineSettings,
        process: EngineProcess,
        ready: Ready,
        *,
        on_message: Callable[[FromEngine], None],
        on_crash: Callable[[], None],
        on_restart: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self.ready = ready
        self.is_up = True
        self.progress_at = time.monotonic()
        self.given_up = asyncio.Event()
        self._settings = settings
        self._process = process
        self._on_message = on_message
        self._on_crash = on_crash
        self._on_restart = on_restart
        self._on_end = on_end
        self._crashes: deque[float] = deque()
        self._task = asyncio.create_task(self._supervise())

    @property
    def pid(self) -> int:
        """The engine process of the moment."""
        return self._process.process.pid

    def send(self, message: ToEngine) -> None:
        """Nothing happens while the engine is down."""
        if self.is_up:
            self._process.send(message)

    async def stop(self) -> None:
        """End the process, and do not start it again."""
        self.is_up = False
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._process.send(Shutdown())
        await self._process.close()

    async def _supervise(self) -> None:
        while True:
            try:
                await self._read_messages()
            except (asyncio.IncompleteReadError, ConnectionError):
                log.error("the connection to the engine process ended")
            except Exception:
                log.exception("the engine process cannot be understood")
            self.is_up = False
            exit_code = await self._process.close()
            log.error("the engine process died with exit code %s", exit_code)
            self._note_crash()
            self._on_crash()
            if not await self._restart():
                self._on_end()
                self.given_up.set()
                return
            self._on_restart()

    async def _read_messages(self) -> None:
        while True:
            self._on_message(await self._process.receive())
            self.progress_at = time.monotonic()

    def _note_crash(self) -> None:
        now = time.monotonic()
        self._crashes.append(now)
        while self._crashes[0] < now - CRASH_WINDOW_SECONDS:
            self._crashes.popleft()

    async def _restart(self) -> bool:
        """Bring up a new process; False when that is to be given up."""
        while len(self._crashes) < MAX_CRASHES:
            try:
                self._process = await EngineProcess.spawn()
                self.ready = await self._process.start(self._settings)
            except EngineStartFailed as error:
                log.error("the engine did not start again: %s", error)
                await self._process.close()
                self._crashes.append(time.monotonic())
                continue
            self.is_up = True
            self.progress_at = time.monotonic()
            return True
        return False

"""Processes that do work for strangers and are ended when it takes too long.

At most so many run at a time, and at most one for each owner: whoever comes waits for one job of each other owner at
most. Knows owners as opaque names and the frames of a job; what the work is, the module that the processes run knows.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import msgspec

from loraplex.engine.bounded_work import LENGTH
from loraplex.engine.generation import EngineUnavailable

WALL_SECONDS = 10.0
"""Reached only by a process that is not given its processor time."""

STOP_GRACE_SECONDS = 0.5

MAX_WAITING = 256
"""Jobs of one owner that run or wait."""

MAX_ANSWER_BYTES = 384 << 20

_INHERITED = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")
"""Variables that the processes see; others may hold secrets."""

log = logging.getLogger(__name__)


def inherited_environment() -> dict[str, str]:
    """Variables for a process that has to do with what strangers sent."""
    return {name: os.environ[name] for name in _INHERITED if name in os.environ}


class Ended(Exception):
    """A process was ended over a job. The message says why: "takes more than ..." """


class BoundedProcesses:
    """Processes are started when they are first needed, and again after one was ended. For one event loop.

    command: module and arguments of a process, which ends itself by SIGPROF when a job takes more than `cpu_seconds`.
    work: what is done there, in the singular, for messages.
    """

    def __init__(self, command: tuple[str, ...], work: str, *, processes: int, cpu_seconds: float) -> None:
        self._command = command
        self._work = work
        self._cpu_seconds = cpu_seconds
        self._slots = asyncio.Semaphore(processes)
        self._idle: list[_Process] = []
        self._turns: dict[str, _Turn] = {}

    async def run(self, owner: str, job: object) -> bytes:
        """The answer to a job, as the process wrote it.

        Raises Ended; EngineUnavailable when the owner has MAX_WAITING jobs under way, and when no process can be
        started or gets its processor time.
        """
        async with self._turn(owner):
            return await self._run(job, owner)

    async def close(self) -> None:
        """End the processes that wait for work; those that have some end with it."""
        while self._idle:
            await self._idle.pop().end()

    @asynccontextmanager
    async def _turn(self, owner: str) -> AsyncIterator[None]:
        turn = self._turns.setdefault(owner, _Turn())
        if turn.wanted >= MAX_WAITING:
            raise EngineUnavailable(f"{MAX_WAITING} of your requests wait for their {self._work}s; try again")
        turn.wanted += 1
        try:
            async with turn.lock, self._slots:
                yield
        finally:
            turn.wanted -= 1
            if not turn.wanted:
                del self._turns[owner]

    async def _run(self, job: object, owner: str) -> bytes:
        while self._idle and self._idle[-1].has_ended:
            self._idle.pop()
        process = self._idle.pop() if self._idle else await self._start()
        try:
            async with asyncio.timeout(WALL_SECONDS):
                answer = await process.ask(job)
        except TimeoutError:
            await process.end()
            log.warning("a process got no processor time for a %s of %s", self._work, owner)
            raise EngineUnavailable(f"this server has no time for a {self._work} now; try again", 5) from None
        except (asyncio.IncompleteReadError, ConnectionError, msgspec.DecodeError):
            reason = await process.end()
            log.warning("the process of a %s of %s was ended: it %s", self._work, owner, reason)
            raise Ended(reason) from None
        except BaseException:
            process.kill()  # its answer would be taken for that of the next job
            await process.end()
            raise
        self._idle.append(process)
        return answer

    async def _start(self) -> _Process:
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *self._command,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=inherited_environment(),
            )  # fmt: skip
        except OSError as error:
            raise EngineUnavailable(f"no process for a {self._work} can be started: {error.strerror}", 5) from error
        return _Process(process, self._cpu_seconds)


@dataclass(slots=True)
class _Turn:
    """`wanted`: jobs of the owner that run or wait."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    wanted: int = 0


@dataclass(frozen=True, slots=True)
class _Process:
    process: asyncio.subprocess.Process
    cpu_seconds: float

    @property
    def has_ended(self) -> bool:
        return self.process.returncode is not None

    async def ask(self, job: object) -> bytes:
        """Raises IncompleteReadError or ConnectionError when the process ends over it, DecodeError for nonsense."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None, "a pipe"
        assert stdout is not None, "a pipe"
        frame = msgspec.json.encode(job)  # which has no largest integer
        stdin.write(LENGTH.pack(len(frame)) + frame)
        await stdin.drain()
        (length,) = LENGTH.unpack(await stdout.readexactly(LENGTH.size))
        if length > MAX_ANSWER_BYTES:
            raise msgspec.DecodeError("longer than any answer")
        return await stdout.readexactly(length)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()

    async def end(self) -> str:
        """Let it leave, or kill it; what its job did."""
        assert self.process.stdin is not None, "a pipe"
        self.process.stdin.close()
        try:
            code = await asyncio.wait_for(self.process.wait(), STOP_GRACE_SECONDS)
        except TimeoutError:
            self.kill()
            code = await self.process.wait()
        if code == -signal.SIGPROF:
            return f"takes more than {self.cpu_seconds:g} s of processor time"
        return "takes more memory than it may"

"""Chat templates that strangers wrote, rendered in processes that can be ended.

One render takes at most CPU_SECONDS of processor time, `template_process.MEMORY_BYTES` and WALL_SECONDS, and adds at
most ADDED_CHARS to its messages. At most PROCESSES render at a time, and at most one for each owner: whoever comes
waits for one render of each other owner at most. Knows owners as opaque names; knows no tokenizer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import msgspec

from loraplex.engine.generation import EngineUnavailable
from loraplex.engine.template_process import LENGTH, MEMORY_BYTES, Failed, Outcome, Render, Rendered
from loraplex.engine.templates import UP_TO_THE_ANSWER, Messages, TemplateError, TemplateOptions

CPU_SECONDS = 1.0
WALL_SECONDS = 10.0
"""Reached only by a process that is not given its processor time."""

STOP_GRACE_SECONDS = 0.5

PROCESSES = 2

_INHERITED = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")
"""Variables that the processes see; others may hold secrets."""

MAX_WAITING = 256
"""Renders of one owner that run or wait."""

ADDED_CHARS = 256 << 10
"""How much longer than its messages a rendered conversation may be: 64 characters for each of 4096 messages."""

INDENTED = 8
"""How many times longer tools may be in a prompt, where templates write them as indented JSON or twice."""

log = logging.getLogger(__name__)


def inherited_environment() -> dict[str, str]:
    """Variables for a process that has to do with what strangers sent."""
    return {name: os.environ[name] for name in _INHERITED if name in os.environ}


class UntrustedTemplates:
    """Processes are started when they are first needed, and again after one was ended. For one event loop."""

    def __init__(self, *, processes: int = PROCESSES, cpu_seconds: float = CPU_SECONDS) -> None:
        self._cpu_seconds = cpu_seconds
        self._slots = asyncio.Semaphore(processes)
        self._idle: list[_Process] = []
        self._turns: dict[str, _Turn] = {}

    async def render(
        self,
        owner: str,
        template: str,
        messages: Messages,
        special_tokens: Mapping[str, str],
        options: TemplateOptions = UP_TO_THE_ANSWER,
    ) -> str:
        """The conversation up to where the assistant's answer begins, or goes on.

        Raises TemplateError; EngineUnavailable when the owner has MAX_WAITING renders under way.
        """
        plain = [dict(message) for message in messages]
        max_chars = options.chars_with(messages) * (INDENTED if options.tools else 1) + ADDED_CHARS
        async with self._turn(owner):
            outcome = await self._run(Render(template, plain, dict(special_tokens), options, max_chars), owner)
        if isinstance(outcome, Failed):
            raise TemplateError(outcome.reason, refused=outcome.refused)
        return outcome.text

    async def close(self) -> None:
        """End the processes that wait for work; those that have some end with it."""
        while self._idle:
            await self._idle.pop().end()

    @asynccontextmanager
    async def _turn(self, owner: str) -> AsyncIterator[None]:
        turn = self._turns.setdefault(owner, _Turn())
        if turn.wanted >= MAX_WAITING:
            raise EngineUnavailable(f"{MAX_WAITING} of your conversations wait for their chat templates; try again")
        turn.wanted += 1
        try:
            async with turn.lock, self._slots:
                yield
        finally:
            turn.wanted -= 1
            if not turn.wanted:
                del self._turns[owner]

    async def _run(self, job: Render, owner: str) -> Outcome:
        while self._idle and self._idle[-1].has_ended:
            self._idle.pop()
        process = self._idle.pop() if self._idle else await _Process.start(self._cpu_seconds)
        try:
            async with asyncio.timeout(WALL_SECONDS):
                outcome = await process.ask(job)
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError, msgspec.DecodeError):
            reason = await process.end()
            log.warning("the process of a chat template of %s was ended: the template %s", owner, reason)
            return Failed(f"the chat template {reason}")
        except BaseException:
            process.kill()  # its answer would be taken for that of the next job
            await process.end()
            raise
        self._idle.append(process)
        return outcome


@dataclass(slots=True)
class _Turn:
    """`wanted`: renders of the owner that run or wait."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    wanted: int = 0


@dataclass(frozen=True, slots=True)
class _Process:
    process: asyncio.subprocess.Process
    cpu_seconds: float

    @classmethod
    async def start(cls, cpu_seconds: float) -> _Process:
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "loraplex.engine.template_process", str(cpu_seconds),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=inherited_environment(),
            )  # fmt: skip
        except OSError as error:
            raise EngineUnavailable(f"no process for chat templates can be started: {error.strerror}", 5) from error
        return cls(process, cpu_seconds)

    @property
    def has_ended(self) -> bool:
        return self.process.returncode is not None

    async def ask(self, job: Render) -> Outcome:
        """Raises IncompleteReadError or ConnectionError when the process ends over it, DecodeError for nonsense."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None, "a pipe"
        assert stdout is not None, "a pipe"
        stdin.write(job.frame())
        await stdin.drain()
        (length,) = LENGTH.unpack(await stdout.readexactly(LENGTH.size))
        if length > MEMORY_BYTES:
            raise msgspec.DecodeError("longer than the process can have made it")
        return msgspec.msgpack.decode(await stdout.readexactly(length), type=Rendered | Failed)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()

    async def end(self) -> str:
        """Let it leave, or kill it; what its template did."""
        assert self.process.stdin is not None, "a pipe"
        self.process.stdin.close()
        try:
            code = await asyncio.wait_for(self.process.wait(), STOP_GRACE_SECONDS)
        except TimeoutError:
            self.kill()
            code = await self.process.wait()
        if code == -signal.SIGPROF:
            return f"takes more than {self.cpu_seconds:g} s of processor time"
        return "takes more time or memory than it may"

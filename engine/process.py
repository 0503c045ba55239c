"""One life of the engine process: spawned with a socket, told its settings, and ended for sure.

Knows frames and the process; knows no requests.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from dataclasses import dataclass, field

import msgspec

from loraplex.engine.messages import FRAME_HEADER, EngineSettings, Fatal, FromEngine, Ready, Start, ToEngine, frame

STOP_GRACE_SECONDS = 10.0

ENVIRONMENT = {"GOMP_SPINCOUNT": "5000", "RUST_MIN_STACK": str(8 << 20)}
"""Defaults for the engine. OpenMP's own default is to spin long: when the API process holds a core, a parallel region
can lose a scheduler tick of about 8 ms. With a fifth of this the second thread falls asleep between operations.
Grammars are checked on a stack that is an eighth of what threads have that match them."""


class EngineStartFailed(Exception):
    """The engine process said why it cannot start, or died before it could."""


@dataclass(slots=True)
class EngineProcess:
    """One life of the engine process and the API's end of its socket."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    decoder: msgspec.msgpack.Decoder[FromEngine] = field(default_factory=lambda: msgspec.msgpack.Decoder(FromEngine))

    @classmethod
    async def spawn(cls) -> EngineProcess:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "loraplex.engine.server", str(theirs.fileno()),
                pass_fds=(theirs.fileno(),), stdin=asyncio.subprocess.DEVNULL, env=ENVIRONMENT | os.environ,
            )  # fmt: skip
        reader, writer = await asyncio.open_connection(sock=ours)
        return cls(process, reader, writer)

    def send(self, message: ToEngine) -> None:
        if not self.writer.is_closing():
            self.writer.write(frame(message))

    async def receive(self) -> FromEngine:
        """Raises IncompleteReadError or ConnectionError when the engine process has gone."""
        (length,) = FRAME_HEADER.unpack(await self.reader.readexactly(FRAME_HEADER.size))
        return self.decoder.decode(await self.reader.readexactly(length))

    async def start(self, settings: EngineSettings) -> Ready:
        self.send(Start(settings))
        try:
            answer = await self.receive()
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise EngineStartFailed(
                "the engine process died while it loaded the model; see its output above"
            ) from error
        if not isinstance(answer, Ready):
            raise EngineStartFailed(answer.message if isinstance(answer, Fatal) else "the engine did not answer")
        return answer

    async def close(self) -> int:
        """Wait for the process, killing it when it does not leave by itself; its exit code."""
        self.writer.close()
        try:
            return await asyncio.wait_for(self.process.wait(), STOP_GRACE_SECONDS)
        except TimeoutError:
            self.process.kill()
            return await self.process.wait()

"""The API process's handle on the engine process: start it, talk to it, restart it when it dies.

Knows messages and the process; knows no tensors, HTTP or tenants.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field

import msgspec

from loraplex.engine.messages import (
    FRAME_HEADER,
    Abort,
    EngineSettings,
    Fatal,
    FromEngine,
    Generate,
    Heartbeat,
    Inspect,
    Inspection,
    Ready,
    RequestFailed,
    Shutdown,
    Start,
    Status,
    StepOutput,
    ToEngine,
    TokenChunk,
    frame,
)

log = logging.getLogger(__name__)

MAX_CRASHES = 3
CRASH_WINDOW_SECONDS = 300.0
QUARANTINE_CRASHES = 2
STOP_GRACE_SECONDS = 10.0


class EngineUnavailable(Exception):
    """The engine cannot take a request now. `retry_after_seconds` is when to try again."""

    def __init__(self, message: str, retry_after_seconds: int = 1) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class EngineStartFailed(Exception):
    """The engine process said why it cannot start, or died before it could."""


class GenerationFailed(Exception):
    """One request ended with an error of its own. `code` is stable, the message is for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


QUARANTINED = GenerationFailed("adapter_quarantined", "this adapter version was in use at two engine crashes")


class Generation:
    """The tokens of one request as they come: an async iterator of TokenChunk that ends after the finish reason.

    Chunks that were not fetched in time are handed out together, so a slow reader costs the engine nothing. Iterating
    raises GenerationFailed when the request fails.
    """

    def __init__(self, client: EngineClient, request: Generate) -> None:
        self.request = request
        self.has_output = False
        self._client = client
        self._chunks: deque[TokenChunk | GenerationFailed] = deque()
        self._arrived = asyncio.Event()
        self._ended = False

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> TokenChunk:
        while not self._chunks:
            if self._ended:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        item = self._chunks.popleft()
        if isinstance(item, GenerationFailed):
            raise item
        while self._chunks and isinstance(later := self._chunks[0], TokenChunk):
            item = _joined(item, later)
            self._chunks.popleft()
        return item

    def abort(self) -> None:
        """Stop the sequence and free what it holds. Does nothing once the request has ended."""
        if not self._ended:
            self._end()
            self._client.forget(self.request.request_id)

    def deliver(self, chunk: TokenChunk) -> None:
        self.has_output = True
        self._chunks.append(chunk)
        if chunk.finish_reason is not None:
            self._end()
        self._arrived.set()

    def fail(self, error: GenerationFailed) -> None:
        self._chunks.append(error)
        self._end()

    def _end(self) -> None:
        self._ended = True
        self._arrived.set()


def _joined(first: TokenChunk, second: TokenChunk) -> TokenChunk:
    logprobs = None if first.logprobs is None or second.logprobs is None else first.logprobs + second.logprobs
    return TokenChunk(
        first.request_id, first.token_ids + second.token_ids, logprobs, second.finish_reason, first.cached_tokens
    )


@dataclass(slots=True)
class _Process:
    """One life of the engine process and the API's end of its socket."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    decoder: msgspec.msgpack.Decoder[FromEngine] = field(default_factory=lambda: msgspec.msgpack.Decoder(FromEngine))

    @classmethod
    async def spawn(cls) -> _Process:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "loraplex.engine.server", str(theirs.fileno()),
                pass_fds=(theirs.fileno(),), stdin=asyncio.subprocess.DEVNULL,
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


class EngineClient:
    """A supervised engine process.

    When the process dies it is started again: requests without output are sent again, the others fail with
    `engine_restarted`, and an adapter that was in use at two crashes is refused from then on. After three crashes in
    five minutes the client gives up and `given_up` is set, so that the whole server can leave with an error.
    """

    def __init__(self, settings: EngineSettings, process: _Process, ready: Ready, max_pending: int) -> None:
        self.ready = ready
        self.status: Status | None = None
        self.given_up = asyncio.Event()
        self._settings = settings
        self._process = process
        self._max_pending = max_pending
        self._generations: dict[str, Generation] = {}
        self._inspections: dict[int, asyncio.Future[Inspection]] = {}
        self._inspection_ids = itertools.count()
        self._is_up = True
        self._progress_at = time.monotonic()
        self._crashes: deque[float] = deque()
        self._crashed_with: Counter[str] = Counter()
        self._supervisor = asyncio.create_task(self._supervise())

    @classmethod
    async def start(cls, settings: EngineSettings, *, max_pending: int = 1024) -> EngineClient:
        """Start the process and wait until the model is loaded. Raises EngineStartFailed."""
        process = await _Process.spawn()
        try:
            ready = await process.start(settings)
        except BaseException:
            await process.close()
            raise
        return cls(settings, process, ready, max_pending)

    @property
    def is_alive(self) -> bool:
        return self._is_up

    @property
    def pid(self) -> int:
        """The engine process of the moment."""
        return self._process.process.pid

    @property
    def pending(self) -> int:
        """Requests that have not ended."""
        return len(self._generations)

    def seconds_since_progress(self) -> float:
        """How long ago the step loop last showed that it runs."""
        return time.monotonic() - self._progress_at

    def generate(self, request: Generate) -> Generation:
        """Submit a request. Raises EngineUnavailable at once when it cannot be taken, GenerationFailed when its adapter
        is quarantined."""
        if self.given_up.is_set():
            raise EngineUnavailable("the engine has failed and is not coming back", retry_after_seconds=30)
        if len(self._generations) >= self._max_pending:
            raise EngineUnavailable(f"the server already has {self._max_pending} requests in hand; try again shortly")
        if self._is_quarantined(request):
            raise QUARANTINED
        generation = self._generations[request.request_id] = Generation(self, request)
        if self._is_up:
            self._process.send(request)
        return generation

    def forget(self, request_id: str) -> None:
        """Abort a request: called by Generation.abort."""
        if self._generations.pop(request_id, None) is not None and self._is_up:
            self._process.send(Abort(request_id))

    async def inspect(self) -> Inspection:
        """A snapshot of batch and memory. Raises EngineUnavailable while the engine is down."""
        if not self._is_up:
            raise EngineUnavailable("the engine is restarting", retry_after_seconds=5)
        inspection_id = next(self._inspection_ids)
        future: asyncio.Future[Inspection] = asyncio.get_running_loop().create_future()
        self._inspections[inspection_id] = future
        self._process.send(Inspect(inspection_id))
        return await future

    async def stop(self) -> None:
        """End the process; what still runs fails with `engine_stopped`."""
        self._supervisor.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._supervisor
        self._is_up = False
        self._fail_all(GenerationFailed("engine_stopped", "the server is shutting down"))
        self._process.send(Shutdown())
        await self._process.close()

    async def _supervise(self) -> None:
        while True:
            try:
                await self._read_messages()
            except (asyncio.IncompleteReadError, ConnectionError):
                self._is_up = False
            if not await self._restart():
                return

    async def _read_messages(self) -> None:
        while True:
            match await self._process.receive():
                case StepOutput(chunks, failures):
                    self._deliver(chunks, failures)
                case Heartbeat(status):
                    self.status = status
                case Inspection() as inspection:
                    self._inspections.pop(inspection.inspection_id).set_result(inspection)
                case Fatal(message):
                    log.error("engine failed: %s", message)
                case Ready():
                    raise AssertionError("an engine is ready only once")
            self._progress_at = time.monotonic()

    def _deliver(self, chunks: list[TokenChunk], failures: list[RequestFailed]) -> None:
        for chunk in chunks:
            generation = self._generations.get(chunk.request_id)
            if generation is None:
                continue  # aborted while the step ran
            if chunk.finish_reason is not None:
                del self._generations[chunk.request_id]
            generation.deliver(chunk)
        for failure in failures:
            if failed := self._generations.pop(failure.request_id, None):
                failed.fail(GenerationFailed(failure.code, failure.message))

    async def _restart(self) -> bool:
        """Bring up a new process after a crash; False when the client gives up."""
        exit_code = await self._process.close()
        log.error("the engine process died with exit code %s; %d requests were in hand", exit_code, self.pending)
        self._note_crash()
        while len(self._crashes) < MAX_CRASHES:
            try:
                self._process = await _Process.spawn()
                self.ready = await self._process.start(self._settings)
            except EngineStartFailed as error:
                log.error("the engine did not start again: %s", error)
                await self._process.close()
                self._crashes.append(time.monotonic())
                continue
            self._is_up = True
            self._progress_at = time.monotonic()
            for generation in self._generations.values():
                self._process.send(generation.request)
            log.warning("the engine is up again; %d requests were queued again", self.pending)
            return True
        self._fail_all(GenerationFailed("engine_unavailable", "the engine has failed repeatedly"))
        self.given_up.set()
        return False

    def _note_crash(self) -> None:
        now = time.monotonic()
        self._crashes.append(now)
        while self._crashes[0] < now - CRASH_WINDOW_SECONDS:
            self._crashes.popleft()
        self._crashed_with.update({g.request.adapter for g in self._generations.values() if g.request.adapter})
        for future in self._inspections.values():
            future.set_exception(EngineUnavailable("the engine is restarting", retry_after_seconds=5))
        self._inspections.clear()
        for request_id, generation in list(self._generations.items()):
            if error := self._lost(generation):
                del self._generations[request_id]
                generation.fail(error)

    def _lost(self, generation: Generation) -> GenerationFailed | None:
        """Why this request cannot be sent again after a crash; None when it can."""
        if self._is_quarantined(generation.request):
            return QUARANTINED
        if generation.has_output:
            return GenerationFailed("engine_restarted", "the engine was restarted; send the request again")
        return None

    def _is_quarantined(self, request: Generate) -> bool:
        return request.adapter is not None and self._crashed_with[request.adapter] >= QUARANTINE_CRASHES

    def _fail_all(self, error: GenerationFailed) -> None:
        for generation in self._generations.values():
            generation.fail(error)
        self._generations.clear()

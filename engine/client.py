"""The API process's handle on the engine: submit requests, follow them, and ask for adapters.

Knows messages and requests; knows no tensors, HTTP or tenants.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from loraplex.engine.generation import EngineUnavailable, Generation, GenerationFailed
from loraplex.engine.messages import (
    HEARTBEAT_SECONDS,
    Abort,
    Decision,
    Embed,
    EngineSettings,
    Evict,
    Fatal,
    FromEngine,
    Generate,
    Heartbeat,
    Inspect,
    Inspection,
    Locate,
    Located,
    Look,
    Pin,
    Ready,
    Refusal,
    Seen,
    Snapshot,
    Status,
    StepOutput,
    ToEngine,
    Unpin,
    Warm,
    Whereabouts,
)
from loraplex.engine.process import EngineProcess, EngineStartFailed
from loraplex.engine.questions import Questions
from loraplex.engine.supervision import SupervisedEngine

__all__ = ["EngineClient", "EngineStartFailed", "EngineUnavailable", "Generation", "GenerationFailed"]

log = logging.getLogger(__name__)

QUARANTINE_CRASHES = 2
RATE_BEATS = 21
"""Heartbeats over which the rate of tokens is told: some five seconds."""


class EngineClient:
    """A supervised engine process.

    When the process dies it is started again: requests without output are sent again, the others fail with
    `engine_restarted`, pins are asked for anew, and an adapter that was in use at two crashes is refused from then on
    and told in `quarantined`. When it is not started again `given_up` is set, so that the whole server can leave with
    an error. restarts: how often it was started again.
    """

    def __init__(self, settings: EngineSettings, process: EngineProcess, ready: Ready, max_pending: int) -> None:
        self.status: Status | None = None
        self.restarts = 0
        self.quarantined: asyncio.Queue[str] = asyncio.Queue()
        self._max_pending = max_pending
        self._generations: dict[str, Generation] = {}
        self._questions = Questions()
        self._written: deque[tuple[float, int]] = deque(maxlen=RATE_BEATS)  # (moment, tokens since the engine's start)
        self._pins: dict[tuple[str, str], float] = {}
        self._crashed_with: Counter[str] = Counter()
        self._engine = SupervisedEngine(
            settings,
            process,
            ready,
            on_message=self._take,
            on_crash=self._take_crash,
            on_restart=self._send_again,
            on_end=lambda: self._fail_all(GenerationFailed("engine_unavailable", "the engine has failed repeatedly")),
        )

    @classmethod
    async def start(cls, settings: EngineSettings, *, max_pending: int = 1024) -> EngineClient:
        """Start the process and wait until the model is loaded. Raises EngineStartFailed."""
        process = await EngineProcess.spawn()
        try:
            ready = await process.start(settings)
        except BaseException:
            await process.close()
            raise
        return cls(settings, process, ready, max_pending)

    @property
    def ready(self) -> Ready:
        """What the engine of the moment said of itself."""
        return self._engine.ready

    @property
    def is_alive(self) -> bool:
        return self._engine.is_up

    @property
    def given_up(self) -> asyncio.Event:
        return self._engine.given_up

    @property
    def pid(self) -> int:
        """The engine process of the moment."""
        return self._engine.pid

    @property
    def tokens_per_second(self) -> float:
        """Written in the last seconds."""
        if len(self._written) < 2:
            return 0.0
        (since, before), (until, now) = self._written[0], self._written[-1]
        return (now - before) / max(until - since, HEARTBEAT_SECONDS)

    @property
    def pending(self) -> int:
        """Requests that have not ended."""
        return len(self._generations)

    def seconds_since_progress(self) -> float:
        """How long ago the step loop last showed that it runs."""
        return time.monotonic() - self._engine.progress_at

    def generate(self, request: Generate | Embed) -> Generation:
        """Submit a request. Raises EngineUnavailable at once when it cannot be taken, GenerationFailed when its adapter
        is quarantined."""
        if self.given_up.is_set():
            raise EngineUnavailable("the engine has failed and is not coming back", retry_after_seconds=30)
        if len(self._generations) >= self._max_pending:
            raise EngineUnavailable(f"the server already has {self._max_pending} requests in hand; try again shortly")
        if self._is_quarantined(request):
            raise _quarantined()
        generation = self._generations[request.request_id] = Generation(request, on_abort=self._forget)
        self._engine.send(request)
        if isinstance(request, Generate) and request.timeout_seconds is not None:
            timer = asyncio.get_running_loop().call_later(request.timeout_seconds, self._expire, request)
            generation.expires = timer
        return generation

    def warm(self, digest: str) -> None:
        """Have an adapter version loaded before its first request, where the engine can; nothing waits for it."""
        self._engine.send(Warm(digest))

    def forgive(self, digest: str) -> None:
        """Run an adapter again whatever it was in use at."""
        del self._crashed_with[digest]

    @property
    def pins(self) -> dict[tuple[str, str], float]:
        """What was asked to be pinned and not refused: (adapter, owner) -> Unix time of its end, which may be past."""
        return dict(self._pins)

    def pin(self, adapter: str, owner: str, until: float) -> asyncio.Future[Decision]:
        """Have an adapter version kept on the device until then, at the wish of `owner`, also by an engine that is
        started again. The answer comes once it is known what the adapter takes.

        While the engine is down the answer is EngineUnavailable, and the pin is asked for when it is up again.
        """
        self._pins[adapter, owner] = until
        seconds = max(until - time.time(), 0)
        decision = self._ask(lambda question_id: Pin(question_id, adapter, owner, seconds))
        decision.add_done_callback(lambda future: self._take_pin_decision((adapter, owner), until, future))
        return decision

    def unpin(self, adapter: str, owner: str) -> None:
        """End a pin; nothing happens if there is none."""
        self._pins.pop((adapter, owner), None)
        self._engine.send(Unpin(adapter, owner))

    async def evict(self, adapter: str) -> Refusal | None:
        """Free the memory of an adapter version that nothing uses: None, or why that was not done. Raises
        EngineUnavailable while the engine is down."""
        decision: Decision = await self._ask(lambda question_id: Evict(question_id, adapter))
        return decision.refusal

    async def locate(self, adapters: Sequence[str] | None = None) -> list[Whereabouts]:
        """Where these adapters are, or with None all that are in some memory. Raises EngineUnavailable while the engine
        is down."""
        asked = None if adapters is None else list(adapters)
        located: Located = await self._ask(lambda question_id: Locate(question_id, asked))
        return located.adapters

    async def inspect(self) -> Inspection:
        """A snapshot of batch and memory. Raises EngineUnavailable while the engine is down."""
        inspection: Inspection = await self._ask(Inspect)
        return inspection

    async def look(self, after_step: int, after_movement: int) -> Snapshot:
        """What the engine has in hand, and what has happened since that step and that movement. Raises
        EngineUnavailable while the engine is down."""
        seen: Seen = await self._ask(lambda question_id: Look(question_id, after_step, after_movement))
        return seen.snapshot

    async def stop(self) -> None:
        """End the process; what still runs fails with `engine_stopped`, what was asked is not answered."""
        self._fail_all(GenerationFailed("engine_stopped", "the server is shutting down"))
        self._questions.fail(EngineUnavailable("the server is shutting down"))
        await self._engine.stop()

    def _take(self, message: FromEngine) -> None:
        match message:
            case StepOutput() as output:
                self._deliver(output)
            case Heartbeat(status):
                self.status = status
                self._written.append((time.monotonic(), status.generated_tokens))
            case (Decision() | Located() | Inspection() | Seen()) as answer:
                self._questions.answer(answer.question_id, answer)
            case Fatal(reason):
                log.error("engine failed: %s", reason)
            case Ready():
                raise AssertionError("an engine is ready only once")

    def _take_crash(self) -> None:
        log.error("%d requests were in hand", self.pending)
        suspects = {use.digest for g in self._generations.values() for use in g.request.adapters}
        self._crashed_with.update(suspects)
        for digest in suspects:
            if self._crashed_with[digest] == QUARANTINE_CRASHES:
                self.quarantined.put_nowait(digest)
        self._questions.fail(_restarting())
        self._written.clear()
        for request_id, generation in list(self._generations.items()):
            if error := self._lost(generation):
                del self._generations[request_id]
                generation.fail(error)

    def _send_again(self) -> None:
        self.restarts += 1
        for generation in self._generations.values():
            self._engine.send(generation.request)
        for (adapter, owner), until in self.pins.items():
            if until > time.time():
                self.pin(adapter, owner, until)
        log.warning("the engine is up again; %d requests were queued again", self.pending)

    def _take_pin_decision(self, pin: tuple[str, str], until: float, decision: asyncio.Future[Decision]) -> None:
        if decision.cancelled() or decision.exception() is not None:
            return
        if refusal := decision.result().refusal:
            log.info("adapter %s is not pinned: %s", pin[0], refusal.message)
            if self._pins.get(pin) == until:  # else it was asked for anew, and is answered anew
                del self._pins[pin]

    def _ask(self, message: Callable[[int], ToEngine]) -> asyncio.Future[Any]:
        question_id, answer = self._questions.open()
        if self.is_alive:
            self._engine.send(message(question_id))
        else:
            self._questions.fail(_restarting())
        return answer

    def _forget(self, request_id: str) -> None:
        if self._generations.pop(request_id, None) is not None:
            self._engine.send(Abort(request_id))

    def _expire(self, request: Generate) -> None:
        if generation := self._generations.get(request.request_id):
            self._forget(request.request_id)
            message = f"the request was not done within the {request.timeout_seconds} seconds that it gave itself"
            generation.fail(GenerationFailed("deadline_exceeded", message))

    def _deliver(self, output: StepOutput) -> None:
        for started in output.started:
            if starting := self._generations.get(started.request_id):
                starting.started = started
        for chunk in output.chunks:
            generation = self._generations.get(chunk.request_id)
            if generation is None:
                continue  # aborted while the step ran
            if chunk.finish_reason is not None:
                del self._generations[chunk.request_id]
            generation.deliver(chunk)
        for failure in output.failures:
            if failed := self._generations.pop(failure.request_id, None):
                failed.fail(GenerationFailed(failure.code, failure.message))

    def _lost(self, generation: Generation) -> GenerationFailed | None:
        """Why this request cannot be sent again after a crash; None when it can."""
        if self._is_quarantined(generation.request):
            return _quarantined()
        if generation.has_output:
            return GenerationFailed("engine_restarted", "the engine was restarted; send the request again")
        return None

    def _is_quarantined(self, request: Generate | Embed) -> bool:
        return any(self._crashed_with[use.digest] >= QUARANTINE_CRASHES for use in request.adapters)

    def _fail_all(self, error: GenerationFailed) -> None:
        for generation in self._generations.values():
            generation.fail(error)
        self._generations.clear()


def _quarantined() -> GenerationFailed:
    return GenerationFailed("adapter_quarantined", "this adapter version was in use at two engine crashes")


def _restarting() -> EngineUnavailable:
    return EngineUnavailable("the engine is restarting", retry_after_seconds=5)

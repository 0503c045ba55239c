"""The engine: requests in, tokens out, one step at a time. The few lines to read first.

Knows the scheduler, the runner and the adapters' residency; knows no process, socket or clock but for step times.
"""

from __future__ import annotations

import random
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from loraplex.adapters.residency import AdapterResidency
from loraplex.adapters.whereabouts import Refusal, Whereabouts
from loraplex.engine.events import (
    NOBODY,
    STEP_SECONDS,
    AdapterUse,
    Grammar,
    OwnerShare,
    RequestFailed,
    ResidentAdapter,
    RunningSequence,
    SamplingParams,
    Share,
    Started,
    Status,
    StepRecord,
    TokenChunk,
)
from loraplex.engine.grammar_masks import Grammars
from loraplex.engine.observation import MAX_ADAPTERS_SHOWN, figures, lanes, page_cells, queues
from loraplex.engine.pooling import Pooling
from loraplex.engine.runner import Runner
from loraplex.engine.scheduler import Scheduler
from loraplex.engine.sequence import Sequence
from loraplex.engine.snapshot import Snapshot
from loraplex.engine.step_plan import StepPlan

if TYPE_CHECKING:
    from llguidance import LLMatcher

RECENT_STEPS = 512


@dataclass(frozen=True, slots=True)
class StepResult:
    chunks: list[TokenChunk] = field(default_factory=list)
    failures: list[RequestFailed] = field(default_factory=list)
    started: list[Started] = field(default_factory=list)
    ran: bool = False


class StepTimes(NamedTuple):
    """Seconds."""

    schedule: float
    execute: float
    execute_and_commit: float


class Engine:
    """Continuous batching over one model. Not thread-safe: one thread calls it."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        residency: AdapterResidency,
        grammars: Grammars,
        seed: int = 0,
    ) -> None:
        self.recent_steps: deque[StepRecord] = deque(maxlen=RECENT_STEPS)
        self._scheduler = scheduler
        self._runner = runner
        self._residency = residency
        self._grammars = grammars
        self._compiling: dict[str, tuple[Sequence, str | None, Future[LLMatcher]]] = {}
        self._seeds = random.Random(seed)  # noqa: S311 - sampling, not secrets
        self._steps = 0
        self._step_seconds = 0.0
        self._steps_by_seconds = [0] * (len(STEP_SECONDS) + 1)
        self._preemptions = 0  # until the last step
        self._last_plan = StepPlan(())
        self._generated_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self._scheduler.running) or self._num_waiting > 0

    def submit(
        self,
        request_id: str,
        prompt: list[int],
        sampling: SamplingParams,
        *,
        adapters: tuple[AdapterUse, ...] = (),
        salt: bytes = b"",
        after: str | None = None,
        grammar: Grammar | None = None,
        priority: int = 0,
        share: Share = NOBODY,
    ) -> None:
        """Queue a request, one with a grammar once that is compiled. A request that cannot run is told in the result of
        a later step. after, priority, share: see Generate."""
        seed = self._seeds.getrandbits(63) if sampling.seed is None else sampling.seed
        sequence = Sequence(request_id, prompt, sampling, adapters, salt, seed, priority, share)
        if grammar is None:
            self._scheduler.add(sequence, after)
        else:
            self._compiling[request_id] = sequence, after, self._grammars.begin(grammar)

    def embed(
        self,
        request_id: str,
        prompt: list[int],
        *,
        adapters: tuple[AdapterUse, ...] = (),
        priority: int = 0,
        share: Share = NOBODY,
    ) -> None:
        """Queue a prompt that is to be embedded, beside those that generate. priority, share: see Generate."""
        nothing = SamplingParams(max_tokens=0)
        self._scheduler.add(Sequence(request_id, prompt, nothing, adapters, b"", 0, priority, share, pooling=Pooling()))

    def abort(self, request_id: str) -> None:
        """End a request without another word; its pages and its adapter's lease are free at once."""
        if (compiling := self._compiling.pop(request_id, None)) is None:
            self._scheduler.abort(request_id)
        else:
            compiling[2].cancel()  # others wait for theirs behind it

    def warm(self, digest: str) -> None:
        """Bring an adapter to the device before anyone asks for it, beside the steps and at no sequence's cost."""
        self._residency.warm(digest)

    def pin(self, ticket: int, digest: str, owner: str, seconds: float) -> None:
        """Bring an adapter to the device and keep it there for so long; `take_pin_answers` tells whether it is."""
        self._residency.pin(ticket, digest, owner, seconds)

    def unpin(self, digest: str, owner: str) -> None:
        self._residency.unpin(digest, owner)

    def take_pin_answers(self) -> list[tuple[int, Refusal | None]]:
        """(ticket, why not) of pins that were decided since the last call."""
        return self._residency.take_pin_answers()

    def evict(self, digest: str) -> Refusal | None:
        """Free the memory of an adapter that nothing uses, or say why not."""
        return self._residency.evict(digest)

    def locate(self, digests: Iterable[str] | None = None) -> list[Whereabouts]:
        """Where these adapters are; None: all that are in some memory."""
        return self._residency.locate(digests)

    def step(self) -> StepResult:
        """Run one batch. `ran` is False when nothing could run: no work, or its adapters are still loading."""
        failures = self._take_compiled() if self._compiling else []
        begun = time.perf_counter()
        plan = self._scheduler.schedule()
        failures += self._scheduler.take_failures()
        if not plan.chunks:
            return StepResult(failures=failures)
        started = time.perf_counter()
        sampled = self._runner.execute(plan)
        executed = time.perf_counter()
        pages_used = self._scheduler.pages.pool.num_used
        accepted = self._scheduler.drafting.accepted
        chunks = self._scheduler.commit(plan, sampled)
        accepted = self._scheduler.drafting.accepted - accepted
        times = StepTimes(started - begun, executed - started, time.perf_counter() - started)
        self._record(plan, times, len(sampled), accepted, pages_used)
        return StepResult(chunks, failures, self._scheduler.take_started(), ran=True)

    def wait(self, timeout_seconds: float) -> None:
        """After a step that did not run: sleep until a grammar is compiled or, where none is being compiled, until an
        adapter load has made progress."""
        if self._compiling:
            wait([matcher for _, _, matcher in self._compiling.values()], timeout_seconds, FIRST_COMPLETED)
        else:
            self._residency.wait(timeout_seconds)

    def status(self) -> Status:
        pages, residency = self._scheduler.pages, self._residency
        pool = pages.pool
        return Status(
            steps=self._steps,
            running=len(self._scheduler.running),
            waiting=self._num_waiting,
            pages_total=pool.num_pages,
            pages_used=pool.num_used,
            pages_cached=pool.num_cached,
            preemptions=self._scheduler.preemptions,
            prompt_tokens=pages.prompt_tokens,
            cached_prompt_tokens=pages.cached_prompt_tokens,
            generated_tokens=self._generated_tokens,
            drafted_tokens=self._scheduler.drafting.drafted,
            accepted_tokens=self._scheduler.drafting.accepted,
            adapter_loads=residency.loads,
            adapter_evictions=residency.evictions,
            adapter_device_bytes_used=residency.device_bytes_used,
            adapter_pinned_bytes=residency.pinned_bytes,
            adapter_host_bytes_used=residency.host_bytes_used,
            step_seconds=self._step_seconds,
            steps_by_seconds=tuple(self._steps_by_seconds),
        )

    def running(self) -> list[RunningSequence]:
        return [
            RunningSequence(s.request_id, [use.digest for use in s.adapters], len(s.prompt), s.generated, len(s.pages))
            for s in self._scheduler.running
        ]

    def shares(self) -> list[OwnerShare]:
        """What each owner has of the engine, of those that had any in the last minutes."""
        return self._scheduler.shares()

    def look(self, after_step: int, after_movement: int) -> Snapshot:
        """All that runs, waits and is in memory, and what has happened since that step and that movement."""
        scheduler, residency = self._scheduler, self._residency
        running = sorted(scheduler.running, key=lambda sequence: sequence.group)
        waiting = chain(scheduler.waiting, (sequence for sequence, _, _ in self._compiling.values()))
        pool, now = scheduler.pages.pool, scheduler.clock()
        cells, pages_per_cell = page_cells(running, pool)
        return Snapshot(
            status=self.status(),
            lanes=lanes(running, self._last_plan, now),
            queues=queues(waiting, now),
            cells=cells,
            pages_per_cell=pages_per_cell,
            adapters=residency.used_last(MAX_ADAPTERS_SHOWN),
            on_device=len(residency.device_residents()),
            in_host=len(residency.host_residents()),
            steps=figures(self.recent_steps, after_step),
            movements=[movement for movement in residency.movements if movement.number > after_movement],
        )

    def host_adapters(self) -> list[ResidentAdapter]:
        return [ResidentAdapter(*entry) for entry in self._residency.host_residents()]

    def device_adapters(self) -> list[ResidentAdapter]:
        """Adapters that have a place on the device, those among them that are still being copied to it."""
        return [ResidentAdapter(*entry) for entry in self._residency.device_residents()]

    def close(self) -> None:
        self._residency.close()

    @property
    def _num_waiting(self) -> int:
        return self._scheduler.num_waiting + len(self._compiling)

    def _take_compiled(self) -> list[RequestFailed]:
        """Queue sequences whose grammars have been compiled; those that could not be."""
        failures = []
        for request_id, (sequence, after, matcher) in list(self._compiling.items()):
            if not matcher.done():
                continue
            del self._compiling[request_id]
            if (error := matcher.exception()) is not None:
                failures.append(RequestFailed(request_id, "invalid_grammar", f"The grammar is not valid: {error}."))
            else:
                sequence.matcher = matcher.result()
                self._scheduler.add(sequence, after)
        return failures

    def _record(self, plan: StepPlan, times: StepTimes, sampled: int, accepted: int, pages_used: int) -> None:
        """accepted: of the plan's drafts. pages_used: while it ran."""
        drafted = sum(chunk.draft is not None for chunk in plan.chunks)
        self._steps += 1
        seconds = times.execute_and_commit
        self._step_seconds += seconds
        self._steps_by_seconds[bisect_left(STEP_SECONDS, seconds)] += 1
        self._generated_tokens += sampled - drafted + accepted
        decodes = sum(chunk.start >= len(chunk.sequence.prompt) for chunk in plan.chunks)
        uses = [chunk.sequence.adapters for chunk in plan.chunks]
        self.recent_steps.append(
            StepRecord(
                step=self._steps,
                at=time.time(),
                schedule_seconds=times.schedule,
                execute_seconds=times.execute,
                seconds=times.execute_and_commit,
                prefill_tokens=sum(chunk.count for chunk in plan.chunks) - decodes,
                decode_tokens=decodes,
                sequences=len(plan.chunks) - drafted,
                adapters=list(dict.fromkeys(use.digest for adapters in uses for use in adapters)),
                base=() in uses,
                drafted_tokens=drafted,
                accepted_tokens=accepted,
                pages_used=pages_used,
                preemptions=self._scheduler.preemptions - self._preemptions,
            )
        )
        self._preemptions = self._scheduler.preemptions
        self._last_plan = plan

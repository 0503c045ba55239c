"""Decide which tokens run in the next step: prefill chunks and decodes of any adapters, under one token budget.

Knows lengths, pages and adapter leases. Knows no tensors, text or tenants.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Tokens
from dataclasses import dataclass

from loraplex.adapters.errors import AdapterUnavailable
from loraplex.adapters.residency import AdapterResidency
from loraplex.engine.adapter_leases import AdapterLeases
from loraplex.engine.events import RequestFailed, Started, TokenChunk, TokenScore
from loraplex.engine.kv_cache import PagePool, page_hash, root_hash
from loraplex.engine.logit_edits import LogitEdits
from loraplex.engine.pooling import Pooling
from loraplex.engine.sequence import Sequence

MAX_OVERTAKEN = 64
"""Sequences that may be admitted while an older one finds no room for its adapters, or waits for its turn to gather
several. Then those that run are the last before it: a popular adapter cannot keep a rare one waiting for ever. And of
those that have a higher priority, so many are put before an older one at most."""


GRAMMAR_TOO_COMPLEX = (
    "After the text so far, the grammar of this request takes more time or memory than it may. Make it simpler: fewer "
    "alternatives that begin alike, and no rule that can be read in many ways."
)


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    max_num_seqs: int
    max_step_tokens: int
    max_model_len: int
    eos_token_ids: frozenset[int]
    model_digest: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens [start, start + count) of a sequence run in this step; `samples`: the last of them gives a new token. A
    prompt that is to be embedded has no chunk that samples."""

    sequence: Sequence
    start: int
    count: int
    samples: bool


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Made by the scheduler, read by the runner. Chunks of one adapter stand together, those of the base first."""

    chunks: tuple[Chunk, ...]


class Scheduler:
    """Owns the waiting and the running sequences, and all that they hold."""

    def __init__(
        self,
        pages: PagePool,
        residency: AdapterResidency,
        limits: SchedulerLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """clock: the residency's."""
        self.pages = pages
        self.preemptions = 0
        self.prompt_tokens = 0
        self.cached_prompt_tokens = 0
        self._residency = residency
        self._adapters = AdapterLeases(residency)
        self._limits = limits
        self._clock = clock
        self._admissions = 0
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # in order of admission
        self._failures: list[RequestFailed] = []
        self._started: list[Started] = []

    @property
    def running(self) -> Tokens[Sequence]:
        return self._running

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def add(self, sequence: Sequence, after: str | None = None) -> None:
        """Queue a sequence, held back until the one named `after` has computed the prompt that they share, or is gone.

        One that can never run fails at the next `take_failures`.
        """
        new_tokens = 0 if sequence.pooling else 1
        if len(sequence.prompt) + new_tokens > self._limits.max_model_len:
            self._fail(sequence, "context_length_exceeded", f"the context is {self._limits.max_model_len} tokens")
            return
        older = None if after is None else self._find(after)
        if older is not None and sequence.has_pages_of(older) and self.pages.shareable(len(sequence.prompt)):
            sequence.after = older
        sequence.arrived_at = self._clock()
        if (rules := sequence.sampling.rules) is not None:
            sequence.edits = LogitEdits(rules, sequence.prompt, sequence.ends(self._limits.eos_token_ids))
        self._adapters.want(sequence)
        self._enqueue(sequence)

    def _enqueue(self, sequence: Sequence) -> None:
        """Behind all that wait, but for those of lower priority that have not given way too often."""
        place = len(self._waiting)
        while place and _gives_way(other := self._waiting[place - 1], sequence):
            other.overtaken += 1
            place -= 1
        self._waiting.insert(place, sequence)

    def abort(self, request_id: str) -> None:
        """Forget a sequence and free what it holds. An unknown id is one that has ended already."""
        sequence = self._find(request_id)
        if sequence is None:
            return
        sequence.has_ended = True
        self._free(sequence)
        if sequence in self._running:
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)
            self._stop_waiting(sequence)

    def schedule(self) -> StepPlan:
        """Running sequences first, in order of admission; then as many waiting ones as pages and budget allow."""
        chunks: list[Chunk] = []
        preempted = self.preemptions
        budget = self._continue_running(chunks)
        if self.preemptions == preempted:
            self._admit_waiting(chunks, budget)
        self._residency.load_ahead(is_busy=bool(chunks))
        chunks.sort(key=lambda chunk: chunk.sequence.group)
        return StepPlan(tuple(chunks))

    def commit(self, plan: StepPlan, sampled: Tokens[tuple[int, TokenScore | None]]) -> list[TokenChunk]:
        """Take in the results of a step: (token, its score) of each chunk that samples, in the plan's order."""
        results = iter(sampled)
        output: list[TokenChunk] = []
        for chunk in plan.chunks:
            chunk.sequence.computed += chunk.count
            if (pooling := chunk.sequence.pooling) is not None:
                if not chunk.sequence.remaining:
                    self._finish_embedding(chunk.sequence, pooling, output)
                continue
            self._register_pages(chunk.sequence)
            if chunk.samples and (told := self._append(chunk.sequence, *next(results))) is not None:
                output.append(told)
        return output

    def take_failures(self) -> list[RequestFailed]:
        failures, self._failures = self._failures, []
        return failures

    def take_started(self) -> list[Started]:
        """Sequences that the last plan has for the first time."""
        started, self._started = self._started, []
        return started

    def _continue_running(self, chunks: list[Chunk]) -> int:
        """Give every running sequence its next chunk, preempting the youngest when pages run out; the budget left."""
        budget = self._limits.max_step_tokens
        for sequence in list(self._running):
            count = min(sequence.remaining, budget)
            if count == 0 or sequence not in self._running:
                continue
            if self._grow(sequence, sequence.computed + count):
                chunks.append(_chunk(sequence, count))
                budget -= count
        return budget

    def _grow(self, sequence: Sequence, tokens: int) -> bool:
        """Pages for this many tokens; False when the sequence itself had to give way."""
        missing = self.pages.pages_for(tokens) - len(sequence.pages)
        while missing > 0:
            pages = self.pages.allocate(missing)
            if pages is not None:
                sequence.pages.extend(pages)
                break
            youngest = self._running.pop()
            self._preempt(youngest)
            if youngest is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the head of the queue; its tokens are kept and will be computed again."""
        self.preemptions += 1
        self._free(sequence)
        self._adapters.want(sequence)
        self._waiting.appendleft(sequence)

    def _admit_waiting(self, chunks: list[Chunk], budget: int) -> None:
        """In order of arrival. One whose adapter is not on the device yet is passed over, not waited for, unless what
        holds it up is others' use of the room and MAX_OVERTAKEN have gone ahead already. So is one that is held back:
        what it waits for stands before it, or runs."""
        passed: list[Sequence] = []
        most_admissions = math.inf
        while self._waiting and budget > 0 and len(self._running) < self._limits.max_num_seqs:
            if self._admissions >= most_admissions:
                self._adapters.make_way(passed)
                break
            sequence = self._waiting.popleft()
            if sequence.is_held_back:
                passed.append(sequence)
                continue
            try:
                if not self._adapters.take(sequence):
                    passed.append(sequence)
                    most_admissions = min(most_admissions, self._admissions_before(sequence))
                    continue
            except AdapterUnavailable as error:
                self._adapters.release(sequence)
                self._stop_waiting(sequence)
                self._fail(sequence, "adapter_load_failed", str(error))
                continue
            if not self._claim_pages(sequence):
                passed.append(sequence)
                break
            self._stop_waiting(sequence)
            self._admissions += 1
            self._note_start(sequence)
            self._running.append(sequence)
            count = min(sequence.remaining, budget)
            chunks.append(_chunk(sequence, count))
            budget -= count
        self._waiting.extendleft(reversed(passed))

    def _note_start(self, sequence: Sequence) -> None:
        if sequence.has_started:
            return
        sequence.has_started = True
        ready_at = sequence.arrived_at
        loads = {}
        for use in sequence.adapters:
            if load := self._residency.load_since(use.digest, sequence.arrived_at):
                loads[use.digest] = load[1]
                ready_at = max(ready_at, load[0])
        load_seconds, queue_seconds = ready_at - sequence.arrived_at, self._clock() - ready_at
        self._started.append(Started(sequence.request_id, queue_seconds, load_seconds, loads))

    def _stop_waiting(self, sequence: Sequence) -> None:
        sequence.owed_room_after = None
        sequence.after = None
        self._adapters.unwant(sequence)

    def _admissions_before(self, sequence: Sequence) -> float:
        """How many admissions there may have been before this one, which lacks an adapter yet."""
        if not self._adapters.is_held_up(sequence):
            return math.inf
        if sequence.owed_room_after is None:
            sequence.owed_room_after = self._admissions + MAX_OVERTAKEN
        return sequence.owed_room_after

    def _claim_pages(self, sequence: Sequence) -> bool:
        """Cached pages of its prefix and new ones for the rest of its tokens, or none at all."""
        sequence.pages = self._cached_prefix(sequence)
        fresh = self.pages.allocate(self.pages.pages_for(len(sequence.tokens)) - len(sequence.pages))
        if fresh is None:
            self._free(sequence)
            return False
        sequence.computed = len(sequence.pages) * self.pages.page_tokens
        sequence.pages.extend(fresh)
        if not sequence.generated:
            sequence.cached_tokens = sequence.computed
            self.prompt_tokens += len(sequence.prompt)
            self.cached_prompt_tokens += sequence.computed
        return True

    def _cached_prefix(self, sequence: Sequence) -> list[int]:
        """None for a prompt that is to be embedded: pages hold no hidden states. Its own are not to be found either,
        since prompts that are embedded are seldom continued."""
        if sequence.pooling is not None:
            return []
        if not sequence.page_hashes:
            if sequence.after is not None:
                sequence.page_hashes = sequence.after.page_hashes[: len(sequence.prompt) // self.pages.page_tokens]
            self._extend_hashes(sequence)
        reusable = self.pages.shareable(len(sequence.tokens))
        if sequence.awaits_scores:  # which come with the hidden states, and these are in no page
            reusable = len(sequence.prompt_scores) // self.pages.page_tokens
        return self.pages.find_prefix(sequence.page_hashes[:reusable])

    def _extend_hashes(self, sequence: Sequence) -> None:
        """Hash every page of tokens that is full and has no hash yet."""
        size = self.pages.page_tokens
        parent = (
            sequence.page_hashes[-1] if sequence.page_hashes else root_hash(self._limits.model_digest, sequence.salt)
        )
        for index in range(len(sequence.page_hashes), len(sequence.tokens) // size):
            tokens = sequence.tokens[index * size : (index + 1) * size]
            parent = page_hash(parent, tokens, index * size, sequence.adapters)
            sequence.page_hashes.append(parent)

    def _register_pages(self, sequence: Sequence) -> None:
        full = sequence.computed // self.pages.page_tokens
        if full > len(sequence.page_hashes):
            self._extend_hashes(sequence)
        if full > sequence.registered:
            for index in range(sequence.registered, full):
                self.pages.register(sequence.pages[index], sequence.page_hashes[index])
            sequence.registered = full

    def _append(self, sequence: Sequence, token: int, score: TokenScore | None) -> TokenChunk | None:
        """None: its grammar cannot be followed any further, and the sequence has failed."""
        before = sequence.generated
        finish_reason = sequence.finish_after(token, self._limits.eos_token_ids, self._limits.max_model_len)
        has_failed = sequence.matcher is not None and sequence.matcher.is_error()
        if has_failed or finish_reason is not None:
            sequence.has_ended = True
            self._running.remove(sequence)
            self._free(sequence)
        if has_failed:
            self._fail(sequence, "grammar_too_complex", GRAMMAR_TOO_COMPLEX)
            return None
        appended = sequence.generated > before
        return TokenChunk(
            request_id=sequence.request_id,
            token_ids=[token] if appended else [],
            logprobs=[score.logprob] if appended and score is not None else None,
            finish_reason=finish_reason,
            cached_tokens=sequence.cached_tokens,
            scores=[score] if appended and score is not None else None,
            stopped_by=score if finish_reason == "stop" else None,
            prompt_scores=sequence.prompt_scores if before == 0 and sequence.prompt_scores else None,
        )

    def _finish_embedding(self, sequence: Sequence, pooling: Pooling, output: list[TokenChunk]) -> None:
        self._running.remove(sequence)
        self._free(sequence)
        embedding = pooling.embedding()
        if embedding is None:
            self._fail(sequence, "embedding_not_finite", "the hidden states of this prompt are not finite numbers")
        else:
            output.append(TokenChunk(sequence.request_id, [], finish_reason="stop", embedding=embedding))

    def _free(self, sequence: Sequence) -> None:
        self.pages.release(sequence.pages)
        sequence.pages = []
        sequence.computed = 0
        sequence.registered = 0
        self._adapters.release(sequence)

    def _find(self, request_id: str) -> Sequence | None:
        """None: it has ended."""
        queues = (self._running, self._waiting)
        return next((found for queue in queues for found in queue if found.request_id == request_id), None)

    def _fail(self, sequence: Sequence, code: str, message: str) -> None:
        sequence.has_ended = True
        self._failures.append(RequestFailed(sequence.request_id, code, message))


def _gives_way(waiting: Sequence, other: Sequence) -> bool:
    """Whether a sequence that waits lets a younger one pass. One that is owed room is owed it whatever comes."""
    return waiting.priority > other.priority and waiting.owed_room_after is None and waiting.overtaken < MAX_OVERTAKEN


def _chunk(sequence: Sequence, count: int) -> Chunk:
    samples = count == sequence.remaining and sequence.pooling is None
    return Chunk(sequence, sequence.computed, count, samples)

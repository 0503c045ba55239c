"""Decide which tokens run in the next step: prefill chunks and decodes of any adapters, under one token budget.

Knows lengths, pages and adapter leases. Knows no tensors, text or tenants. Who waits, and for what, knows `admission`;
whose turn it is, `fair_queue`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Tokens
from dataclasses import dataclass

from loraplex.adapters.residency import AdapterResidency
from loraplex.engine.adapter_leases import AdapterLeases
from loraplex.engine.admission import Admission
from loraplex.engine.drafting import NO_DRAFTS, Drafting, DraftLimits
from loraplex.engine.events import OwnerShare, RequestFailed, Started, TokenChunk, TokenScore
from loraplex.engine.fair_queue import PROMPT_COST, TOKEN_COST, Owner
from loraplex.engine.kv_cache import PagePool
from loraplex.engine.logit_edits import LogitEdits
from loraplex.engine.pooling import Pooling
from loraplex.engine.sequence import Sequence
from loraplex.engine.sequence_pages import SequencePages
from loraplex.engine.step_plan import Chunk, StepPlan
from loraplex.engine.token_results import GRAMMAR_TOO_COMPLEX, joined, told_of

STINT_TOKENS = 16
"""What a sequence has computed at least, since it was admitted, before its seat is given to another owner's. So it gets
on however often that happens, and what it computes again is a page at most, as long as the prefix cache has the rest.
"""


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    max_num_seqs: int
    max_step_tokens: int
    max_model_len: int
    eos_token_ids: frozenset[int]
    model_digest: str
    drafts: DraftLimits = NO_DRAFTS


class Scheduler:
    """Owns the running sequences and, through `Admission`, the waiting ones; and all that they hold."""

    def __init__(
        self,
        pages: PagePool,
        residency: AdapterResidency,
        limits: SchedulerLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """clock: the residency's."""
        self.pages = SequencePages(pages, limits.model_digest)
        self.drafting = Drafting(limits.drafts, limits.max_model_len, self.pages)
        self.preemptions = 0
        self.clock = clock
        self._residency = residency
        self._adapters = AdapterLeases(residency)
        self._limits = limits
        self._waiting = Admission(self.pages, self._adapters, residency, clock, self._fail)
        self._running: list[Sequence] = []  # in order of admission
        self._failures: list[RequestFailed] = []

    @property
    def running(self) -> Tokens[Sequence]:
        return self._running

    def shares(self) -> list[OwnerShare]:
        """What each owner has of the engine, of those that had any in the last minutes."""
        return self._waiting.shares()

    @property
    def waiting(self) -> Iterable[Sequence]:
        """In no order that matters."""
        return self._waiting

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
        if older is not None and sequence.has_pages_of(older) and self.pages.pool.shareable(len(sequence.prompt)):
            sequence.after = older
        if (rules := sequence.sampling.rules) is not None:
            sequence.edits = LogitEdits(rules, sequence.prompt, sequence.ends(self._limits.eos_token_ids))
        self._waiting.enqueue(sequence)

    def abort(self, request_id: str) -> None:
        """Forget a sequence and free what it holds. An unknown id is one that has ended already."""
        sequence = self._find(request_id)
        if sequence is None:
            return
        sequence.has_ended = True
        self._free(sequence)
        if sequence in self._running:
            self._running.remove(sequence)
            self._waiting.end(sequence)
        else:
            self._waiting.remove(sequence)

    def schedule(self) -> StepPlan:
        """The next tokens of running sequences first, then prompts as far as the budget goes: those that are being read
        and those of waiting sequences that pages and seats allow; then drafts, where they pay."""
        chunks: list[Chunk] = []
        self._give_up_seat()
        preempted = self.preemptions
        budget = self._decode_running(chunks)
        may_admit = self.preemptions == preempted
        budget = self._continue_prompts(chunks, budget, may_admit=may_admit)
        if may_admit:
            self._admit_waiting(chunks, budget)
        self._residency.load_ahead(is_busy=bool(chunks))
        chunks = self.drafting.extended(chunks)
        chunks.sort(key=lambda chunk: chunk.sequence.group)
        return StepPlan(tuple(chunks))

    def commit(self, plan: StepPlan, sampled: Tokens[tuple[int, TokenScore | None]]) -> list[TokenChunk]:
        """Take in the results of a step: (token, its score) of each chunk that samples, in the plan's order. What
        drafts gave counts up to the first that was wrong."""
        results = iter(sampled)
        output: list[TokenChunk] = []
        for chunk in plan.chunks:
            sequence, result = chunk.sequence, next(results) if chunk.samples else None
            if not chunk.holds:
                continue
            sequence.computed += chunk.count
            if (pooling := sequence.pooling) is not None:
                if not sequence.remaining:
                    self._finish_embedding(sequence, pooling, output)
                continue
            self.pages.register(sequence)
            if result is not None:
                self._append(chunk, *result, output)
        return output

    def take_failures(self) -> list[RequestFailed]:
        failures, self._failures = self._failures, []
        return failures

    def take_started(self) -> list[Started]:
        """Sequences that the last plan has for the first time."""
        return self._waiting.take_started()

    def _give_up_seat(self) -> None:
        """Where an owner has more than its share of the seats and another one waits for its own, the youngest of the
        former goes back to wait: one in a step, and none that has just begun."""
        claim = self._waiting.claim(self._limits.max_num_seqs - len(self._running))
        if claim is None:
            return
        claimant, owner = claim
        may_go = (s for s in self._running if s.flow.owner is owner and s.priority >= claimant.level)
        youngest = max(
            (s for s in may_go if s.computed - s.stint_from >= STINT_TOKENS), key=lambda s: s.number, default=None
        )
        if youngest is not None:
            self._running.remove(youngest)
            self._preempt(youngest)

    def _decode_running(self, chunks: list[Chunk]) -> int:
        """Give every running sequence that generates its next token, preempting the youngest when pages run out; the
        budget left."""
        budget = self._limits.max_step_tokens
        for place, sequence in enumerate(list(self._running)):
            if place >= len(self._running):
                break  # it and all after it were preempted
            if budget and sequence.remaining == 1 and self._make_room(sequence, sequence.computed + 1):
                chunks.append(_planned(sequence, 1))
                budget -= 1
        return budget

    def _continue_prompts(self, chunks: list[Chunk], budget: int, *, may_admit: bool) -> int:
        """Give running sequences more of what they have to read: in the order in which they were admitted while there
        is budget for all, else those of owners with less service first, waiting ones among them; the budget left."""
        reading = [sequence for sequence in self._running if sequence.remaining > 1]
        is_short = sum(sequence.remaining for sequence in reading) > budget
        if is_short:
            reading.sort(key=lambda sequence: sequence.flow.owner.counter)
        for sequence in reading:
            if is_short and may_admit:
                budget = self._admit_waiting(chunks, budget, before=sequence.flow.owner)
            if count := min(sequence.remaining, budget):
                chunks.append(_planned(sequence, count))
                budget -= count
        return budget

    def _make_room(self, sequence: Sequence, tokens: int) -> bool:
        """Pages for this many tokens; False when the sequence itself had to give way."""
        while not self.pages.grow(sequence, tokens):
            youngest = self._running.pop()
            self._preempt(youngest)
            if youngest is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the head of its queue; its tokens are kept and will be computed again."""
        self.preemptions += 1
        self._free(sequence)
        self._waiting.put_back(sequence)

    def _admit_waiting(self, chunks: list[Chunk], budget: int, before: Owner | None = None) -> int:
        """The budget left. before: see Admission.admit."""
        if budget == 0 or not self._waiting:
            return budget
        for sequence in self._waiting.admit(self._limits.max_num_seqs - len(self._running), budget, before):
            self._running.append(sequence)
            count = min(sequence.remaining, budget)
            chunks.append(_planned(sequence, count))
            budget -= count
        return budget

    def _append(self, chunk: Chunk, token: int, score: TokenScore | None, output: list[TokenChunk]) -> None:
        """If its grammar cannot be followed any further, the sequence fails."""
        sequence = chunk.sequence
        sequence.flow.charge(TOKEN_COST)
        finish_reason = sequence.finish_after(token, self._limits.eos_token_ids, self._limits.max_model_len)
        has_failed = sequence.matcher is not None and sequence.matcher.is_error()
        if has_failed or finish_reason is not None:
            self._end(sequence)
        if has_failed:
            self._fail(sequence, "grammar_too_complex", GRAMMAR_TOO_COMPLEX)
            return
        told = told_of(sequence, chunk.index, score, finish_reason)
        if chunk.draft is not None:
            self.drafting.accepted += 1
            told = joined(output.pop(), told)
        output.append(told)

    def _finish_embedding(self, sequence: Sequence, pooling: Pooling, output: list[TokenChunk]) -> None:
        self._end(sequence)
        embedding = pooling.embedding()
        if embedding is None:
            self._fail(sequence, "embedding_not_finite", "the hidden states of this prompt are not finite numbers")
        else:
            output.append(TokenChunk(sequence.request_id, [], finish_reason="stop", embedding=embedding))

    def _end(self, sequence: Sequence) -> None:
        """Of one that runs."""
        sequence.has_ended = True
        self._running.remove(sequence)
        self._waiting.end(sequence)
        self._free(sequence)

    def _free(self, sequence: Sequence) -> None:
        self.pages.free(sequence)
        self._adapters.release(sequence)

    def _find(self, request_id: str) -> Sequence | None:
        """None: it has ended."""
        queues = (self._running, self._waiting)
        return next((found for queue in queues for found in queue if found.request_id == request_id), None)

    def _fail(self, sequence: Sequence, code: str, message: str) -> None:
        sequence.has_ended = True
        self._failures.append(RequestFailed(sequence.request_id, code, message))


def _planned(sequence: Sequence, count: int) -> Chunk:
    """The next tokens of a sequence, of which those of its prompt are charged."""
    if sequence.read < len(sequence.prompt):
        sequence.flow.charge(PROMPT_COST * sequence.newly_read(sequence.computed + count))
    samples = count == sequence.remaining and sequence.pooling is None
    return Chunk(sequence, sequence.computed, count, samples)

"""Which tokens the grammars of a step's sequences allow, worked out beside the forward pass and applied to its logits.

Runs in the engine process. Knows matchers and rows of logits; knows no requests. What compiles and matches is
llguidance, which is loaded with the first grammar: an engine that is asked for none needs none.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from loraplex.engine.events import Grammar

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher, LLTokenizer

    from loraplex.engine.step_plan import StepPlan

KEPT_CHARS = 2 << 20
"""Source of the grammars that are kept compiled: hundreds of usual ones, or 16 of the longest."""

MAX_THREADS = 8
CORES_PER_THREAD = 4


class Grammars:
    """Compiles grammars, each in a thread and once while it is kept; a matcher for every sequence that follows one.

    tokenizer: the base's file. on_compiled: called from a thread whenever a matcher is ready or has failed.
    """

    def __init__(
        self,
        tokenizer: Path,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        device: torch.device,
        on_compiled: Callable[[], None] = lambda: None,
    ) -> None:
        self.masks = GrammarMasks(vocab_size, device)
        self._path = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._on_compiled = on_compiled
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammars")
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._kept_chars = 0

    def begin(self, grammar: Grammar) -> Future[LLMatcher]:
        """A matcher of its own for one sequence. Fails with ValueError, whose message is for whoever wrote it."""
        matcher = self._thread.submit(self._begin, grammar)
        matcher.add_done_callback(lambda _: self._on_compiled())
        return matcher

    def _begin(self, grammar: Grammar) -> LLMatcher:
        from loraplex.engine.grammars import compile_grammar, load_tokenizer

        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._path, self._vocab_size, self._eos_token_ids)
        if grammar not in self._compiled:
            self._compiled[grammar] = compile_grammar(self._tokenizer, grammar)
            self._kept_chars += grammar.chars
        self._compiled.move_to_end(grammar)
        while self._kept_chars > KEPT_CHARS and len(self._compiled) > 1:
            self._kept_chars -= self._compiled.popitem(last=False)[0].chars
        return self._compiled[grammar].deep_copy()


class GrammarMasks:
    """The masks of one step at a time."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._words = -(-vocab_size // 32)
        self._device = device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar-masks")
        self._bits = torch.zeros((0, self._words), dtype=torch.int32)
        self._executor: LLExecutor | None = None
        unpacked = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") == 0
        self._refused_of_byte = torch.from_numpy(unpacked.view(np.int64).ravel()).to(device)
        """For every byte of a mask eight bools, as the eight bytes of an integer: whether each token is refused."""

    def begin(self, plan: StepPlan) -> StepMasks | None:
        """Start on the masks of a step whose logits are yet to come; None when no row that samples has a grammar."""
        sequences = [chunk.sequence for chunk in plan.chunks if chunk.samples]
        matchers = [(sequence.matcher, row) for row, sequence in enumerate(sequences) if sequence.matcher is not None]
        if not matchers:
            return None
        if len(self._bits) < len(matchers):
            on_gpu = self._device.type == "cuda"
            self._bits = torch.zeros((len(matchers), self._words), dtype=torch.int32, pin_memory=on_gpu)
        jobs = [(matcher, index) for index, (matcher, _) in enumerate(matchers)]
        rows = [row for _, row in matchers]
        return StepMasks(self, rows, self._thread.submit(self._fill, jobs))

    def refused(self, count: int, width: int) -> Tensor:
        """[count, width] bool on the device: tokens that the first `count` masks refuse, all that the base has not."""
        bits = self._bits[:count].to(self._device, non_blocking=True)
        refused = self._refused_of_byte[bits.view(torch.uint8).int()].view(torch.bool)
        known = refused.shape[1]
        return refused[:, :width] if width <= known else functional.pad(refused, (0, width - known), value=True)

    def _fill(self, jobs: list[tuple[LLMatcher, int]]) -> None:
        """Thread, free of the GIL where it matters. A matcher that cannot go on says so itself."""
        if self._executor is None:
            from llguidance import LLExecutor

            threads = min(max((os.cpu_count() or 1) // CORES_PER_THREAD, 1), MAX_THREADS)
            self._executor = LLExecutor(threads)
        bytes_each = self._words * self._bits.itemsize
        self._executor.unsafe_compute_mask_ptr(jobs, self._bits.data_ptr(), bytes_each, len(jobs))


@dataclass(frozen=True, slots=True)
class StepMasks:
    """rows: of the step's logits, those with a grammar."""

    masks: GrammarMasks
    rows: list[int]
    filled: Future[None]

    def applied(self, logits: Tensor) -> Tensor:
        """The logits, -inf where a grammar refuses the token; those that are given stay as they are."""
        self.filled.result()
        refused = self.masks.refused(len(self.rows), logits.shape[1])
        if len(self.rows) == len(logits):
            return logits.masked_fill(refused, -torch.inf)
        masked = logits.clone()
        masked[self.rows] = logits[self.rows].masked_fill(refused, -torch.inf)
        return masked

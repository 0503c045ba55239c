"""Run a step plan on the device: tensors in, token ids out. Knows the model and its memory; knows no queues."""

from __future__ import annotations

import torch
from torch import Tensor

from loraplex.engine.batch import BatchBuilder, BatchInputs, ScoredRows
from loraplex.engine.events import TokenScore
from loraplex.engine.grammar_masks import GrammarMasks
from loraplex.engine.graphs import DecodeGraphs
from loraplex.engine.logits import edited, scores
from loraplex.engine.models.decoder import Decoder, KVCache
from loraplex.engine.sequence import Sequence
from loraplex.engine.step_plan import StepPlan
from loraplex.kernels.ops import Kernels

Sampled = tuple[int, TokenScore | None]
"""A new token and, where it was asked for, how likely the model found it."""


class Runner:
    """One model on one device, with its KV cache. graphs: what replays decode steps; None: every step is launched.
    masks: for sequences with a grammar."""

    def __init__(
        self, decoder: Decoder, cache: KVCache, builder: BatchBuilder, kernels: Kernels, masks: GrammarMasks
    ) -> None:
        self.builder = builder
        self._masks = masks
        self.graphs: DecodeGraphs | None = None
        self._decoder = decoder
        self._cache = cache
        self._kernels = kernels

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> list[Sampled]:
        """The next token of every chunk that samples, in the plan's order. What was asked for of their prompts' tokens
        is added to the sequences."""
        masks = self._masks.begin(plan)
        inputs, logits = self._run(plan)
        sequences = [chunk.sequence for chunk in plan.chunks if chunk.samples]
        logits = logits[: len(sequences)]  # without the rows of padding
        allowed = logits if masks is None else masks.applied(logits)
        tokens = self._choose(sequences, inputs, allowed)
        return list(zip(tokens.tolist(), _scores(sequences, inputs, logits, tokens), strict=True))

    def forward(self, inputs: BatchInputs) -> Tensor:
        """Logits [rows, vocab] of a step that was built; its keys and values go to the cache."""
        return self._decoder.forward(inputs, self._cache)

    def _run(self, plan: StepPlan) -> tuple[BatchInputs, Tensor]:
        shape = self.graphs.shape_of(plan) if self.graphs else None
        inputs = self.builder.build(plan, shape)
        if self.graphs is not None and shape is not None:
            return inputs, self.graphs.logits(shape, inputs)
        hidden = self._decoder.hidden_states(inputs, self._cache)
        _pool(plan, hidden)
        for scored in inputs.scored:
            self._score(scored, hidden)
        return inputs, self._decoder.logits(hidden[inputs.sample_rows], inputs.ends)

    def _choose(self, sequences: list[Sequence], inputs: BatchInputs, logits: Tensor) -> Tensor:
        """[rows] int64. Rows with rules are chosen from logits of their own: others' are what they are without them."""
        edits = [sequence.edits.after(sequence.tokens) for sequence in sequences if sequence.edits is not None]
        if not edits:
            return self._kernels.sample(logits, inputs.sampling)
        rows = inputs.edited_rows
        own = edited(logits, rows, edits)
        if any(sequence.matcher is not None for sequence in sequences):  # where rules leave a grammar nothing, it wins
            own = torch.where(own.amax(1, keepdim=True).isneginf(), logits[rows].to(own.dtype), own)
        chosen = self._kernels.sample(own, inputs.sampling.of(rows))
        if len(edits) == len(sequences):
            return chosen
        tokens = self._kernels.sample(logits, inputs.sampling)
        tokens[rows] = chosen
        return tokens

    def _score(self, scored: ScoredRows, hidden: Tensor) -> None:
        logits = self._decoder.logits(hidden[scored.rows], scored.ends)
        most = [part.sequence.sampling.prompt_logprobs or 0 for part in scored.tokens for _ in range(part.size)]
        found = iter(scores(logits, scored.next_tokens, most))
        for part in scored.tokens:
            part.sequence.prompt_scores.extend(next(found) for _ in range(part.size))


def _scores(sequences: list[Sequence], inputs: BatchInputs, logits: Tensor, tokens: Tensor) -> list[TokenScore | None]:
    """Of the rows that want it: of the model's own distribution, before rules, temperature and filters."""
    most = [sequence.sampling.top_logprobs for sequence in sequences if sequence.sampling.logprobs]
    if not most:
        return [None] * len(sequences)
    rows = inputs.logprob_rows
    found = iter(scores(logits[rows], tokens[rows], most))
    return [next(found) if sequence.sampling.logprobs else None for sequence in sequences]


def _pool(plan: StepPlan, hidden: Tensor) -> None:
    """Add the step's hidden states to what prompts that are to be embedded have already."""
    poolings, sums, first = [], [], 0
    for chunk in plan.chunks:
        if (pooling := chunk.sequence.pooling) is not None:
            poolings.append((pooling, chunk.start))
            sums.append(hidden[first : first + chunk.count].sum(0, dtype=torch.float32))
        first += chunk.count
    for (pooling, start), total in zip(poolings, torch.stack(sums).cpu().numpy() if sums else (), strict=True):
        pooling.add(start, total)

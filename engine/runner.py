"""Run a step plan on the device: tensors in, token ids out. Knows the model and its memory; knows no queues."""

from __future__ import annotations

import torch
from torch import Tensor

from loraplex.engine.batch import BatchBuilder, BatchInputs
from loraplex.engine.grammar_masks import GrammarMasks
from loraplex.engine.graphs import DecodeGraphs
from loraplex.engine.models.decoder import Decoder, KVCache
from loraplex.engine.scheduler import StepPlan
from loraplex.kernels.ops import Kernels

Sampled = tuple[int, float | None]
"""A new token and, where it was asked for, its log-probability."""


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
        """The next token of every chunk that samples, in the plan's order."""
        masks = self._masks.begin(plan)
        inputs, logits = self._run(plan)
        logits = logits[: inputs.sampling.temperature.shape[0]]  # without the rows of padding
        tokens = self._kernels.sample(logits if masks is None else masks.applied(logits), inputs.sampling)
        return list(zip(tokens.tolist(), self._logprobs(plan, inputs, logits, tokens), strict=True))

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
        return inputs, self._decoder.logits(hidden, inputs)

    def _logprobs(self, plan: StepPlan, inputs: BatchInputs, logits: Tensor, tokens: Tensor) -> list[float | None]:
        """log softmax(logits)[token] of the rows that want it: of the model's own distribution, before temperature."""
        wanted = [chunk.sequence.sampling.logprobs for chunk in plan.chunks if chunk.samples]
        if not any(wanted):
            return [None] * len(wanted)
        rows = inputs.logprob_rows
        chosen = torch.log_softmax(logits[rows].float(), dim=-1).gather(1, tokens[rows].unsqueeze(1)).flatten()
        values = iter(chosen.tolist())
        return [next(values) if wants else None for wants in wanted]


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

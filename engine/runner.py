"""Run a step plan on the device: tensors in, token ids out. Knows the model and its memory; knows no queues."""

from __future__ import annotations

import torch
from torch import Tensor

from loraplex.engine.batch import BatchBuilder
from loraplex.engine.models.decoder import Decoder, KVCache
from loraplex.engine.scheduler import StepPlan
from loraplex.kernels.ops import Kernels

Sampled = tuple[int, float | None]
"""A new token and, where it was asked for, its log-probability."""


class Runner:
    """One model on one device, with its KV cache."""

    def __init__(self, decoder: Decoder, cache: KVCache, builder: BatchBuilder, kernels: Kernels) -> None:
        self._decoder = decoder
        self._cache = cache
        self._builder = builder
        self._kernels = kernels

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> list[Sampled]:
        """The next token of every chunk that samples, in the plan's order."""
        inputs = self._builder.build(plan)
        logits = self._decoder.forward(inputs, self._cache)
        tokens = self._kernels.sample(logits, inputs.sampling)
        return list(zip(tokens.tolist(), self._logprobs(plan, logits, tokens), strict=True))

    def _logprobs(self, plan: StepPlan, logits: Tensor, tokens: Tensor) -> list[float | None]:
        """log softmax(logits)[token] of the rows that want it: of the model's own distribution, before temperature."""
        wanted = [chunk.sequence.sampling.logprobs for chunk in plan.chunks if chunk.samples]
        if not any(wanted):
            return [None] * len(wanted)
        rows = torch.tensor([row for row, wants in enumerate(wanted) if wants], device=logits.device)
        chosen = torch.log_softmax(logits[rows].float(), dim=-1).gather(1, tokens[rows].unsqueeze(1)).flatten()
        values = iter(chosen.tolist())
        return [next(values) if wants else None for wants in wanted]

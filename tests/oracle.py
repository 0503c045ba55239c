"""The independent judge of every number: transformers + peft, fp32, one sequence and one adapter at a time.

A quantised engine is judged on the weights that its integers stand for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from loraplex.engine.models.weights import HEAD_BITS
from loraplex.kernels.quantization import quantize


@dataclass(frozen=True)
class Answer:
    """What the engine gave for one prompt."""

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]


@dataclass(frozen=True)
class Verdict:
    """The oracle's view of an answer's tokens, given the same text before each of them.

    decided: tokens at which the oracle's top-two margin exceeds epsilon; wrong: those of them where the engine chose
    another token; logprob_error: the largest |difference| of the chosen tokens' log-probabilities.
    """

    decided: int
    wrong: int
    logprob_error: float


def verdict(logits: torch.Tensor, answer: Answer, epsilon: float) -> Verdict:
    """logits [prompt and answer, vocab]: the oracle's, of the prompt with the answer behind it."""
    logits = logits[len(answer.prompt) - 1 : -1]
    top = logits.topk(2).values
    decided = top[:, 0] - top[:, 1] > epsilon
    chosen = torch.tensor(answer.tokens)
    wrong = decided & (logits.argmax(-1) != chosen)
    logprobs = logits.log_softmax(-1).gather(1, chosen.unsqueeze(1)).flatten()
    error = (logprobs - torch.tensor(answer.logprobs)).abs().max()
    return Verdict(int(decided.sum()), int(wrong.sum()), float(error))


Weighted = tuple[tuple[Path, float], ...]
"""Adapters whose weighted deltas are added up."""


def replace_weights(model: torch.nn.Module, quantization: str, dtype: torch.dtype = torch.float32) -> None:
    """By what the integers stand for that an engine makes of weights in dtype."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.weight = stand_in(name, module.weight, quantization, dtype)


def stand_in(
    name: str, weight: torch.nn.Parameter, quantization: str, dtype: torch.dtype = torch.float32
) -> torch.nn.Parameter:
    """A parameter of its own where it is quantised, so that the embedding keeps what it shares with the head."""
    if quantization == "none":
        return weight
    bits = int(quantization.removeprefix("int"))
    quantized = quantize(weight.detach().to(dtype), max(bits, HEAD_BITS) if name == "lm_head" else bits)
    return torch.nn.Parameter(quantized.dequantized(torch.float32))


class Oracle:
    """One base model with any number of PEFT adapters. quantization, dtype: as `use_weights` takes them."""

    def __init__(self, base: Path, quantization: str = "none", dtype: torch.dtype = torch.float32) -> None:
        self._base = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        linears = {name: module for name, module in self._base.named_modules() if isinstance(module, torch.nn.Linear)}
        self._linears = [(name, module, module.weight) for name, module in linears.items()]
        self._peft: PeftModel | None = None
        self.use_weights(quantization, dtype)

    def use_weights(self, quantization: str, dtype: torch.dtype = torch.float32) -> None:
        """Judge an engine whose base weights are quantised so, from weights in dtype; quantization: as in
        EngineSettings."""
        for name, module, weight in self._linears:
            module.weight = stand_in(name, weight, quantization, dtype)

    def judge(self, answer: Answer, adapter: Path | Weighted | None, epsilon: float) -> Verdict:
        """Compare a greedy answer, position by position, feeding the oracle the engine's own tokens."""
        return verdict(self.logits(answer.prompt + answer.tokens, adapter), answer, epsilon)

    def logits(self, tokens: list[int], adapter: Path | Weighted | None) -> torch.Tensor:
        """[len(tokens), vocab] fp32."""
        return self._run(tokens, adapter).logits[0]

    def embedding(self, tokens: list[int], adapter: Path | Weighted | None) -> torch.Tensor:
        """[hidden] fp32, of length 1: the mean of what the head reads."""
        hidden = self._run(tokens, adapter, output_hidden_states=True).hidden_states[-1][0]
        return torch.nn.functional.normalize(hidden.mean(0), dim=0)

    @torch.inference_mode()
    def _run(self, tokens: list[int], adapter: Path | Weighted | None, **options: Any) -> Any:
        ids = torch.tensor([tokens])
        if adapter is None and self._peft is None:
            return self._base(ids, **options)
        if adapter is None:
            assert self._peft is not None
            with self._peft.disable_adapter():
                return self._peft(ids, **options)
        model = self._with_adapter(adapter) if isinstance(adapter, Path) else self._with_sum(adapter)
        return model(ids, **options)

    def _with_sum(self, parts: Weighted) -> PeftModel:
        """PEFT's `cat`: the factors side by side, whose product is the sum of the weighted deltas."""
        model = [self._with_adapter(adapter) for adapter, _ in parts][-1]
        name = "+".join(f"{adapter}*{weight}" for adapter, weight in parts).replace(".", "_")
        if name not in model.peft_config:
            names = [_name(adapter) for adapter, _ in parts]
            model.add_weighted_adapter(names, [weight for _, weight in parts], name, combination_type="cat")
        model.set_adapter(name)
        return model

    def _with_adapter(self, adapter: Path) -> PeftModel:
        name = _name(adapter)
        if self._peft is None:
            self._peft = PeftModel.from_pretrained(self._base, adapter, adapter_name=name).eval()
        elif name not in self._peft.peft_config:
            self._peft.load_adapter(adapter, adapter_name=name)
            self._peft.eval()
        self._peft.set_adapter(name)
        return self._peft


def _name(adapter: Path) -> str:
    return str(adapter).replace(".", "_")

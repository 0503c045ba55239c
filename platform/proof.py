"""Run a version beside the base on stored prompts before it may serve: it loads, computes, and makes a difference.

Knows the engine and text; knows no row. What it finds goes into the version's report.
"""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from loraplex.adapters.types import AdapterSpec
from loraplex.engine.client import EngineClient, EngineUnavailable, GenerationFailed
from loraplex.engine.messages import AdapterUse, Generate, SamplingParams
from loraplex.engine.text import TextCodec

PROBES = (
    "Write a short note about the weather.",
    "My parcel has not arrived. What should I do?",
    "The capital of France is",
)
PROBE_TOKENS = 16
MAX_ENDING_TOKENS = 8

LASTING_FAILURES = frozenset({"adapter_load_failed", "adapter_quarantined"})
"""Of a generation: they are the adapter's own, and trying again later would not help."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A greedy answer to one probe: its tokens and the log-probability of each."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Proof:
    """`failures`: why the version must not serve, as entries of a report; none: it may. `report`: what was seen."""

    failures: list[dict[str, Any]] = field(default_factory=list)
    report: list[dict[str, Any]] = field(default_factory=list)


class Prover:
    """Remembers the base's answers, which are the same for every version."""

    def __init__(self, engine: EngineClient, text: TextCodec) -> None:
        self._engine = engine
        self._text = text
        self._base: tuple[str, list[Sample]] | None = None  # digest of the model that gave them

    async def prove(self, digest: str, spec: AdapterSpec) -> Proof:
        """Raises EngineUnavailable when the engine cannot say now."""
        ending = _ending(spec)
        base = await self._base_samples(ending)
        try:
            adapted = await self._answers(digest, ending, waits=bool(spec.invocation_tokens))
        except GenerationFailed as error:
            if error.code not in LASTING_FAILURES:
                raise EngineUnavailable(f"the engine could not run the version: {error}", 5) from error
            return Proof([_failure("cannot_run", f"the engine cannot run it: {error}")])
        if not all(map(math.isfinite, chain.from_iterable(sample.logprobs for sample in adapted))):
            return Proof([_failure("not_finite", "its logits on the probe prompts are not finite; train it again")])
        if adapted == base:
            reason = "it answers the probe prompts exactly as the base does: it changes nothing; is its B still zero?"
            return Proof([_failure("no_effect", reason)])
        return Proof(report=[self._report(base, adapted)])

    async def _base_samples(self, ending: list[int]) -> list[Sample]:
        model_digest = self._engine.ready.model_digest
        if self._base is not None and self._base[0] == model_digest and not ending:
            return self._base[1]
        try:
            samples = await self._answers(None, ending)
        except GenerationFailed as error:
            raise EngineUnavailable(f"the engine could not run the base: {error}", 5) from error
        if not ending:
            self._base = model_digest, samples
        return samples

    async def _answers(self, adapter: str | None, ending: list[int], *, waits: bool = False) -> list[Sample]:
        """To every probe, one after the other: on an idle engine equal weights then give numbers equal to the last bit.

        ending: token ids behind each probe; waits: the adapter acts from there on. Raises GenerationFailed,
        EngineUnavailable.
        """
        most = self._engine.ready.max_model_len // 2 - len(ending)
        answers = []
        for probe in PROBES:
            prompt = self._text.encode(probe)[: max(most, 1)]
            uses = () if adapter is None else (AdapterUse(adapter, start=len(prompt) if waits else 0),)
            answers.append(await self._answer([*prompt, *ending], uses))
        return answers

    async def _answer(self, prompt: list[int], adapters: tuple[AdapterUse, ...]) -> Sample:
        generation = self._engine.generate(
            Generate(
                request_id=f"probe-{uuid.uuid4().hex}",
                prompt=prompt,
                sampling=SamplingParams(max_tokens=PROBE_TOKENS, temperature=0.0, ignore_eos=True, logprobs=True),
                adapters=adapters,
                salt=b"probe",
            )
        )
        tokens: list[int] = []
        logprobs: list[float] = []
        try:
            async for chunk in generation:
                tokens += chunk.token_ids
                logprobs += chunk.logprobs or []
        finally:
            generation.abort()
        return Sample(tuple(tokens), tuple(logprobs))

    def _report(self, base: list[Sample], adapted: list[Sample]) -> dict[str, Any]:
        """How far the version's answers are from the base's, and one of each to look at."""
        pairs = list(zip(base, adapted, strict=True))
        first = [(mine.logprobs[0], other.logprobs[0]) for other, mine in pairs]
        return {
            "code": "proof",
            "prompts": len(PROBES),
            "answers_changed": sum(other.tokens != mine.tokens for other, mine in pairs),
            "mean_first_logprob_change": sum(abs(mine - other) for mine, other in first) / len(first),
            "sample": {
                "prompt": PROBES[0],
                "base": self._written(base[0]),
                "adapter": self._written(adapted[0]),
            },
        }

    def _written(self, sample: Sample) -> str:
        detokenizer = self._text.detokenizer()
        return detokenizer.push(sample.tokens) + detokenizer.flush()


def _ending(spec: AdapterSpec) -> list[int]:
    """What a probe must have in it to show anything: the invocation that an adapter waits for, or tokens of its own."""
    rows = (token for tokens in spec.token_rows.values() for token in tokens)
    return list(spec.invocation_tokens) or list(islice(rows, MAX_ENDING_TOKENS))


def _failure(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "where": "probe prompts", "message": message}

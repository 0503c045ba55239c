"""Run a version beside the base on stored prompts before it may serve: it loads, computes, and makes a difference.

A version with a chat template of its own is asked as that writes questions, and so is the base beside it. Knows the
engine and text; knows no row. What it finds goes into the version's report.
"""

from __future__ import annotations

import math
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from loraplex.adapters.types import AdapterSpec
from loraplex.engine.client import EngineClient, EngineUnavailable, GenerationFailed
from loraplex.engine.messages import AdapterUse, Generate, SamplingParams
from loraplex.engine.templates import TemplateError
from loraplex.engine.text import TextCodec
from loraplex.engine.untrusted_templates import UntrustedTemplates
from loraplex.platform.prompts import chat_prompt

PROBES = (
    "Write a short note about the weather.",
    "My parcel has not arrived. What should I do?",
    "The capital of France is",
)
PROBE_TOKENS = 16
MAX_PROMPT_TOKENS = 1024
"""Of a probe as a chat template writes it: its end is used."""

Prompts = tuple[tuple[int, ...], ...]
"""The probes as they are put to the engine."""

KEPT_ANSWERS = 16
"""Ways to write the probes of which the base's answers are kept."""

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
    """Remembers the base's answers, which are the same for every version that is asked in the same way."""

    def __init__(self, engine: EngineClient, text: TextCodec, templates: UntrustedTemplates) -> None:
        self._engine = engine
        self._text = text
        self._templates = templates
        self._base: OrderedDict[tuple[str, Prompts], list[Sample]] = OrderedDict()  # by the digest of its model, too

    async def prove(self, digest: str, spec: AdapterSpec, template: str | None = None, owner: str = "") -> Proof:
        """template: the version's own, of this owner. Raises EngineUnavailable when the engine cannot say now."""
        text = self._text.with_tokens(spec.added_tokens, spec.special_tokens)
        try:
            prompts = await self._prompts(text, _ending(spec), template, owner)
        except TemplateError as error:
            return Proof([_failure("chat_template_invalid", str(error))])
        base = await self._base_samples(prompts)
        try:
            adapted = await self._answers(digest, prompts, waits=len(spec.invocation_tokens))
        except GenerationFailed as error:
            if error.code not in LASTING_FAILURES:
                raise EngineUnavailable(f"the engine could not run the version: {error}", 5) from error
            return Proof([_failure("cannot_run", f"the engine cannot run it: {error}")])
        if not all(map(math.isfinite, chain.from_iterable(sample.logprobs for sample in adapted))):
            return Proof([_failure("not_finite", "its logits on the probe prompts are not finite; train it again")])
        if adapted == base:
            reason = "it answers the probe prompts exactly as the base does: it changes nothing; is its B still zero?"
            return Proof([_failure("no_effect", reason)])
        return Proof(report=[_report(base, adapted, self._text, text)])

    async def _prompts(self, text: TextCodec, ending: tuple[int, ...], template: str | None, owner: str) -> Prompts:
        """ending: tokens behind every probe."""
        if template is None:
            prompts = [text.encode(probe) for probe in PROBES]
        else:
            prompts = [
                await chat_prompt(text, self._templates, [_question(probe)], template=template, owner=owner)
                for probe in PROBES
            ]
        most = min(MAX_PROMPT_TOKENS, self._engine.ready.max_model_len // 2)
        return tuple(tuple([*prompt, *ending][-most:]) for prompt in prompts)

    async def _base_samples(self, prompts: Prompts) -> list[Sample]:
        """The base is asked without the tokens that it does not know."""
        known = self._engine.ready.vocab_size
        prompts = tuple(tuple(token for token in prompt if token < known) or (0,) for prompt in prompts)
        asked = self._engine.ready.model_digest, prompts
        if asked not in self._base:
            try:
                self._base[asked] = await self._answers(None, prompts)
            except GenerationFailed as error:
                raise EngineUnavailable(f"the engine could not run the base: {error}", 5) from error
        self._base.move_to_end(asked)
        if len(self._base) > KEPT_ANSWERS:
            self._base.popitem(last=False)
        return self._base[asked]

    async def _answers(self, adapter: str | None, prompts: Prompts, *, waits: int = 0) -> list[Sample]:
        """To every prompt, one after the other: on an idle engine equal weights then give numbers equal to the bit.

        waits: how many tokens at the end of a prompt are the invocation that the adapter waits for. Raises
        GenerationFailed, EngineUnavailable.
        """
        answers = []
        for prompt in prompts:
            start = max(len(prompt) - waits, 0) if waits else 0
            uses = () if adapter is None else (AdapterUse(adapter, start=start),)
            answers.append(await self._answer(prompt, uses))
        return answers

    async def _answer(self, prompt: tuple[int, ...], adapters: tuple[AdapterUse, ...]) -> Sample:
        request_id = f"probe-{uuid.uuid4().hex}"
        generation = self._engine.generate(
            Generate(
                request_id=request_id,
                prompt=list(prompt),
                sampling=SamplingParams(max_tokens=PROBE_TOKENS, temperature=0.0, ignore_eos=True, logprobs=True),
                adapters=adapters,
                salt=request_id.encode(),  # what an earlier run left in the prefix cache would change the last bits
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


def _report(base: list[Sample], adapted: list[Sample], base_text: TextCodec, text: TextCodec) -> dict[str, Any]:
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
            "base": _written(base_text, base[0]),
            "adapter": _written(text, adapted[0]),
        },
    }


def _written(text: TextCodec, sample: Sample) -> str:
    detokenizer = text.detokenizer()
    return detokenizer.push(sample.tokens) + detokenizer.flush()


def _ending(spec: AdapterSpec) -> tuple[int, ...]:
    """What a probe must have in it to show anything: the invocation that an adapter waits for, or tokens of its own."""
    rows = (token for tokens in spec.token_rows.values() for token in tokens)
    added = (token.id for token in spec.added_tokens)
    return spec.invocation_tokens or tuple(islice(chain(rows, added), MAX_ENDING_TOKENS))


def _question(probe: str) -> dict[str, str]:
    return {"role": "user", "content": probe}


def _failure(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "where": "probe prompts", "message": message}

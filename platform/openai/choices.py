"""The choices of one request: sequences that begin together, are followed together and end together.

Knows which of them share a prompt, how each gets draws of its own, and which are the best. Knows no response shape.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec

from loraplex.engine.messages import Generate, SamplingParams
from loraplex.platform.errors import ApiError
from loraplex.platform.ledger.meter import Course, Meter
from loraplex.platform.ledger.record import Tokens
from loraplex.platform.limits.admission import Admission
from loraplex.platform.openai.answer import Answer, news_of_any
from loraplex.platform.openai.generation_types import PromptTokensDetails, Usage


def check_count(prompts: int, per_prompt: int, most: int, param: str) -> None:
    """Raises ApiError for more choices than a request may have. param: the field that asks for several per prompt."""
    if prompts * per_prompt > most:
        asked = f"{prompts} prompts with {per_prompt} choices each" if prompts > 1 else f"{per_prompt} choices"
        message = f"You asked for {asked}; a request has at most {most} choices in all. Ask for less, or send several."
        raise ApiError(400, "invalid_value", message, param=param if per_prompt > 1 else "prompt")


def sequences_of(prompts: Sequence[Generate], per_prompt: int) -> list[Generate]:
    """What the engine is asked for: `per_prompt` sequences for each, prompt by prompt, the first as it is given.

    What has the same prompt waits for the first with it, which computes it for all. The draws of the others come from
    the request's seed and their place among those of their prompt, so a prompt in a list is answered as it is alone.
    """
    if len(prompts) == per_prompt == 1:
        return list(prompts)
    sequences: list[Generate] = []
    first_with: dict[tuple[int, ...], str] = {}
    for asked in prompts:
        for index in range(per_prompt):
            request_id = f"{asked.request_id}-{len(sequences)}" if sequences else asked.request_id
            first = first_with.setdefault(tuple(asked.prompt), request_id)
            sampling, after = _with_own_seed(asked.sampling, index), None if first == request_id else first
            sequences.append(msgspec.structs.replace(asked, request_id=request_id, sampling=sampling, after=after))
    return sequences


def _with_own_seed(sampling: SamplingParams, index: int) -> SamplingParams:
    """Without a seed the engine draws one for each. A hash, since the draws of neighbouring seeds may have to do with
    each other."""
    if sampling.seed is None or index == 0:
        return sampling
    digest = hashlib.sha256(f"{sampling.seed}/{index}".encode()).digest()
    return replace(sampling, seed=int.from_bytes(digest[:8]) >> 1)


class Choices:
    """Whoever opens them closes them, whatever happens.

    running: (index, answer) of those that have not ended, as far as `news` has told. per_prompt: how many answers each
    prompt has. kept: how many of these are choices of the response: the best ones, or without `best_of` all.
    """

    def __init__(
        self,
        asked: Sequence[Generate],
        start: Callable[[Generate], Answer],
        *,
        per_prompt: int,
        kept: int,
        admission: Admission,
        meter: Meter,
    ) -> None:
        """start: has the engine run one. Raises what it raises, and then none runs. admission: settled with them.
        meter: told of them once they run."""
        self.admission = admission
        self._answers: list[Answer] = []
        self._per_prompt = per_prompt
        self._kept = kept
        try:
            for sequence in asked:
                self._answers.append(start(sequence))
        except BaseException:
            for answer in self._answers:
                answer.has_failed = True
            self.close()
            raise
        self.running = list(enumerate(self._answers))
        self._said: list[list[str]] | None = [[] for _ in self._answers] if meter.keeps_contents else None
        meter.watch(self)

    @property
    def first(self) -> Answer:
        return self._answers[0]

    async def begin(self) -> None:
        """Wait for the first token of the first: what fails before it still has an HTTP status of its own."""
        waiting = list(self._answers)
        while waiting and waiting[0] is self.first:
            for answer in await _with_news(waiting):
                await answer.begin()
                waiting.remove(answer)
        self.admission.begin()

    async def news(self) -> list[tuple[int, Answer, str]]:
        """Of each that got tokens, what text they make certain: those that got them at the same time together.

        Its answer's `finish_reason` is set with the last of it.
        """
        if len(self.running) == 1:
            ((index, answer),) = self.running
            text = await answer.next_text()  # which itself waits, at less cost
            self.admission.begin()
            if answer.finish_reason is not None:
                self.running = []
            self._keep(index, text)
            return [(index, answer, text)]
        await news_of_any([answer for _, answer in self.running])
        news = [(index, answer, await answer.next_text()) for index, answer in self.running if answer.has_news]
        self.admission.begin()
        for index, _, text in news:
            self._keep(index, text)
        self.running = [(index, answer) for index, answer in self.running if answer.finish_reason is None]
        return news

    async def texts(self) -> list[tuple[Answer, str]]:
        """The choices of the response with all of their text, prompt by prompt; where some are left out, best first."""
        pieces: list[list[str]] = [[] for _ in self._answers]
        while self.running:
            for index, _, text in await self.news():
                pieces[index].append(text)
        texts = [(answer, "".join(parts)) for answer, parts in zip(self._answers, pieces, strict=True)]
        if self._kept == self._per_prompt:
            return texts
        groups = (texts[start : start + self._per_prompt] for start in range(0, len(texts), self._per_prompt))
        return [choice for group in groups for choice in sorted(group, key=_likelihood, reverse=True)[: self._kept]]

    @property
    def usage(self) -> Usage:
        """Of all that ran, those that were not kept too; a prompt counts once, as the first with it found it."""
        usages = [answer.usage for answer in self._answers]
        firsts = usages[:: self._per_prompt]
        prompt = sum(usage.prompt_tokens for usage in firsts)
        completion = sum(usage.completion_tokens for usage in usages)
        cached = sum(usage.prompt_tokens_details.cached_tokens for usage in firsts)
        return Usage(prompt, completion, prompt + completion, PromptTokensDetails(cached))

    def usage_of(self, index: int) -> Usage:
        """Of one of them, so far."""
        return self._answers[index].usage

    def tell(self) -> None:
        """All of them are in the whole answer."""
        for answer in self._answers:
            answer.tell()

    def told(self) -> Tokens:
        """Of prompts that have begun, each once, and of what is in frames."""
        if len(self._answers) == 1:
            return self.first.told()
        told = [answer.told() for answer in self._answers]
        firsts = told[:: self._per_prompt]
        return Tokens(
            sum(tokens.prompt_tokens for tokens in firsts),
            sum(tokens.cached_tokens for tokens in firsts),
            sum(tokens.completion_tokens for tokens in told),
        )

    def course(self) -> Course:
        """That of the first; failed, if any has."""
        first, started = self.first, self.first.started
        return Course(
            None if any(answer.finish_reason is None for answer in self._answers) else first.finish_reason,
            any(answer.has_failed for answer in self._answers),
            None if started is None else started.queue_seconds,
            None if started is None else started.load_seconds,
            first.first_token_at,
        )

    def said(self) -> str:
        """The texts of all so far, if the meter keeps contents."""
        return "\n\n".join("".join(pieces) for pieces in self._said or ())

    def _keep(self, index: int, text: str) -> None:
        if self._said is not None:
            self._said[index].append(text)

    def close(self) -> None:
        """Abort what still runs, and count all: what failed without an answer has used nothing. May be called again."""
        has_failed = any(answer.has_failed for answer in self._answers)
        for answer in reversed(self._answers):  # the first last: what waits for its prompt must not go on to compute it
            answer.has_failed |= has_failed
            answer.close()
        if self.admission.is_held:
            usage = self.usage
            self.admission.settle(0 if has_failed and not usage.completion_tokens else usage.total_tokens)


async def _with_news(answers: Sequence[Answer]) -> list[Answer]:
    """Wait until there are some, and these."""
    await news_of_any(answers)
    return [answer for answer in answers if answer.has_news]


def _likelihood(choice: tuple[Answer, str]) -> float:
    return choice[0].mean_logprob

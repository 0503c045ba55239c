"""Many users who ask one model name without a pause, and the proof of which version gave each answer.

Knows OpenAI's client, and what each version says when it is asked alone. Knows no alias and who moves it: whoever does
says in `may_answer` what the name may stand for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import count

from openai import AsyncOpenAI, OpenAIError


@dataclass(frozen=True)
class Question:
    """Asked greedily. `runs_on`: past the end of the answer, to max_tokens."""

    text: str
    max_tokens: int = 10
    runs_on: bool = False


@dataclass(frozen=True)
class Answer:
    """One streamed answer, with everything in it that says who gave it: the body's two names, a header, the text."""

    question: Question
    model: str
    header: str
    fingerprint: str
    text: str


@dataclass(frozen=True)
class Version:
    """How the answers of one version look. `texts`: what it says when nothing else runs."""

    model: str
    fingerprint: str
    texts: Mapping[Question, str]


@dataclass(frozen=True)
class Record:
    """An answer that came whole and whose version is certain. `phase`: in which it was asked for and began."""

    phase: str
    user: str
    version: int
    first_token_seconds: float


def attribute(answer: Answer, versions: Mapping[int, Version]) -> int:
    """The version that gave the answer. Raises ValueError unless name, header, fingerprint and text say the same."""
    claimed = next((number for number, version in versions.items() if version.model == answer.model), None)
    if claimed is None:
        raise ValueError(f"{answer.model} answered, which is no version that there is")
    version = versions[claimed]
    seen = (answer.header, answer.fingerprint, answer.text)
    expected = (version.model, version.fingerprint, version.texts.get(answer.question))
    for what, found, right in zip(("header", "fingerprint", "text"), seen, expected, strict=True):
        if found != right:
            raise ValueError(f"{answer.model} answered with the {what} {found!r}; alone it is {right!r}")
    return claimed


async def ask(
    client: AsyncOpenAI,
    model: str,
    question: Question,
    user: str = "",
    on_first_token: Callable[[], None] = lambda: None,
) -> Answer:
    """A streamed answer, whole. Raises OpenAIError, or what its connection raises."""
    response = await client.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "user", "content": question.text}],
        user=user,
        temperature=0,
        max_tokens=question.max_tokens,
        stream=True,
        extra_body={"ignore_eos": question.runs_on},
    )
    on_first_token()  # the server answers nothing at all before it has one
    names, pieces, finish = set(), [], None
    async for chunk in response.parse():
        names.add((chunk.model, chunk.system_fingerprint or ""))
        for choice in chunk.choices:
            pieces.append(choice.delta.content or "")
            finish = choice.finish_reason or finish
    if finish is None or len(names) != 1:
        raise OpenAIError(f"the stream broke off, or changed its name on the way: {names}")
    ((name, fingerprint),) = names
    return Answer(question, name, response.headers.get("x-adapter-version", ""), fingerprint, "".join(pieces))


@dataclass
class Traffic:
    """Everybody asks `model`. A wrong answer is a failure, and so is one of a version that may not answer now.

    `phase` names the time between two changes of what the name stands for; while it changes there is none.
    """

    client: AsyncOpenAI
    model: str
    versions: Mapping[int, Version]
    may_answer: frozenset[int] = frozenset()
    phase: str = ""
    phases: list[str] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _one_ended: asyncio.Event = field(default_factory=asyncio.Event)

    @contextmanager
    def changing(self, may_answer: set[int], phase: str) -> Iterator[None]:
        """In this block the name comes to stand for these versions; until its end the old ones may answer, too."""
        self.phase = ""
        self.may_answer |= may_answer
        yield
        self.may_answer = frozenset(may_answer)
        self.phase = phase
        self.phases.append(phase)

    async def ended(self, requests: int) -> None:
        """Wait until so many requests of this phase have ended."""
        while sum(record.phase == self.phase for record in self.records) + len(self.failures) < requests:
            self._one_ended.clear()
            await self._one_ended.wait()

    async def request(self, user: str, question: Question, on_first_token: Callable[[], None] = lambda: None) -> None:
        """One request, to the end of its answer."""
        started = first_token_at = time.monotonic()
        phases, allowed = {self.phase}, self.may_answer

        def note_first_token() -> None:
            nonlocal first_token_at, allowed
            first_token_at = time.monotonic()
            phases.add(self.phase)
            allowed |= self.may_answer
            on_first_token()

        try:
            answer = await ask(self.client, self.model, question, user, note_first_token)
            version = attribute(answer, self.versions)
            if version not in allowed:
                raise ValueError(f"version {version} answered, which had no share of the name then")
            phase = phases.pop() if len(phases) == 1 else ""
            self.records.append(Record(phase, user, version, first_token_at - started))
        except Exception as error:  # whatever it is, it is what is counted here
            self.failures.append(f"{user}, {question.text!r}: {error!r}")
        self._one_ended.set()

    @asynccontextmanager
    async def streaming(self, questions: Sequence[Question], users: int, streams: int) -> AsyncIterator[None]:
        """While the block runs, `streams` requests are under way, of all users in turn. At its end they all end."""
        stop = asyncio.Event()
        numbers = count()

        async def keep_asking() -> None:
            while not stop.is_set():
                number = next(numbers)
                await self.request(f"user-{number % users}", questions[number % len(questions)])

        async with asyncio.TaskGroup() as tasks:
            for _ in range(streams):
                tasks.create_task(keep_asking())
            try:
                yield
            finally:
                stop.set()

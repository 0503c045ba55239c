"""One request inside the engine: its tokens, and how far they are computed. Knows no tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loraplex.adapters.device_adapter import DeviceAdapter
from loraplex.engine.events import AdapterUse, FinishReason, SamplingParams, TokenScore
from loraplex.engine.logit_edits import LogitEdits
from loraplex.engine.pooling import Pooling
from loraplex.engine.prompt_lookup import PromptLookup

if TYPE_CHECKING:
    from llguidance import LLMatcher


@dataclass(slots=True, eq=False)
class Sequence:
    """State of a request from its arrival to its end; the scheduler owns it.

    tokens [0, computed) have keys and values in `pages`; [computed, len(tokens)) are still to be run.
    pooling: of a prompt that is to be embedded; it is run once, and nothing is sampled.
    pages [0, registered) can be found by others through their hash.
    owner: an opaque name of whoever asked; nothing depends on it.
    group: names its adapters, in a string because that sorts fastest: chunks of one group stand together in a step.
    leases: of the first of its adapters; once it runs, of all.
    arrived_at: on the scheduler's clock; has_started: whether it has run before.
    owed_room_after: the number of admissions from which on no younger sequence is admitted before this one; None while
    it has not been found to lack room for its adapters.
    after: an older one with the same pages, whose prompt it waits for instead of computing it too; None once it runs.
    matcher: where its tokens are in the grammar that they have to follow; stays with it through preemptions.
    overtaken: how many younger sequences of higher priority were put before it while it waited.
    edits: what its rules do to its logits; None where it has none.
    lookup: what its text makes expect next; None while it has not been asked.
    prompt_scores: of the prompt's tokens from the second on, as far as they were asked for and are computed.
    """

    request_id: str
    prompt: list[int]
    sampling: SamplingParams
    adapters: tuple[AdapterUse, ...]
    salt: bytes
    seed: int
    priority: int = 0
    owner: str = ""
    arrived_at: float = 0.0
    has_started: bool = False
    tokens: list[int] = field(init=False)
    group: str = field(init=False)
    computed: int = 0
    registered: int = 0
    cached_tokens: int = 0
    pages: list[int] = field(default_factory=list)
    page_hashes: list[bytes] = field(default_factory=list)
    leases: tuple[DeviceAdapter, ...] = ()
    owed_room_after: int | None = None
    after: Sequence | None = None
    has_ended: bool = False
    pooling: Pooling | None = None
    matcher: LLMatcher | None = None
    overtaken: int = 0
    edits: LogitEdits | None = None
    lookup: PromptLookup | None = None
    prompt_scores: list[TokenScore] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)
        self.group = "+".join(f"{use.digest}*{use.scale!r}@{use.start}" for use in self.adapters)

    @property
    def remaining(self) -> int:
        """Tokens to run before the next one can be sampled: 1 in decode, more in prefill."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.prompt)

    @property
    def is_held_back(self) -> bool:
        """Whether what it waits for is still to come: the other one has no token yet, and can have one."""
        return self.after is not None and not (self.after.generated or self.after.has_ended)

    def has_pages_of(self, other: Sequence) -> bool:
        """Whether the pages of both prompts are the same ones."""
        return (self.salt, self.adapters, self.prompt) == (other.salt, other.adapters, other.prompt)

    @property
    def awaits_scores(self) -> bool:
        """Whether tokens of the prompt are still to be scored."""
        return self.sampling.prompt_logprobs is not None and len(self.prompt_scores) < len(self.prompt) - 1

    def ends(self, eos_token_ids: frozenset[int]) -> frozenset[int]:
        """Tokens that end it."""
        stops = frozenset(self.sampling.stop_token_ids)
        return stops if self.sampling.ignore_eos else stops | eos_token_ids

    def most_new_tokens(self, max_model_len: int) -> int:
        """That may still be generated."""
        return min(self.sampling.max_tokens - self.generated, max_model_len - len(self.tokens))

    def finish_after(self, token: int, eos_token_ids: frozenset[int], max_model_len: int) -> FinishReason | None:
        """Whether this newly sampled token ends the sequence. A stop token is not appended, any other is, unless none
        was asked for. One after which its grammar allows no more ends it too."""
        if self.sampling.max_tokens == 0:
            return "length"
        if token in self.sampling.stop_token_ids or (token in eos_token_ids and not self.sampling.ignore_eos):
            return "stop"
        self.tokens.append(token)
        if self.matcher is not None and self.matcher.consume_token(token) and self.matcher.is_stopped():
            return "stop"
        if self.generated >= self.sampling.max_tokens or len(self.tokens) >= max_model_len:
            return "length"
        return None

"""The engine's own vocabulary: what it is asked for one sequence, and what it tells. Plain data, no tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from loraplex.adapters.whereabouts import LoadTimes

FinishReason = Literal["stop", "length", "abort"]
"""stop: a stop token (or, in the API process, a stop string); length: max_tokens or the context is full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitRules:
    """What changes a sequence's logits before a token is chosen from them. `logit_edits` has the formulas.

    Tokens are ids below the model's vocabulary. logit_bias: what is added to a token's logit. allowed_token_ids: no
    other token is chosen; None is all. bad_words: sequences of tokens that are not generated; each has a token at
    least. min_tokens: before so many no token that ends the sequence is chosen.
    """

    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()
    min_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when to stop. Bounds are checked where requests enter, in platform.

    temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 are off. With a seed, a request's draws depend on the seed and
    the position alone, never on what it is batched with. max_tokens 0 computes the prompt and chooses nothing.
    rules: None for nearly all requests, which then pay nothing for them.

    `logprobs` asks for the log-probability of each chosen token, `top_logprobs` for those of so many most likely tokens
    beside it, and `prompt_logprobs` for both of each token of the prompt but the first; None: not at all. All are of
    the model's own distribution, before rules, temperature and filters.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = False
    top_logprobs: int = 0
    prompt_logprobs: int | None = None
    rules: LogitRules | None = None


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the text of an answer has to follow: a JSON schema as JSON text, a regular expression, or a grammar in
    Lark's notation. otherwise: another grammar, which a text may follow instead."""

    kind: Literal["json_schema", "regex", "lark"]
    source: str
    otherwise: Grammar | None = None

    @property
    def chars(self) -> int:
        """Of all of it."""
        return len(self.source) + (self.otherwise.chars if self.otherwise else 0)


class Share(NamedTuple):
    """Whose part of the engine a sequence uses, as an opaque name, and how large that is beside the others'."""

    owner: str = ""
    weight: float = 1.0


NOBODY = Share()
"""Of what the server runs for itself."""


class AdapterUse(NamedTuple):
    """What one adapter version adds to a request: `scale` times its part of every sum, from the token at position
    `start` on."""

    digest: str
    scale: float = 1.0
    start: int = 0


def only(digest: str | None) -> tuple[AdapterUse, ...]:
    """One adapter as it is, or with None the base."""
    return () if digest is None else (AdapterUse(digest),)


MAX_ADAPTERS = 8
"""Most adapters in one request."""


class TokenScore(NamedTuple):
    """How likely the model found a token: its log-probability, its rank among all tokens (1: the most likely), and the
    most likely ones, best first, as (token, log-probability)."""

    token: int
    logprob: float
    rank: int
    top: list[tuple[int, float]]


class TokenChunk(NamedTuple):
    """New tokens of one sequence. The last chunk of a sequence has a finish reason; it may have no tokens.

    A stop token ends the sequence and is not among its tokens. `cached_tokens`: prompt tokens whose keys and values
    came from the prefix cache. What was asked for of log-probabilities: `scores`, of these tokens; `stopped_by`, of the
    stop token that ended the sequence; with the first chunk `prompt_scores`, of the prompt's tokens from the second on.
    `embedding`: of a prompt that was to be embedded, its only chunk; fp32, little-endian.
    """

    request_id: str
    token_ids: list[int]
    logprobs: list[float] | None = None
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    scores: list[TokenScore] | None = None
    stopped_by: TokenScore | None = None
    prompt_scores: list[TokenScore] | None = None
    embedding: bytes | None = None


class Started(NamedTuple):
    """A sequence is in a step for the first time, and what it waited for until then, in seconds since its arrival.

    `load`: for its adapters to come to the device; 0 where all were there. `queue`: all the rest. `loads`: the adapters
    that it found missing, by digest, and how they came.
    """

    request_id: str
    queue_seconds: float
    load_seconds: float
    loads: dict[str, LoadTimes]


class RequestFailed(NamedTuple):
    """The sequence ended with an error that is its own: code `adapter_load_failed`, `context_length_exceeded`, ..."""

    request_id: str
    code: str
    message: str


class ResidentAdapter(NamedTuple):
    """An adapter in a memory tier. `leases`: running sequences that hold it there."""

    digest: str
    size_bytes: int
    leases: int


@dataclass(frozen=True, slots=True)
class RunningSequence:
    """`adapters`: the digests of its versions, none for the base."""

    request_id: str
    adapters: list[str]
    prompt_tokens: int
    generated_tokens: int
    pages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerShare:
    """What one owner has of the engine. Service is counted in the cost of a token of a prompt; see `fair_queue`.

    counter: all service over the weight, from some beginning on; only differences between owners mean something.
    recent_service: of the last five minutes. oldest_seconds: how long ago the oldest of those that wait came; 0: none.
    """

    owner: str
    weight: float
    counter: float
    recent_service: float
    running: int
    waiting: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step as it ran. `adapters`: digests in the batch; `base`: sequences of the base model stood beside them.
    `drafted_tokens`: tried ahead by prompt lookup, among `decode_tokens`; `accepted_tokens`: those that were right.

    `at`: Unix time of its end. `schedule_seconds`: to decide what runs, before it. `execute_seconds`: to run it; both
    that and to take in what came of it are in `seconds`. `preemptions`: sequences that gave their pages back before it.
    """

    step: int
    at: float
    schedule_seconds: float
    execute_seconds: float
    seconds: float
    prefill_tokens: int
    decode_tokens: int
    sequences: int
    adapters: list[str]
    base: bool
    drafted_tokens: int
    accepted_tokens: int
    pages_used: int
    preemptions: int


STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bounds of the steps' histogram, each included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Counters of a running engine. `steps` advances whenever `running` is not 0; tokens count since its start.

    step_seconds: of all steps together; steps_by_seconds: how many took at most each of STEP_SECONDS and more than the
    one before, and at the end how many took longer.
    """

    steps: int
    running: int
    waiting: int
    pages_total: int
    pages_used: int
    pages_cached: int
    preemptions: int
    prompt_tokens: int
    cached_prompt_tokens: int
    generated_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    adapter_loads: int
    adapter_evictions: int
    adapter_device_bytes_used: int
    adapter_pinned_bytes: int
    adapter_host_bytes_used: int
    step_seconds: float = 0.0
    steps_by_seconds: tuple[int, ...] = (0,) * (len(STEP_SECONDS) + 1)

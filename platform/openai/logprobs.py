"""Log-probabilities of tokens as OpenAI's two text endpoints tell them, and of a prompt's as vLLM does.

All are the model's own, before penalties, temperature and filters. Knows scores and a codec; knows no request.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from loraplex.engine.messages import TokenScore
from loraplex.engine.text import Detokenizer, TextCodec

LOWEST = -9999.0
"""Told for a token that the model rules out: JSON has no infinity."""


class ScoredToken(NamedTuple):
    """A token, where it begins in the text of its choice, and how likely it was; None: it has nothing before it."""

    token: int
    offset: int
    score: TokenScore | None


class Wording(NamedTuple):
    """What an answer tells of log-probabilities, in the tokens of `text`: those of the answer, those of the prompt."""

    text: TextCodec
    of_answer: bool
    of_prompt: bool

    def prompt(self, scores: Iterable[TokenScore]) -> PromptLogprobs | msgspec.UnsetType:
        return prompt_logprobs(scores, self.text) if self.of_prompt else msgspec.UNSET


# -- chat ----------------------------------------------------------------------------------------------------------


class TokenLogprob(msgspec.Struct, frozen=True):
    """`bytes` are the token's; `token` is their text, in which part of a character is U+FFFD."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(TokenLogprob, frozen=True):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    content: list[ChatTokenLogprob]
    refusal: None = None


def chat_logprobs(tokens: Iterable[ScoredToken], text: TextCodec) -> ChatLogprobs:
    return ChatLogprobs([_chat_token(scored.score, text) for scored in tokens if scored.score is not None])


def _chat_token(score: TokenScore, text: TextCodec) -> ChatTokenLogprob:
    top = [TokenLogprob(*_worded(token, logprob, text)) for token, logprob in score.top]
    return ChatTokenLogprob(*_worded(score.token, score.logprob, text), top)


def _worded(token: int, logprob: float, text: TextCodec) -> tuple[str, float, list[int]]:
    data = text.token_bytes(token)
    return _text(data), max(logprob, LOWEST), list(data)


# -- completions ---------------------------------------------------------------------------------------------------


class TextLogprobs(msgspec.Struct, frozen=True):
    """Of the same token at the same place. Nothing is likely or unlikely at the beginning: the first token of an echoed
    prompt has null. A stop token that ended the text is the last one, where the text ends."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


def text_logprobs(tokens: Sequence[ScoredToken], text: TextCodec) -> TextLogprobs:
    return TextLogprobs(
        tokens=[_text(text.token_bytes(scored.token)) for scored in tokens],
        token_logprobs=[None if scored.score is None else max(scored.score.logprob, LOWEST) for scored in tokens],
        top_logprobs=[None if scored.score is None else _top(scored.score, text) for scored in tokens],
        text_offset=[scored.offset for scored in tokens],
    )


def echoed(prompt: Sequence[int], scores: Sequence[TokenScore], detokenizer: Detokenizer) -> Iterator[ScoredToken]:
    """A prompt's tokens where they are in its text. scores: from the second token on."""
    offset = 0
    for token, score in zip(prompt, [None, *scores], strict=True):
        yield ScoredToken(token, offset, score)
        offset += len(detokenizer.push([token]))


def _top(score: TokenScore, text: TextCodec) -> dict[str, float]:
    """The most likely ones and the token itself. Of tokens with the same text, the most likely."""
    top: dict[str, float] = {}
    for token, logprob in (*score.top, (score.token, score.logprob)):
        top.setdefault(_text(text.token_bytes(token)), max(logprob, LOWEST))
    return top


# -- prompts -------------------------------------------------------------------------------------------------------


class PromptLogprob(msgspec.Struct, frozen=True):
    """rank: 1 is the most likely token."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""For each token of the prompt, by token ids: the token itself and the most likely ones; null for the first."""


def prompt_logprobs(scores: Iterable[TokenScore], text: TextCodec) -> PromptLogprobs:
    """scores: of the prompt's tokens from the second on."""
    return [None, *(_by_token_id(score, text) for score in scores)]


def _by_token_id(score: TokenScore, text: TextCodec) -> dict[str, PromptLogprob]:
    ranked = [(score.token, score.logprob, score.rank)]
    ranked += [(token, logprob, rank) for rank, (token, logprob) in enumerate(score.top, 1) if token != score.token]
    return {
        str(token): PromptLogprob(max(logprob, LOWEST), rank, _text(text.token_bytes(token)))
        for token, logprob, rank in ranked
    }


def _text(data: bytes) -> str:
    return data.decode(errors="replace")

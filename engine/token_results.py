"""What is told of the tokens that a step sampled for a sequence. Knows sequences; knows no queues and no tensors."""

from __future__ import annotations

from loraplex.engine.events import FinishReason, TokenChunk, TokenScore
from loraplex.engine.sequence import Sequence

GRAMMAR_TOO_COMPLEX = (
    "After the text so far, the grammar of this request takes more time or memory than it may. Make it simpler: fewer "
    "alternatives that begin alike, and no rule that can be read in many ways."
)


def told_of(sequence: Sequence, index: int, score: TokenScore | None, finish_reason: FinishReason | None) -> TokenChunk:
    """Of one sampled token, which the sequence has taken in: a stop token is not among those that are told.

    index: of the token among those that are generated.
    """
    appended = sequence.generated > index
    scores = [score] if appended and score is not None else None
    return TokenChunk(
        request_id=sequence.request_id,
        token_ids=sequence.tokens[-1:] if appended else [],
        logprobs=None if scores is None else [scores[0].logprob],
        finish_reason=finish_reason,
        cached_tokens=sequence.cached_tokens,
        scores=scores,
        stopped_by=score if finish_reason == "stop" and not appended else None,
        prompt_scores=sequence.prompt_scores if index == 0 and sequence.prompt_scores else None,
    )


def joined(first: TokenChunk, then: TokenChunk) -> TokenChunk:
    """Of tokens of one sequence that a step sampled one after the other; only the last may have ended it."""
    return then._replace(
        token_ids=first.token_ids + then.token_ids,
        logprobs=None if first.logprobs is None else first.logprobs + (then.logprobs or []),
        scores=None if first.scores is None else first.scores + (then.scores or []),
        prompt_scores=first.prompt_scores,
    )

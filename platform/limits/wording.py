"""Limits in words: the headers that tell a client where it stands, and the refusals. Knows no request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from loraplex.platform.errors import ApiError
from loraplex.platform.limits.bucket import Bucket

MAX_RETRY_SECONDS = 60
"""Clients ignore what is longer; after it the answer may still be no."""

LimitType = Literal["requests", "tokens"]


class Shortage(NamedTuple):
    """Of a limit that is in the way of a request. unit: what is limited, such as "tokens per minute". seconds: until it
    is out of the way; infinity: never."""

    kind: LimitType
    whose: str
    unit: str
    limit: int
    left: float
    needed: int
    seconds: float


def told_headers(requests: Sequence[Bucket], tokens: Sequence[Bucket], now: float) -> dict[str, str]:
    """The tightest limit on each: that which has the least left. Nothing of what is not limited."""
    headers: dict[str, str] = {}
    if requests:
        _tell(headers, "requests", requests, now)
    if tokens:
        _tell(headers, "tokens", tokens, now)
    return headers


class LimitReached(ApiError):
    """unit: of what there is too little, as in `Shortage`."""

    unit: str


def refusal(shortage: Shortage, told: dict[str, str]) -> LimitReached:
    """429 that says whose limit it is and when to try again. What needs more than the limit is not tried again."""
    limited = f"{shortage.whose}: {shortage.limit} {shortage.unit}"
    if shortage.seconds == math.inf:
        message = (
            f"Request too large for {limited}; this request needs {shortage.needed}, so it can never run. Send less, "
            f"ask for less in 'max_tokens', or ask the operator for a higher limit."
        )
        headers = {"x-should-retry": "false"}
    else:
        milliseconds = min(max(math.ceil(shortage.seconds * 1000), 1), MAX_RETRY_SECONDS * 1000)
        seconds = math.ceil(milliseconds / 1000)
        message = (
            f"Rate limit reached for {limited}, of which {max(0, math.floor(shortage.left))} are left; this request "
            f"needs {shortage.needed}. Try again in {seconds} s."
        )
        headers = {"retry-after": str(seconds), "retry-after-ms": str(milliseconds)}
    error = LimitReached(429, "rate_limit_exceeded", message, type=shortage.kind, headers={**told, **headers})
    error.unit = shortage.unit
    return error


def duration(seconds: float) -> str:
    """As OpenAI writes it: 20ms, 1s, 6m0s; rounded up."""
    milliseconds = math.ceil(seconds * 1000 - 1e-6)
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds > 0 else "0s"
    minutes, rest = divmod(math.ceil(milliseconds / 1000), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _tell(headers: dict[str, str], kind: LimitType, buckets: Sequence[Bucket], now: float) -> None:
    tightest = buckets[0] if len(buckets) == 1 else min(buckets, key=lambda bucket: bucket.remaining(now))
    headers[f"x-ratelimit-limit-{kind}"] = str(int(tightest.capacity))
    # What came back in fractions may be a hair below a whole.
    headers[f"x-ratelimit-remaining-{kind}"] = str(max(0, int(tightest.remaining(now) + 1e-6)))
    headers[f"x-ratelimit-reset-{kind}"] = duration(tightest.seconds_until_full(now))

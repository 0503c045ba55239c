"""A token bucket: so much at once, and as much again every minute. Knows numbers and moments; knows no clock."""

from __future__ import annotations

from typing import NamedTuple

REFILL_SECONDS = 60.0


class Use(NamedTuple):
    """What was taken, or where it is below 0 given back, in the last `seconds`; and what comes back in a second."""

    taken: float
    seconds: float
    rate: float

    def after(self, used: float, seconds: float) -> float:
        """What has not come back, of this and of what had not that long ago. All of it counts as taken at once, when
        the first was, so it may come to a little less than it is: at most what comes back in that time."""
        since = min(self.seconds, seconds)
        return max(0.0, max(0.0, used - (seconds - since) * self.rate) + self.taken - since * self.rate)


class Bucket:
    """Up to `capacity` may be taken at once; what was taken comes back evenly, a whole capacity in REFILL_SECONDS.

    So in any t seconds no more is taken than capacity * (1 + t / REFILL_SECONDS), where nothing is taken that
    `seconds_until` says is not there. What was used and could not be asked for is charged all the same: then the bucket
    owes it, and has nothing until it is paid.

    rate: what comes back in a second. untold: what was taken here since other buckets for the same last heard of it;
    below 0, what was given back. The moments that methods are given, in seconds, never go back.
    """

    __slots__ = ("_at", "_told", "_untold_since", "_used", "capacity", "rate", "untold")

    def __init__(self, capacity: float, now: float) -> None:
        self.capacity = capacity
        self.rate = capacity / REFILL_SECONDS
        self.untold = 0.0
        self._told = 0.0
        self._untold_since = now
        self._used = 0.0  # of what was taken, what has not come back at `_at`; may be above the capacity
        self._at = now

    def remaining(self, now: float) -> float:
        """What may be taken; below 0 where it owes."""
        return self.capacity - self._used_at(now)

    def seconds_until(self, amount: float, now: float) -> float:
        """How long `amount`, at most the capacity, has to wait if nobody takes anything before; 0: it is there."""
        return max(0.0, amount - self.remaining(now)) / self.rate

    def seconds_until_full(self, now: float) -> float:
        return self._used_at(now) / self.rate

    def charge(self, amount: float, now: float) -> None:
        """Take so much; below 0, give back what was taken and not used, as far as it has not come back by itself."""
        used = self._used_at(now)
        amount = max(amount, -used)
        self._used, self._at = used + amount, now
        if not self.untold:
            self._untold_since = now
        self.untold += amount

    def resize(self, capacity: float, now: float) -> None:
        """What was taken stays taken."""
        self._used, self._at = self._used_at(now), now
        self.capacity, self.rate = capacity, capacity / REFILL_SECONDS

    def tell(self, most_seconds: float, now: float) -> Use:
        """What is untold. Where it began longer ago than `most_seconds`, without what came back before: that could not
        be told, and was this bucket's own to allow."""
        self._told = self.untold
        seconds = now - self._untold_since
        alone = max(0.0, seconds - most_seconds)
        taken = max(0.0, self.untold - alone * self.rate) if self.untold > 0 else self.untold
        return Use(taken, seconds - alone, self.rate)

    def hear(self, used: float, now: float) -> None:
        """Of what all have taken, that has not come back; what was told last is part of it."""
        self.untold -= self._told
        self._untold_since = now
        self._used = max(0.0, used + self.untold)
        self._at = now

    def _used_at(self, now: float) -> float:
        used = self._used - (now - self._at) * self.rate
        return used if used > 0 else 0.0

"""Loads that failed, remembered for a while: whoever asks again at once is told the same and costs nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable

from loraplex.adapters.errors import AdapterError, AdapterUnavailable

_logger = logging.getLogger(__name__)


class LoadFailures:
    """By digest. What is no AdapterError goes to the log, and its text to nobody else."""

    def __init__(self, retry_after_seconds: float, clock: Callable[[], float]) -> None:
        self._retry_after_seconds = retry_after_seconds
        self._clock = clock
        self._failures: dict[str, tuple[float, str]] = {}  # digest -> (when to try again, message)

    def remember(self, digest: str, error: BaseException) -> None:
        if isinstance(error, AdapterError):
            message = str(error)
        else:
            _logger.error("loading adapter %s failed", digest, exc_info=error)
            message = "the adapter could not be loaded; try again later"
        now = self._clock()
        self._failures = {key: entry for key, entry in self._failures.items() if entry[0] > now}
        self._failures[digest] = (now + self._retry_after_seconds, message)

    def check(self, digest: str) -> None:
        """Raises AdapterUnavailable if it failed lately."""
        failure = self._failures.get(digest)
        if failure is None:
            return
        try_again_at, message = failure
        if self._clock() < try_again_at:
            raise AdapterUnavailable(message)
        del self._failures[digest]

    def forget(self, digest: str) -> None:
        self._failures.pop(digest, None)

"""Find the first stop string in text that comes in pieces. Knows nothing of tokens."""

from __future__ import annotations


class StopStrings:
    """Passes text on as soon as it can no longer be the beginning of a stop string.

    `found` is the stop string once there is a match; the text before it has been passed on and nothing after it ever
    is. The stop string itself is passed on if `included`.
    """

    def __init__(self, stops: tuple[str, ...], *, included: bool = False) -> None:
        self.found: str | None = None
        self._included = included
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> str:
        """The text that is now certain."""
        if not self._stops:
            return text
        if self.found:
            return ""
        text = self._held + text
        matches = [(at, len(stop), stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if matches:
            at, length, self.found = min(matches)
            self._held = ""
            return text[: at + length * self._included]
        held = self._longest_beginning(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """What was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held

    def _longest_beginning(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        longest = min(max((len(stop) - 1 for stop in self._stops), default=0), len(text))
        return next((n for n in range(longest, 0, -1) if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)

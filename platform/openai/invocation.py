"""Where an adapter begins to act on a prompt. Knows token ids only."""

from __future__ import annotations

from collections.abc import Sequence

from loraplex.adapters.registry import VersionInfo
from loraplex.engine.messages import AdapterUse


def uses_of(version: VersionInfo | None, prompt: Sequence[int]) -> tuple[AdapterUse, ...]:
    """A version as a whole; or from its invocation on, if it is one that waits for that. As in PEFT, a prompt without
    the invocation is answered by the base."""
    if version is None:
        return ()
    if not version.invocation_tokens:
        return (AdapterUse(version.digest),)
    start = last_place_of(version.invocation_tokens, prompt)
    return () if start is None else (AdapterUse(version.digest, start=start),)


def last_place_of(invocation: Sequence[int], prompt: Sequence[int]) -> int | None:
    """The position at which the last occurrence of `invocation`, which is not empty, begins."""
    wanted = list(invocation)
    backwards = prompt[::-1]
    end = 0
    while True:
        try:
            end = backwards.index(wanted[-1], end)
        except ValueError:
            return None
        last = len(prompt) - end
        if prompt[last - len(wanted) : last] == wanted:
            return last - len(wanted)
        end += 1

"""Where an adapter begins to act on a prompt. Knows token ids only."""

from __future__ import annotations

from collections.abc import Sequence

from loraplex.engine.messages import AdapterUse
from loraplex.platform.catalog import WeightedVersion


def uses_of(adapters: Sequence[WeightedVersion], prompt: Sequence[int]) -> tuple[AdapterUse, ...]:
    """Versions as a whole; or from their invocation on, those that wait for one. As in PEFT, what is not invoked in the
    prompt leaves the base as it is."""
    uses = []
    for version, weight in ((adapter.version, adapter.weight) for adapter in adapters):
        start = last_place_of(version.invocation_tokens, prompt) if version.invocation_tokens else 0
        if start is not None:
            uses.append(AdapterUse(version.digest, weight, start))
    return tuple(uses)


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

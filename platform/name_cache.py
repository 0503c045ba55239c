"""What names stood for when they were last asked for. Knows subjects and targets; knows no database.

Only what was found is kept: a name that is not there is looked for every time, so that a new one is found at once.
"""

from __future__ import annotations

from collections import OrderedDict

from loraplex.adapters.changes import names_of
from loraplex.adapters.registry import Target

MAX_NAMES = 50_000
"""Of all adapters together. A name takes 1.6 KB, and as much for each further version that shares its traffic."""

MAX_SELECTORS = 64
"""Selectors of one adapter: its aliases and the versions that are called by number."""


class NameCache:
    """Least recently used adapters leave first. `generation` rises whenever something is forgotten."""

    def __init__(self, max_names: int = MAX_NAMES) -> None:
        self.generation = 0
        self._max_names = max_names
        self._names = 0
        self._adapters: OrderedDict[str, dict[str | None, tuple[Target, ...]]] = OrderedDict()

    def get(self, tenant_id: str, adapter: str, selector: str | None) -> tuple[Target, ...] | None:
        subject = names_of(tenant_id, adapter)
        selectors = self._adapters.get(subject)
        if selectors is None:
            return None
        self._adapters.move_to_end(subject)
        return selectors.get(selector)

    def put(self, tenant_id: str, adapter: str, selector: str | None, targets: tuple[Target, ...]) -> None:
        subject = names_of(tenant_id, adapter)
        if len(self._adapters.get(subject, ())) >= MAX_SELECTORS:
            self._forget_adapter(subject)
        selectors = self._adapters.setdefault(subject, {})
        self._adapters.move_to_end(subject)
        self._names += selector not in selectors
        selectors[selector] = targets
        while self._names > self._max_names and len(self._adapters) > 1:
            self._forget_adapter(next(iter(self._adapters)))

    def forget(self, subjects: frozenset[str] | None) -> None:
        """A `changes.Listener`."""
        self.generation += 1
        for subject in list(self._adapters) if subjects is None else subjects:
            self._forget_adapter(subject)

    def _forget_adapter(self, subject: str) -> None:
        self._names -= len(self._adapters.pop(subject, ()))

"""What names stood for when they were last asked for. Knows subjects and targets; knows no database.

Only what was found is kept: a name that is not there is looked for every time, so that a new one is found at once.
"""

from __future__ import annotations

from collections import OrderedDict

from loraplex.adapters.changes import names_of
from loraplex.adapters.registry import Target

MAX_ADAPTERS = 20_000
MAX_SELECTORS = 64
"""Selectors of one adapter: its aliases and the versions that are called by number."""


class NameCache:
    """Least recently used adapters leave first. `generation` rises whenever something is forgotten."""

    def __init__(self, max_adapters: int = MAX_ADAPTERS) -> None:
        self.generation = 0
        self._max_adapters = max_adapters
        self._adapters: OrderedDict[str, dict[str | None, tuple[Target, ...]]] = OrderedDict()

    def get(self, tenant_id: str, adapter: str, selector: str | None) -> tuple[Target, ...] | None:
        subject = names_of(tenant_id, adapter)
        selectors = self._adapters.get(subject)
        if selectors is None:
            return None
        self._adapters.move_to_end(subject)
        return selectors.get(selector)

    def put(self, tenant_id: str, adapter: str, selector: str | None, targets: tuple[Target, ...]) -> None:
        selectors = self._adapters.setdefault(names_of(tenant_id, adapter), {})
        if len(selectors) >= MAX_SELECTORS:
            selectors.clear()
        selectors[selector] = targets
        if len(self._adapters) > self._max_adapters:
            self._adapters.popitem(last=False)

    def forget(self, subjects: frozenset[str] | None) -> None:
        """A `changes.Listener`."""
        self.generation += 1
        if subjects is None:
            self._adapters.clear()
        else:
            for subject in subjects:
                self._adapters.pop(subject, None)

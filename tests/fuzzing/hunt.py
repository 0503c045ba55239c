"""Look for the requests that an operation answers wrongly, and shrink each to its smallest form."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from fuzzing.by_document import MODES, DocumentCases
from fuzzing.cases import Operation, Sent, odd_requests_to, requests_to
from fuzzing.documented import Undocumented
from fuzzing.site import FuzzSite, Hang
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky, Unsatisfiable
from hypothesis.strategies import SearchStrategy
from schemathesis import Case

SHARE_BY_DOCUMENT = 0.2
"""Of the cases of an operation, those that schemathesis makes; as many right ones as wrong ones."""

WEIGHT_OF_BODIES = 8
"""How many cases an operation that reads a body has for each one of an operation that does not."""

ORDER = ("post", "put", "patch", "get", "head", "delete")
"""Methods, so that what was written is read, and nothing is gone before."""

STOCK_LASTS = 20
"""Cases of an operation for which what there is on the server will do."""


@dataclass(frozen=True)
class Found:
    """A case that is answered wrongly, and how."""

    operation: str
    case: str
    why: str

    def __str__(self) -> str:
        return f"{self.operation}\n  sent: {self.case}\n  got:  {self.why}"


def hunt(
    name: str,
    cases: SearchStrategy[Any],
    send: Callable[[Any], None],
    *,
    shown: Callable[[Any], str] = str,
    most: int,
    start: int,
) -> list[Found]:
    """Send up to `most` cases; at most one is told. start: the seed; the same one gives the same cases."""
    found: list[Found] = []

    @seed(start)
    @settings(
        max_examples=most, database=None, deadline=None, phases=(Phase.generate, Phase.shrink), print_blob=False,
        report_multiple_bugs=False, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(cases)
    def sent_all(case: Any) -> None:
        try:
            send(case)
        except Hang as error:
            found.append(Found(name, shown(case), str(error)))
            raise unittest.SkipTest from error  # not shrunk: that would wait again and again
        except Undocumented as error:
            found.append(Found(name, shown(case), str(error)))
            raise

    try:
        sent_all()
    except (Undocumented, unittest.SkipTest, Flaky):  # the last: what was on the server has a part in it
        return found[-1:]
    except Unsatisfiable:  # there is no such case, of an operation without any parameter for one
        return []
    return []


ENDLESS = frozenset({"/api/v1/admin/engine/live"})
"""An answer of a minute, that takes no input: tests/platform/test_live.py watches it."""


def look_for(
    site: FuzzSite, operations: Sequence[Operation], cases: int, start: int, tick: Callable[[], None] = lambda: None
) -> Iterator[Found]:
    """Send so many cases to the operations together, or a few more. start: the seed. tick: called for each case."""
    by_document = DocumentCases(site)
    ordered = _in_order(operations)
    weights = [WEIGHT_OF_BODIES if operation.reads_body else 1 for operation in ordered]
    method = ""
    for operation, weight in zip(ordered, weights, strict=True):
        share = cases * weight / sum(weights)
        if operation.method != method or (share > STOCK_LASTS and operation.method not in ("get", "head")):
            site.restock()
            method = operation.method

        def send(sent: Sent) -> None:
            tick()
            site.send(sent)

        def send_by_document(case: Case, operation: Operation = operation) -> None:
            tick()
            by_document.send(operation, case)

        most = ceil(share * (1 - SHARE_BY_DOCUMENT))
        yield from hunt(str(operation), requests_to(operation, site.known, site.files), send, most=most, start=start)
        for mode in MODES[: 1 + operation.can_be_wrong]:
            most = ceil(share * SHARE_BY_DOCUMENT / 2)
            cases_of = by_document.of(operation, mode)
            yield from hunt(str(operation), cases_of, send_by_document, shown=by_document.shown, most=most, start=start)


def look_at_odd_values(
    site: FuzzSite, operations: Sequence[Operation], *, every: int = 1, tick: Callable[[], None] = lambda: None
) -> Iterator[Found]:
    """Send each odd value of each field and parameter once, or every so many of them."""
    for operation in _in_order(operations):
        told: set[str] = set()
        for number, sent in enumerate(odd_requests_to(operation, site.known)):
            if number % every:
                continue
            tick()
            try:
                site.send(sent)
            except Undocumented as error:
                if (reason := str(error)[:80]) not in told:
                    told.add(reason)
                    yield Found(str(operation), str(sent), str(error))


def _in_order(operations: Sequence[Operation]) -> list[Operation]:
    return sorted((o for o in operations if o.path not in ENDLESS), key=lambda each: ORDER.index(each.method))

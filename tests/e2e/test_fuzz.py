"""Whatever is sent to whichever operation: no 5xx, no hang, and no answer that the OpenAPI document does not have.

What is generated is in `fuzzing/`; `make fuzz` runs thousands of cases, this a few of each kind, the same every time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fuzzing.documented import Undocumented
from fuzzing.hunt import hunt, look_at_odd_values, look_for
from fuzzing.site import FuzzSite, fuzz_site
from hypothesis import strategies as st

CASES = 300
SEED = 20_000


@pytest.fixture(scope="module")
def fuzzed(
    tiny_model_dir: Path, make_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FuzzSite]:
    with fuzz_site(tiny_model_dir, tmp_path_factory.mktemp("fuzz"), make_adapter) as site:
        yield site


def test_every_route_is_covered(fuzzed: FuzzSite) -> None:
    """Cases are made of the routes, so a new one has them by itself; what reads a body says what it reads."""
    assert {(operation.method, operation.path) for operation in fuzzed.operations} == set(fuzzed.documented.operations)
    for operation in fuzzed.operations:
        described = fuzzed.documented.document["paths"][operation.path][operation.method]
        assert operation.reads_body == ("requestBody" in described), operation


def test_no_input_gets_an_answer_that_is_not_documented(fuzzed: FuzzSite) -> None:
    """Bodies, forms, paths, queries and headers, right and wrong, with the keys of tenants, an operator's and none.
    Afterwards the server is as whole as before."""
    found = list(look_for(fuzzed, fuzzed.operations, CASES, SEED))
    found += look_at_odd_values(fuzzed, fuzzed.operations, every=97)

    assert not found, "\n\n".join(map(str, found))
    fuzzed.check_whole()


@pytest.mark.parametrize("times", [1, 1000])
def test_what_is_found_is_told_though_it_is_not_seen_again(times: int) -> None:
    """Whether a case is answered wrongly may depend on what came before it; the hunt goes on all the same."""
    sent: list[int] = []

    def send(case: int) -> None:
        sent.append(case)
        if len(sent) >= 3 and len(sent) < 3 + times:
            raise Undocumented("no")

    (found,) = hunt("GET /", st.integers(), send, most=20, start=SEED)
    assert found.why == "no"
    assert int(found.case) in sent

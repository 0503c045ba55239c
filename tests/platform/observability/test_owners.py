"""Series of tenants and adapters: few, whatever comes, and right in sum."""

from __future__ import annotations

from collections import Counter

from api_running import VERSION
from hypothesis import given
from hypothesis import strategies as st

from loraplex.platform.catalog import ResolvedModel, WeightedVersion
from loraplex.platform.metrics import Metrics
from loraplex.platform.observability.owners import OTHER, REVIEW_SECONDS, Owner, OwnerMetrics, TopUsers, Used
from loraplex.platform.tenants import Principal

MOST = 3
PRINCIPAL = Principal(key_id="k1", tenant_id="t1", tenant="acme", scopes=frozenset(), salt=b"")
MODEL = ResolvedModel("acme/bot@7", (WeightedVersion(VERSION, 1.0),))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 1000), st.booleans()), max_size=60))
def test_series_are_few_and_their_rates_add_up(uses: list[tuple[int, int, bool]]) -> None:
    """Whoever uses however much, there are never more series than asked for and `other`; and what Prometheus makes of
    them, to whom a fall or a new series is a start from 0, is all that was used."""
    now = 0.0
    users = TopUsers(MOST, 1, lambda: now)
    seen: dict[tuple[str, ...], int] = {}
    increase: Counter[str] = Counter()

    def scrape() -> None:
        nonlocal now, seen
        now += REVIEW_SECONDS
        told = {key: used.prompt for key, used in users.series()}
        assert len(told) <= MOST + 1
        for key, value in told.items():
            before = seen.get(key, 0)
            increase["all"] += value - before if value >= before else value
        assert told[OTHER,] >= seen.get((OTHER,), 0)
        seen = told

    for tenant, tokens, is_scraped in uses:
        users.count((str(tenant),), Used(1, tokens))
        if is_scraped:
            scrape()
    scrape()
    scrape()

    assert increase["all"] == sum(tokens for _, tokens, _ in uses)


def test_the_busiest_get_series() -> None:
    """Not whoever came first: once it uses twice as much, it takes the place of the least."""
    now = 0.0
    users = TopUsers(1, 1, lambda: now)
    users.count(("first",), Used(1, 100))
    users.count(("second",), Used(1, 150))
    now += REVIEW_SECONDS
    users.series()
    assert [key for key, _ in users.series()] == [("first",), (OTHER,)]
    users.count(("second",), Used(1, 1000))
    now += REVIEW_SECONDS
    users.series()
    users.count(("second",), Used(1, 7))
    assert users.series() == [(("second",), Used(1, 7)), ((OTHER,), Used(2, 1150))]


def test_owners_are_told_by_ids_unless_names_are_asked_for() -> None:
    """A tenant's names are its own; an id says nothing to a stranger."""
    assert Owner.of(PRINCIPAL, MODEL, "ids") == ("t1", ("a1",))
    assert Owner.of(PRINCIPAL, MODEL, "names") == ("acme", ("acme/bot",))


def test_without_a_port_of_their_own_there_are_no_series_of_owners() -> None:
    """Nothing is counted, and nothing told."""
    metrics = Metrics()
    metrics._owners.count(Owner("t1", ("a1",)), Used(1))
    assert b"loraplex_tenant" not in metrics.render()
    told = OwnerMetrics(2)
    told.count(Owner("t1", ("a1", "a2")), Used(1, 5, 2, 3))
    samples = {(s.name, *s.labels.values()): s.value for family in told.collect() for s in family.samples}
    assert samples["loraplex_tenant_tokens_total", "t1", "completion"] == 3
    assert samples["loraplex_adapter_requests_total", "t1", "a2"] == 1

"""Dashboard, alerts and their page: every expression can be parsed, and asks for what a server tells."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import promql_parser
import pytest
import yaml
from api_running import StandingEngine, ready_of
from prometheus_client.parser import text_string_to_metric_families

from loraplex.adapters.database import Database
from loraplex.adapters.types import BaseShape
from loraplex.platform.catalog import ResolvedModel, WeightedVersion
from loraplex.platform.ledger.ledger import Ledger
from loraplex.platform.services import metrics_of
from loraplex.platform.settings import Settings
from loraplex.platform.tenants import Principal

ROOT = Path(__file__).parents[3]
SCRAPED = {"instance", "job"}
"""Labels that Prometheus itself adds."""
PROMETHEUS_OWN = {"up": set[str]()}

Told = Mapping[str, set[str]]
"""The labels of each series' name."""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """By a server that has seen one of everything."""
    from api_running import VERSION

    folder = tmp_path_factory.mktemp("metrics")
    database = Database(f"sqlite:///{folder}/x.db")
    settings = Settings(data_dir=folder, served_model_name="tiny", metrics_port=0)
    engine = StandingEngine(ready_of(BaseShape("llama", 9, 1, ())))
    ledger = Ledger(settings.ledger_dir, database, max_bytes=1 << 20)
    metrics = metrics_of(settings, database, engine, ledger)  # type: ignore[arg-type]
    metrics.http_response("GET", "/livez", 200)
    metrics.error(503, "draining")
    metrics.limited("tenant", "tokens_per_minute")
    metrics.audited()
    principal = Principal(key_id="k", tenant_id="t1", tenant="acme", scopes=frozenset(), salt=b"")
    model = ResolvedModel("acme/bot@7", (WeightedVersion(VERSION, 1.0),))
    in_hand = metrics.request_begun(principal, model, SimpleNamespace(started=None))  # type: ignore[arg-type]
    metrics.request_finished("chat", "stop", 10, 4, 5, 0.1, 0.5, in_hand)
    families = text_string_to_metric_families(metrics.render().decode())
    series: dict[str, set[str]] = {}
    for sample in (sample for family in families for sample in family.samples):
        series.setdefault(sample.name, set()).update(sample.labels)
    return series


def dashboard() -> Any:
    return json.loads((ROOT / "deploy/grafana/loraplex.json").read_text())


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def shown_expressions() -> Iterator[str]:
    board = dashboard()
    for panel in board["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    yield from (annotation["expr"] for annotation in board["annotations"]["list"])


def asked_of(expression: Any) -> Iterator[tuple[str, set[str]]]:
    """(name, labels) of each selector below, and of each grouping ("", labels)."""
    if isinstance(expression, promql_parser.MatrixSelector):
        expression = expression.vector_selector
    if isinstance(expression, promql_parser.VectorSelector):
        yield expression.name, {matcher.name for matcher in expression.matchers.matchers}
        return
    modifier = getattr(expression, "modifier", None)
    if isinstance(expression, promql_parser.AggregateExpr) and modifier is not None:
        names = {name for below, labels in asked_of(expression.expr) for name in [below] if name}
        yield from ((name, set(modifier.labels)) for name in names)
    parts = [getattr(expression, part, None) for part in ("expr", "lhs", "rhs")]
    for part in (*parts, *getattr(expression, "args", ())):
        if part is not None:
            yield from asked_of(part)


@pytest.mark.parametrize("where", ["dashboard", "alerts"])
def test_what_is_asked_is_told(told: Told, where: str) -> None:
    """Each expression is PromQL, and each metric and label in it is in a scrape."""
    expressions = list(shown_expressions()) if where == "dashboard" else [alert["expr"] for alert in alerts()]
    assert len(expressions) >= 15
    for text in expressions:
        parsed = promql_parser.parse(text.replace("$__rate_interval", "1m"))
        for name, labels in asked_of(parsed):
            known = told.get(name, PROMETHEUS_OWN.get(name))
            assert known is not None, f"no server tells {name}: {text}"
            assert labels <= known | SCRAPED, f"{name} has no {labels - known}: {text}"


def test_bounds_that_are_asked_for_are_buckets(told: Told) -> None:
    """`le` is compared as text: a bound that is none would select nothing, without a word."""
    from loraplex.platform.metrics import LATENCY_SECONDS, LOAD_SECONDS

    bounds = {str(float(bound)) for bound in (*LATENCY_SECONDS, *LOAD_SECONDS)}
    texts = "".join((*shown_expressions(), *(alert["expr"] for alert in alerts())))
    asked = set(re.findall(r'le="([^"]+)"', texts))
    assert asked
    assert asked <= bounds


def test_every_alert_says_what_it_is_and_what_to_do() -> None:
    """A summary, a severity, and a heading of the page that its runbook points to."""
    page = (ROOT / "docs/observability.md").read_text()
    names = [alert["alert"] for alert in alerts()]
    assert len(names) == len(set(names)) >= 10
    for alert in alerts():
        assert alert["annotations"]["summary"].endswith(".")
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert alert["annotations"]["runbook"] == f"docs/observability.md#{alert['alert'].lower()}"
        assert f"\n### {alert['alert']}\n" in page


def test_the_page_lists_every_metric_and_no_other(told: Told) -> None:
    """By its name and its labels."""
    page = (ROOT / "docs/observability.md").read_text()
    listed = {
        name: set(labels.replace("`", "").replace(",", " ").split()) - {"-"}
        for name, labels in re.findall(r"^\| `((?:loraplex_|vllm:)\w+)` \| ([^|]*) \|", page, re.MULTILINE)
    }
    ours = {name: labels for name, labels in told.items() if name.startswith(("loraplex_", "vllm:"))}
    real: dict[str, set[str]] = {}
    for name, labels in ours.items():
        family = re.sub(r"_(bucket|count|sum)$", "", name)
        if not name.endswith("_created"):
            real.setdefault(family, set()).update(labels - {"le"})
    assert listed == real


def test_the_scrape_example_uses_the_rules() -> None:
    """Its rule file is there, and its job is the one that the rules name."""
    example = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    assert example["rule_files"] == ["alerts.yml"]
    assert [job["job_name"] for job in example["scrape_configs"]] == ["loraplex"]


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    """Each has a place of its own, an id of its own, and a data source that can be chosen."""
    board = dashboard()
    places = [panel["gridPos"] for panel in board["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in board["panels"] if panel["type"] != "row")

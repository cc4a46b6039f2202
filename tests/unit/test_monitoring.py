"""deploy/monitoring and docs/metrics.md speak of metrics that there are, and Prometheus' own tool reads them all."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.monitoring import MONITORING, dashboard_queries, families_of, promtool
from tests.unit.test_telemetry import SNAPSHOT, USERS
from zmesh.catalogue import CATALOGUE
from zmesh.metrics import Metrics
from zmesh.telemetry import GatewayCounts, render

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
ALERTS = (MONITORING / "alerts.yml").read_text(encoding="utf-8")

Need = Callable[[object, str], None]


def a_scrape(accept: str = "") -> bytes:
    counts = GatewayCounts()
    counts.add(200, "/inference", 0.1)
    return render("zmesh", counts, {**SNAPSHOT, "metrics": USERS}, accept)[0]


def test_promtool_has_nothing_to_say_of_all_that_can_be_shown(need: Need):
    text = a_scrape()
    assert all(f"zmesh_{family.name}".encode() in text for family in CATALOGUE)
    assert promtool(need, "check", "metrics", text=text) == (0, "")


def test_promtool_would_say_it(need: Need):
    code, said = promtool(need, "check", "metrics", text=a_scrape().replace(b"zmesh_shed_total", b"zmesh_shed"))
    assert code != 0 and "zmesh_shed" in said


def test_promtool_reads_the_configuration_and_the_alerts(need: Need):
    code, said = promtool(need, "check", "config", str(MONITORING / "prometheus.yml"))
    assert code == 0, said
    assert "5 rules found" in said


def test_every_alert_rings_when_it_should_and_not_when_all_is_well(need: Need):
    rules = Path(__file__).with_name("alerts_test.yml")
    code, said = promtool(need, "test", "rules", str(rules))
    assert code == 0, said
    assert set(re.findall(r"alert: (\w+)", ALERTS)) == set(re.findall(r"alertname: (\w+)", rules.read_text()))


@pytest.mark.parametrize("query", [*dashboard_queries(), *re.findall(r"expr: (.*)", ALERTS)])
def test_a_query_asks_for_metrics_that_there_are_by_labels_that_they_have(query: str):
    families = families_of(query)
    assert families
    selected = re.findall(r"zmesh_\w+\{([^}]*)\}", query)
    asked = {name for labels in selected for name in re.findall(r"(\w+) *[=!]", labels)}
    asked |= {name.strip() for labels in re.findall(r"by \(([^)]*)\)", query) for name in labels.split(",")}
    assert asked <= {"instance", "job", "le", *(label for family in families for label in family.labels)}
    assert "$" not in query


def test_every_family_is_on_the_dashboard_or_is_said_to_be_elsewhere():
    shown = {family.name for query in dashboard_queries() for family in families_of(query)}
    assert {family.name for family in CATALOGUE} == shown


def test_no_query_asks_for_a_bucket_of_what_has_none():
    with pytest.raises(KeyError):
        families_of("rate(zmesh_shed_total_bucket[1m])")


# ── docs/metrics.md ───────────────────────────────────────────────────────────────────────────────────────────────

TABLE = [[cell.strip() for cell in line.split("|")[1:-1]] for line in DOCUMENT.splitlines() if line.startswith("| `")]
ROWS = [(row[0].strip("`"), *row[1:]) for row in TABLE if len(row) == 6]


def test_the_document_has_every_family_in_order_with_its_type_and_labels():
    said = [(name, kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels, *_ in ROWS]
    assert said == [(family.name, family.kind, family.labels) for family in CATALOGUE]


def test_the_document_says_the_unit_of_what_has_one():
    units = {name: unit for name, _, _, unit, *_ in ROWS}
    for name, unit in units.items():
        last = name.removesuffix("_total").rpartition("_")[2]
        assert unit == {"second": "s", "seconds": "s", "bytes": "B"}.get(last, ""), name


def test_mosecs_name_is_beside_each_of_its_five():
    said = {name: theirs.strip("` ") for name, *_, theirs in ROWS if "mosec" in theirs}
    assert said == {family.name: f"mosec_service_{family.name}" for family in CATALOGUE[:5]}
    assert list(said) == [
        "throughput_total", "process_duration_second", "batch_size", "batch_duration_second", "remaining_task",
    ]  # fmt: skip


def test_every_name_in_the_document_is_one():
    queries = re.findall(r"`([^`]*zmesh_[^`]*)`", DOCUMENT.split("## Metrics of your own")[0])
    assert queries
    for query in queries:
        names = re.sub(r"zmesh_(process_duration_second|queue_wait_seconds|loop_lag_seconds|batch_duration_second)\b",
                       r"zmesh_\1_sum", query)  # fmt: skip
        families_of(names)


def test_the_example_of_the_document_runs_and_counts():
    (source,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    names: dict[str, type] = {"__name__": "example"}  # type: ignore[dict-item]
    exec(source, names)
    worker = names["Generate"]()
    assert worker.forward({"text": "a b c"}) == {"words": 3}
    assert (worker.tokens.value, worker.lengths.count) == (3, 1)
    assert isinstance(worker.metrics, Metrics) and len(worker.metrics.series) == 3

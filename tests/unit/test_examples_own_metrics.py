"""examples/own_metrics without a mesh: what it counts, and that its alerts and its dashboard ask for that."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import ModuleType

import pytest

from tests.monitoring import dashboard_queries, promtool
from tests.readme import EXAMPLES, load_example
from zmesh import ValidationError

FOLDER = EXAMPLES / "own_metrics"
ALERTS = (FOLDER / "alerts.yml").read_text(encoding="utf-8")
README = (FOLDER / "README.md").read_text(encoding="utf-8")
TEXT = "The rain came late. Nobody had watered the beans. When the rain came the beans grew again. We ate well."

Need = Callable[[object, str], None]


@pytest.fixture(name="app")
def app_fixture() -> ModuleType:
    return load_example("own_metrics")


def test_an_answer_is_made_once_and_remembered(app: ModuleType):
    worker = app.Summarise()
    (first,) = worker.forward([{"text": TEXT}])
    again, longer = worker.forward([{"text": TEXT, "sentences": 1}, {"text": TEXT, "sentences": 2}])
    assert first == again == {"summary": "When the rain came the beans grew again."}
    assert longer == {"summary": "The rain came late. When the rain came the beans grew again."}
    assert (worker.hits.value, worker.misses.value, worker.remembered.value) == (1, 2, 2)
    assert (worker.words.count, worker.words.sum) == (3, 3 * len(TEXT.split()))


def test_it_forgets_what_was_not_asked_for_longest(app: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app, "REMEMBERED", 2)
    worker = app.Summarise()
    for text in ("One.", "Two.", "One.", "Three.", "One.", "Two."):
        worker.forward([{"text": text}])
    assert (worker.hits.value, worker.misses.value, worker.remembered.value) == (2, 4, 2)


@pytest.mark.parametrize(
    "request_", [None, [], {}, {"text": 1}, {"text": "A.", "sentences": 0}, {"text": "A.", "sentences": True}]
)
def test_what_is_no_request_is_refused_for_itself_and_not_counted(app: ModuleType, request_: object):
    worker = app.Summarise()
    refused, answered = worker.forward([request_, {"text": "It rains."}])
    assert isinstance(refused, ValidationError) and answered == {"summary": "It rains."}
    assert worker.words.count == worker.misses.value == 1


@pytest.mark.parametrize("text", ["", " ", "...", "no end", "¿Qué?"])
def test_any_text_has_a_summary(app: ModuleType, text: str):
    (answer,) = app.Summarise().forward([{"text": text, "sentences": 3}])
    assert answer == {"summary": text if text.strip(". ") else ""}


# ── what asks for the metrics ─────────────────────────────────────────────────────────────────────────────────────


def shown_by(app: ModuleType) -> dict[str, set[str]]:
    """Every name that /metrics would have of this worker, and its labels."""
    found: dict[str, set[str]] = {}
    for series in app.Summarise().metrics.series:
        _, kind, name, _, labels, *_ = series.definition()
        ends = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}[kind]
        also = {"counter": set(), "gauge": {"connection"}, "histogram": {"le"}}[kind]
        found.update({f"zmesh_{name}{end}": {"stage", *labels, *also} for end in ends})
    return found


def asked() -> list[str]:
    of_readme = [query for query in re.findall(r"`([^`]*zmesh_[^`]*)`", README) if "/" not in query.split("zmesh_")[0]]
    return [*dashboard_queries(FOLDER), *re.findall(r"expr: (?:>-\n)?((?:.|\n {10})*)", ALERTS), *of_readme]


@pytest.mark.parametrize("query", asked())
def test_what_is_asked_for_is_counted_with_these_labels(app: ModuleType, query: str):
    shown = shown_by(app)
    names = re.findall(r"\bzmesh_\w+", query)
    for name in names:
        assert name in shown or f"{name}_bucket" in shown, name  # a table may say the name of the whole histogram
    selected = re.findall(r"zmesh_\w+\{([^}]*)\}", query)
    labels = {name for labels in selected for name in re.findall(r"(\w+)(?: *[=!]|[,}]|$)", labels)}
    labels |= {name.strip() for group in re.findall(r"by \(([^)]*)\)", query) for name in group.split(",")}
    assert names and labels <= set().union(*(shown.get(name, shown.get(f"{name}_bucket", set())) for name in names))


def test_all_that_is_counted_is_on_the_dashboard(app: ModuleType):
    on_it = set(re.findall(r"\bzmesh_\w+", " ".join(dashboard_queries(FOLDER))))
    families = {re.sub("_(sum|count)$", "_bucket", name) for name in shown_by(app)}
    assert families == on_it


def test_promtool_reads_the_configuration_with_the_alerts_of_the_mesh(need: Need):
    code, said = promtool(need, "check", "config", str(FOLDER / "prometheus.yml"))
    assert code == 0 and re.findall(r"(\d+) rules found", said) == ["5", "2"], said


def test_its_alerts_ring_when_they_should_and_not_when_all_is_well(need: Need):
    rules = EXAMPLES.parent / "tests" / "unit" / "own_metrics_alerts_test.yml"
    code, said = promtool(need, "test", "rules", str(rules))
    assert code == 0, said
    assert set(re.findall(r"alert: (\w+)", ALERTS)) == set(re.findall(r"alertname: (\w+)", rules.read_text()))

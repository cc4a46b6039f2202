"""A worker's own metrics: they count without a mesh, are bounded, and report what has changed."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from zmesh import metrics as module
from zmesh.catalogue import CATALOGUE, HELP_CHARACTERS_MAX, VALUE_CHARACTERS_MAX
from zmesh.errors import DeclarationError
from zmesh.metrics import FAMILIES_MAX, REPORT_CHARACTERS_MAX, WORKER_SERIES_MAX, Metrics, metrics_of
from zmesh.worker import Worker


def said(report: str) -> tuple[int, dict[int, list[Any]], dict[int, list[float]]]:
    """Its number, what it defines, and the values by number."""
    number, new, now = json.loads(report)
    return number, {one[0]: one[1:] for one in new}, {one[0]: one[1:] for one in now}


class Counting(Worker):
    def __init__(self) -> None:
        self.tokens = self.metrics.counter("tokens", "Tokens made", ["model"])
        self.loaded = self.metrics.gauge("loaded", "Models in memory")
        self.loaded.set(2)

    def forward(self, data: list[str]) -> list[int]:
        self.tokens.labels("small").inc(sum(map(len, data)))
        self.metrics.histogram("lengths", "Lengths of inputs", buckets=[1, 2]).observe(len(data))
        return [len(item) for item in data]


def test_in_a_test_without_a_mesh_they_just_count():
    worker = Counting()
    assert worker.forward(["ab", "c"]) == [2, 1]
    worker.forward(["d"])
    assert worker.tokens.labels(model="small").value == 4
    assert worker.loaded.value == 2
    lengths = worker.metrics.histogram("lengths", "Lengths of inputs", buckets=[1, 2])
    assert (lengths.count, lengths.sum) == (2, 3)


def test_every_worker_has_its_own():
    one, other = Counting(), Counting()
    one.forward(["ab"])
    assert other.tokens.labels("small").value == 0
    assert metrics_of(one) is one.metrics is not other.metrics


def test_a_worker_that_uses_the_name_for_something_else_has_none():
    class Own(Worker):
        def __init__(self) -> None:
            self.metrics = {"mine": 1}  # type: ignore[assignment]

        def forward(self, data: Any) -> Any:
            return data

    assert metrics_of(Own()).report(1) == ""


def test_what_a_worker_calls_metrics_may_raise():
    class Own(Worker):
        @property
        def metrics(self) -> Metrics:
            raise RuntimeError("not yet")

        def forward(self, data: Any) -> Any:
            return data

    assert metrics_of(Own()).report(1) == ""


def test_asking_again_gives_the_same():
    metrics = Metrics()
    metrics.counter("a", "A").inc(2)
    assert metrics.counter("a_total", "A, with the ending that it is shown with").value == 2
    assert metrics.gauge("g", "G", "x").labels("1") is metrics.gauge("g", "G", ["x"]).labels(x=1)


def test_a_gauge_goes_up_and_down():
    gauge = Metrics().gauge("g", "G")
    gauge.set(5)
    gauge.inc()
    gauge.dec(2.5)
    assert gauge.value == 3.5


@pytest.mark.parametrize("amount", [-1, float("nan"), float("inf"), 1e300])
def test_a_counter_only_goes_up(amount: float):
    counter = Metrics().counter("c", "C")
    with pytest.raises(ValueError, match=r"^the counter c only goes up, not by "):
        counter.inc(amount)
    assert counter.value == 0


def test_a_value_belongs_below_the_bound_that_it_reaches():
    histogram = Metrics().histogram("h", "H", buckets=[1, 2])
    for value in (-5, 1, 1.5, 2, 3):
        histogram.observe(value)
    assert histogram.copy() == [2.5, 2, 2, 1]


MISTAKES: list[tuple[Callable[[Metrics], object], str]] = [
    (lambda m: m.counter("1st", "X"), "the metric 1st must be called by letters, digits and _, a letter first, at mo"),
    (lambda m: m.counter("a" * 101, "X"), "the metric " + "a" * 101 + " must be called by"),
    (lambda m: m.gauge("a_total", "X"), "the metric a_total cannot end in _total, which the format uses itself"),
    (lambda m: m.counter("a_sum_total", "X"), "the metric a_sum_total cannot end in _sum, which the format uses"),
    (lambda m: m.gauge("queue_depth", "X"), "the metric queue_depth is one of zmesh's own; call yours otherwise"),
    (lambda m: m.counter("throughput", "X"), "the metric throughput is one of zmesh's own; call yours otherwise"),
    (lambda m: m.counter("a", ""), "the metric a needs a help text of at most 300 characters"),
    (lambda m: m.counter("a", "x" * (HELP_CHARACTERS_MAX + 1)), "the metric a needs a help text of at most 300"),
    (lambda m: m.counter("a", "X", ["b", "b"]), "the metric a may have 8 labels, no two alike, not b, b"),
    (lambda m: m.counter("a", "X", list("bcdefghij")), "the metric a may have 8 labels, no two alike, not b, c, d, e"),
    (lambda m: m.counter("a", "X", ["stage"]), "the metric a cannot have a label 'stage': letters, digits and _, and "),
    (lambda m: m.counter("a", "X", ["l-e"]), "the metric a cannot have a label 'l-e': letters, digits and _, and not"),
    (lambda m: m.histogram("a", "X", buckets=[]), "the metric a needs 1 to 32 buckets, finite and each above the one"),
    (lambda m: m.histogram("a", "X", buckets=[2, 1]), "the metric a needs 1 to 32 buckets, finite and each above the"),
    (lambda m: m.histogram("a", "X", buckets=[1, float("inf")]), "the metric a needs 1 to 32 buckets, finite and each"),
    (lambda m: m.histogram("a", "X", buckets=range(33)), "the metric a needs 1 to 32 buckets, finite and each above "),
    (
        lambda m: m.counter("known", "X"),
        "the metric known cannot be a counter with no labels: it is a gauge with labels",
    ),
    (lambda m: m.gauge("known", "X", ["other"]), "the metric known cannot be a gauge with labels other: it is a gauge"),
    (
        lambda m: m.histogram("sized", "X", buckets=[3]),
        "the metric sized cannot be a histogram with no labels: it is a h",
    ),
    (lambda m: m.gauge("known", "X", ["x"]).set(1), "the metric known has the labels x, and was given none: write .la"),
    (lambda m: m.gauge("known", "X", ["x"]).labels(), "the metric known has the labels x, and was given none"),
    (lambda m: m.gauge("known", "X", ["x"]).labels(1, 2), "the metric known has the labels x, and was given '1', '2'"),
    (lambda m: m.gauge("known", "X", ["x"]).labels(y=2), "the metric known has the labels x, and was given y"),
    (lambda m: m.gauge("known", "X", ["x"]).labels(1, x=2), "the metric known has the labels x, and was given 1, x"),
    (lambda m: m.histogram("sized", "X", buckets=[1]).labels(2), "the metric sized has no labels, and was given '2'"),
]


@pytest.mark.parametrize(("do", "text"), MISTAKES, ids=[text[11:45] for _, text in MISTAKES])
def test_a_mistake_is_one_sentence(do: Callable[[Metrics], object], text: str):
    metrics = Metrics()
    metrics.gauge("known", "X", ["x"])
    metrics.histogram("sized", "X", buckets=[1])
    with pytest.raises(DeclarationError) as raised:
        do(metrics)
    assert str(raised.value).startswith(text) and "\n" not in str(raised.value)


def test_none_of_zmeshs_own_names_can_be_taken():
    for family in CATALOGUE:
        with pytest.raises(DeclarationError, match="is one of zmesh's own"):
            Metrics().gauge(family.name.removesuffix("_total"), "X")


def test_what_is_no_finite_number_is_passed_over_and_said_once(caplog: pytest.LogCaptureFixture):
    metrics = Metrics()
    gauge, histogram = metrics.gauge("g", "G"), metrics.histogram("h", "H", buckets=[1])
    gauge.set(7)
    for _ in range(2):
        for odd in (float("nan"), float("inf"), -1e300):
            gauge.set(odd)
            histogram.observe(odd)
    assert (gauge.value, histogram.count) == (7, 0)
    assert [record.getMessage() for record in caplog.records] == [
        "the gauge g was set to what is no finite number; it keeps its value",
        "the histogram h was told what is no finite number",
    ]
    json.loads(metrics.report(1))


# ── bounds ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_series_too_many_counts_and_is_not_shown_and_that_is_said_once(caplog: pytest.LogCaptureFixture):
    metrics = Metrics()
    counter = metrics.counter("c", "C", ["user"])
    for number in range(WORKER_SERIES_MAX + 3):
        counter.labels(number).inc()
    assert len(metrics.series) == WORKER_SERIES_MAX
    assert counter.labels("new") is counter.labels("newer"), "what is not shown takes no memory"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert caplog.records[0].getMessage() == (
        f"a set of label values of the metric c comes after {WORKER_SERIES_MAX} others, and is not shown"
    )
    assert counter.labels(0).value == 1
    assert "new" not in metrics.report(1)


def test_a_label_value_that_is_too_long_is_not_shown(caplog: pytest.LogCaptureFixture):
    metrics = Metrics()
    counter = metrics.counter("c", "C", ["user"])
    counter.labels("x" * VALUE_CHARACTERS_MAX).inc()
    counter.labels("x" * (VALUE_CHARACTERS_MAX + 1)).inc()
    assert len(metrics.series) == 1
    assert "is longer than 128 characters, and is not shown" in caplog.text


def test_a_label_value_that_utf8_cannot_say_is_shown_with_a_question_mark():
    """JSON from a client may have one, and who shows metrics must be able to write it."""
    metrics = Metrics()
    counter = metrics.counter("c", "C", ["model"])
    counter.labels("\ud800x").inc()
    assert counter.labels(model="\ud800x").inc() is None and counter.labels("?x").value == 2
    (defined,) = said(metrics.report(1))[1].values()
    assert defined[4] == ["?x"]
    with pytest.raises(DeclarationError, match="needs a help text"):
        metrics.counter("d", "\ud800")


def test_one_metric_too_many_counts_and_is_not_shown_and_that_is_said_once(caplog: pytest.LogCaptureFixture):
    metrics = Metrics()
    for number in range(FAMILIES_MAX):
        metrics.gauge(f"g{number}", "G")
    for number in range(3):
        metrics.counter(f"late{number}", "C", ["x"]).labels(1).inc()
    assert len(metrics.series) == FAMILIES_MAX
    assert [record.getMessage() for record in caplog.records] == [
        f"a worker may have {FAMILIES_MAX} metrics; what comes after them is not shown"
    ]


def test_complaints_end(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "COMPLAINTS_MAX", 2)
    metrics = Metrics()
    for number in range(5):
        metrics.gauge(f"g{number}", "G").set(float("nan"))
    assert len(caplog.records) == 2


# ── reports ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_report_of_a_session_has_all_and_later_ones_what_has_changed():
    metrics = Metrics()
    assert metrics.report(7) == ""
    counter, gauge = metrics.counter("c", "C", ["x"]).labels("1"), metrics.gauge("g", "G")
    histogram = metrics.histogram("h", "H", buckets=[1])
    histogram.observe(0.5)
    definitions = {
        1: ["counter", "c", "C", ["x"], ["1"], []],
        2: ["gauge", "g", "G", [], [], []],
        3: ["histogram", "h", "H", [], [], [1.0]],
    }
    assert said(metrics.report(7)) == (1, definitions, {1: [0], 2: [0], 3: [0.5, 1, 0]})
    assert metrics.report(7) == ""
    counter.inc(2)
    gauge.set(-1)
    assert said(metrics.report(7)) == (2, {}, {1: [2], 2: [-1]})
    assert said(metrics.report(8)) == (3, definitions, {1: [2], 2: [-1], 3: [0.5, 1, 0]})
    metrics.gauge("new", "N")
    assert said(metrics.report(8)) == (4, {4: ["gauge", "new", "N", [], [], []]}, {4: [0]})


def test_a_report_fits_into_a_text_and_the_rest_comes_with_the_next_ones():
    metrics = Metrics()
    histogram = metrics.histogram("h" * 100, "H" * 300, ["x", "y"], buckets=[1 / (33 - n) for n in range(32)])
    for number in range(WORKER_SERIES_MAX):
        histogram.labels("ü" * VALUE_CHARACTERS_MAX, number).observe(0.1)
    seen: list[int] = []
    reports = 0
    while text := metrics.report(1):
        reports += 1
        assert len(text) < REPORT_CHARACTERS_MAX + 4096
        _, new, now = said(text)
        assert new.keys() == now.keys()
        seen += now
    assert sorted(seen) == list(range(1, WORKER_SERIES_MAX + 1)) and reports > 1


def test_threads_lose_no_count():
    metrics = Metrics()
    counter, histogram = metrics.counter("c", "C", ["x"]), metrics.histogram("h", "H")
    texts: list[str] = []

    def count() -> None:
        for number in range(2000):
            counter.labels(number % 3).inc()
            histogram.observe(0.5)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        texts.append(metrics.report(1))
    for thread in threads:
        thread.join()
    texts.append(metrics.report(1))
    last = {number: values for text in texts if text for number, values in said(text)[2].items()}
    assert sum(counter.labels(number).value for number in range(3)) == histogram.count == 8000
    assert last == {series.number: series.copy() for series in metrics.series}


def test_what_counts_the_lines_of_its_own_complaints_does_not_wait_for_itself():
    metrics = Metrics()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            metrics.counter("lines", "Lines").inc()

    handler = Handler()
    logging.getLogger("zmesh.worker").addHandler(handler)
    try:
        metrics.gauge("g", "G").set(float("nan"))
    finally:
        logging.getLogger("zmesh.worker").removeHandler(handler)
    assert metrics.counter("lines", "Lines").value == 1

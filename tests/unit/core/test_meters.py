"""Metrics of user code, added up: exact over deaths, comebacks and late words, and bounded whatever a worker says."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.core.world import KILLED, WorkerPeer, World, stage
from zmesh.catalogue import VALUE_CHARACTERS_MAX
from zmesh.core import events, meters
from zmesh.core.meters import Meters
from zmesh.messages import Credit, PeerId, WorkerState
from zmesh.metrics import BUCKETS, Metrics

ONE, OTHER = PeerId(b"1" * 16), PeerId(b"2" * 16)


def shown(meters: Meters) -> dict[str, dict[tuple[str, ...], list[float]]]:
    """By name, and by stage and labels."""
    found: Any = json.loads(json.dumps(meters.snapshot()))
    return {
        family["name"]: {(stage, *labels): values for stage, labels, values in family["series"]} for family in found
    }


def take(meters: Meters, report: str, peer: PeerId = ONE, *, worker: str = "1", is_here: bool = True) -> None:
    assert meters.take(peer, "A", worker, report, is_here=is_here) == ""


def test_what_a_worker_counts_is_added_up_as_it_changes():
    books, metrics = Meters(), Metrics()
    counter, histogram = metrics.counter("c", "C", ["x"]), metrics.histogram("h", "H", buckets=[1, 2])
    counter.labels("a").inc(2)
    histogram.observe(0.5)
    take(books, metrics.report(1))
    counter.labels("a").inc(3)
    histogram.observe(-5)
    take(books, metrics.report(1))
    assert shown(books) == {"c": {("A", "a"): [5]}, "h": {("A",): [-4.5, 2, 0, 0]}}


def test_counts_of_workers_are_added_and_gauges_stand_side_by_side():
    books, one, other = Meters(), Metrics(), Metrics()
    for metrics, peer, worker, amount in ((one, ONE, "1", 2), (other, OTHER, "2@far", 5)):
        metrics.counter("c", "C").inc(amount)
        metrics.gauge("g", "G", ["x"]).labels("y").set(amount)
        take(books, metrics.report(1), peer, worker=worker)
    assert shown(books) == {"c": {("A",): [7]}, "g": {("A", "1", "y"): [2], ("A", "2@far", "y"): [5]}}


def test_a_new_session_of_the_same_process_counts_nothing_twice():
    books, metrics = Meters(), Metrics()
    counter = metrics.counter("c", "C")
    counter.inc(2)
    take(books, metrics.report(1))
    counter.inc()
    lost = metrics.report(1)
    take(books, metrics.report(2))
    assert shown(books)["c"][("A",)] == [3]
    take(books, lost)
    assert shown(books)["c"][("A",)] == [3], "it was read too late"


def test_what_is_read_after_a_later_report_says_nothing_new():
    books, metrics = Meters(), Metrics()
    gauge = metrics.gauge("g", "G")
    gauge.set(1)
    late = metrics.report(1)
    gauge.set(2)
    take(books, metrics.report(2))
    take(books, late)
    assert shown(books)["g"][("A", "1")] == [2]


def test_one_that_seemed_to_be_gone_comes_back_and_counts_nothing_twice():
    books, metrics = Meters(), Metrics()
    metrics.counter("c", "C").inc(2)
    metrics.gauge("g", "G").set(3)
    take(books, metrics.report(1))
    books.gone(ONE)
    assert shown(books) == {"c": {("A",): [2]}, "g": {}}
    take(books, metrics.report(2))
    assert shown(books) == {"c": {("A",): [2]}, "g": {("A", "1"): [3]}}


def test_the_last_words_of_one_that_is_gone_count_but_its_gauges_do_not():
    books, metrics = Meters(), Metrics()
    metrics.counter("c", "C").inc(2)
    metrics.gauge("g", "G").set(3)
    take(books, metrics.report(1), is_here=False)
    assert shown(books) == {"c": {("A",): [2]}, "g": {}}


def test_the_gauge_of_a_successor_stays_when_its_predecessor_is_found_gone():
    books, former, successor = Meters(), Metrics(), Metrics()
    for metrics, peer in ((former, ONE), (successor, OTHER)):
        metrics.gauge("g", "G").set(1)
        take(books, metrics.report(1), peer)
    books.gone(ONE)
    assert shown(books) == {"g": {("A", "1"): [1]}}
    books.gone(PeerId(b"3" * 16))


def test_only_so_many_of_the_gone_are_remembered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(meters, "GONE_MAX", 2)
    books = Meters()
    for number in range(5):
        metrics = Metrics()
        metrics.counter("c", "C").inc()
        take(books, metrics.report(1), PeerId(bytes([number] * 16)), is_here=number % 2 == 0)
        books.gone(PeerId(bytes([number] * 16)))
    assert shown(books)["c"][("A",)] == [5]
    assert len(books._books) == 2


def test_a_count_that_falls_is_passed_over():
    books = Meters()
    definitions = [[1, "counter", "c", "C", [], [], []], [2, "histogram", "h", "H", [], [], [1]]]
    take(books, json.dumps([1, definitions, [[1, 5], [2, 4, 3, 1]]]))
    take(books, json.dumps([2, [], [[1, 4], [2, 9, 4, 0]]]))
    assert shown(books) == {"c": {("A",): [5]}, "h": {("A",): [4, 3, 1]}}
    take(books, json.dumps([3, [], [[1, 6], [2, 1, 3, 2]]]))
    assert shown(books) == {"c": {("A",): [6]}, "h": {("A",): [1, 3, 2]}}, "a sum may fall: values may be below 0"


# ── conflicts and bounds ──────────────────────────────────────────────────────────────────────────────────────────


def test_who_calls_something_else_by_the_same_name_is_told_once_and_not_shown():
    books, one, other = Meters(), Metrics(), Metrics()
    one.counter("c", "C", ["x"]).labels("y").inc()
    take(books, one.report(1))
    other.gauge("c", "C").set(9)
    for session in (1, 2):
        assert books.take(OTHER, "B", "1", other.report(session), is_here=True) == ""
    assert shown(books) == {"c": {("A", "y"): [1]}}
    assert books.complaints == [
        "the metric c of stage B is not shown: it is a gauge with labels (), and one of that name is a counter with "
        "labels (x) or has other buckets; call one of them otherwise"
    ]


@pytest.mark.parametrize("name", ["queue_depth", "bad name", "x" * 1000, "a_bucket"])
def test_a_name_that_cannot_be_is_not_shown(name: str):
    books = Meters()
    take(books, json.dumps([1, [[1, "gauge", name, "G", [], [], []]], [[1, 5]]]))
    assert shown(books) == {} and len(books.complaints) == 1
    assert books.complaints[0].startswith(f"the metric {name[:100]!r} of stage A is not shown: it ")


def test_only_so_many_metrics_and_series_are_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(meters, "FAMILIES_MAX", 3)
    monkeypatch.setattr(meters, "SERIES_MAX", 5)
    books, metrics = Meters(), Metrics()
    gauge = metrics.gauge("g", "G", ["x"])
    counter = metrics.counter("c", "C", ["x"])
    for number in range(2):
        gauge.labels(number).set(1)
        counter.labels(number).inc()
    take(books, metrics.report(1))
    second = Metrics()
    second.gauge("g", "G", ["x"]).labels("more").set(1)
    second.gauge("g", "G", ["x"]).labels("too many").set(1)
    second.counter("c", "C", ["x"]).labels("more").inc()
    second.counter("c", "C", ["x"]).labels("too many").inc()
    second.gauge("third", "T")
    second.gauge("fourth", "F")
    take(books, second.report(1), OTHER)
    assert {name: len(series) for name, series in shown(books).items()} == {"g": 2, "c": 3, "third": 0}
    assert books.complaints == [
        "there are 5 series of user metrics; c has more, not shown",
        "there are 3 metrics of user code; those that come after them are not shown",
        "there are 5 series of user metrics; g has more, not shown",
        "there are 5 series of user metrics; third has more, not shown",
    ]
    books.gone(ONE)
    take(books, second.report(2), OTHER)
    assert {name: len(series) for name, series in shown(books).items()} == {"g": 2, "c": 3, "third": 0}


def test_complaints_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(meters, "COMPLAINTS_MAX", 2)
    books = Meters()
    take(books, json.dumps([1, [[n, "gauge", f"bad name {n}", "G", [], [], []] for n in range(9)], []]))
    assert len(books.complaints) == 2


GOOD: list[Any] = [1, "counter", "c", "C", ["x"], ["y"], []]
RUBBISH: list[Any] = [
    "",
    "{",
    "1",
    "null",
    "[" * 60_000,
    "1" * 5_000,
    [],
    [1, []],
    ["1", [], []],
    [1.5, [], []],
    [True, [], []],
    [1, [[1]], []],
    [1, 1, []],
    [1, [], 1],
    [1, [], [[]]],
    [1, [], [[1, 1]]],
    [1, [GOOD], [[1, "1"]]],
    [1, [GOOD], [[1, None]]],
    [1, [GOOD], [[[], 1]]],
    [1, [GOOD], [[1, True]]],
    '[1,[[1,"counter","c","C",["x"],["y"],[]]],[[1,NaN]]]',
    '[1,[[1,"counter","c","C",["x"],["y"],[]]],[[1,1e999]]]',
    '[1,[[1,"counter","c","C",["x"],["y"],[]]],[[1,' + "1" * 400 + "]]]",
    [1, [[1, "summary", "c", "C", ["x"], ["y"], []]], []],
    [1, [[1, "counter", 5, "C", ["x"], ["y"], []]], []],
    [1, [[1, "counter", "c", None, ["x"], ["y"], []]], []],
    [1, [[1, "counter", "c", "C", ["x"], [5], []]], []],
    [1, [[1, "counter", "c", "C", ["x"], [], []]], []],
    [1, [[1, "counter", "c", "C", ["x"], ["y" * (VALUE_CHARACTERS_MAX + 1)], []]], []],
    [1, [[1, "counter", "c", "C", ["x"], ["\ud800"], []]], []],
    [1, [[1, "histogram", "c", "C", ["x"], ["y"], ["1"]]], []],
    [1, [[[], "counter", "c", "C", ["x"], ["y"], []]], []],
]


@pytest.mark.parametrize("report", RUBBISH, ids=lambda it: str(it)[:40])
def test_what_is_no_report_is_said_and_counts_nothing(report: Any):
    books = Meters()
    text = report if isinstance(report, str) else json.dumps(report)
    assert books.take(ONE, "A", "1", text, is_here=True).startswith("metrics: not a report (")
    assert not any(values != [0] for series in shown(books).values() for values in series.values())
    take(books, json.dumps([1, [GOOD], [[1, 2]]]))
    assert shown(books)["c"][("A", "y")] == [2]


def test_what_a_later_version_appends_is_ignored():
    books = Meters()
    take(books, json.dumps([1, [[*GOOD, "more"]], [[1, 2]], "more"]))
    assert shown(books)["c"][("A", "y")] == [2]


def test_numbers_that_do_not_fit_their_metric_are_passed_over():
    books = Meters()
    take(books, json.dumps([1, [GOOD], [[1, 2, 3]]]))
    assert shown(books)["c"][("A", "y")] == [0]


def test_a_process_may_have_only_so_many_series(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(meters, "WORKER_SERIES_MAX", 3)
    definitions = [[n, "counter", "c", "C", ["x"], [str(n)], []] for n in range(4)]
    assert Meters().take(ONE, "A", "1", json.dumps([1, definitions, []]), is_here=True)


# ── in a dispatcher ───────────────────────────────────────────────────────────────────────────────────────────────


def says(worker: WorkerPeer, report: str) -> events.CreditGranted:
    return events.CreditGranted(worker.address, worker.session, Credit(1, WorkerState.READY, "", report))


def finishes(worker: WorkerPeer, lease: int, metrics: Metrics) -> events.BatchFinished:
    finished = worker.finishes(lease)
    results = replace(finished.message, metrics=metrics.report(worker.session))
    return replace(finished, message=results)


def test_late_results_of_a_dead_worker_bring_its_last_counts_and_no_gauges():
    world = World(stage("embed"))
    gateway, agent, worker, metrics = world.gateway(), world.agent(), world.worker("w", credit=1), Metrics()
    world.turn(gateway.submits(1))
    world.turn(agent.reports(worker, KILLED))
    world.turn(after=1.0)
    metrics.counter("c", "C").inc()
    metrics.gauge("g", "G").set(4)
    world.turn(finishes(worker, 1, metrics))
    assert shown(world.mesh.meters) == {"c": {("embed",): [1]}, "g": {}}


def test_reports_come_with_results_and_with_credit_and_a_death_takes_the_gauges():
    world = World(stage("embed"))
    gateway, agent, worker, metrics = world.gateway(), world.agent(), world.worker("w", credit=1), Metrics()
    counter, gauge = metrics.counter("c", "C"), metrics.gauge("g", "G")
    gauge.set(4)
    world.turn(says(worker, metrics.report(worker.session)))
    world.turn(gateway.submits(1))
    counter.inc()
    world.turn(finishes(worker, 1, metrics))
    assert shown(world.mesh.meters) == {"c": {("embed",): [1]}, "g": {("embed", "0"): [4]}}
    world.turn(agent.reports(worker, KILLED))
    world.turn(after=1.0)
    assert shown(world.mesh.meters) == {"c": {("embed",): [1]}, "g": {}}
    assert json.loads(world.dispatcher.snapshot())["metrics"][0]["series"] == [["embed", [], [1.0]]]


def test_rubbish_is_a_strike_and_the_message_that_brought_it_counts():
    world = World()
    worker = world.worker("w")
    assert world.turn(says(worker, "rubbish")) == [
        "warning: a peer broke the protocol: metrics: not a report (JSONDecodeError)"
    ]
    assert world.record(worker).total == 1


def test_a_conflict_is_logged():
    world = World(stage("a"), stage("b"))
    first, second = world.worker("wa", "a"), world.worker("wb", "b")
    one, other = Metrics(), Metrics()
    one.histogram("h", "H", buckets=BUCKETS)
    other.histogram("h", "H", buckets=[1])
    assert world.turn(says(first, one.report(1))) == []
    (said,) = world.turn(says(second, other.report(1)))
    assert said.startswith("warning: the metric h of stage b is not shown: it is a histogram with labels ()")
    assert world.turn(says(second, other.report(2))) == []

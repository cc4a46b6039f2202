"""Metrics: plain numbers on the hot path, Prometheus families when somebody asks.

A gateway counts its answers in `GatewayCounts`, which is a dict, a list and two numbers. What the broker counts arrives
as its snapshot. `render` turns both into text, by the names of `CATALOGUE`: mosec's names where mosec has one, under
the operator's namespace. Labels are names of stages and routes; nothing that a client can choose is one.

Several gateways of one host count on a board that they share, and each of them shows what all have counted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import CollectorRegistry
from prometheus_client.utils import floatToGoString

from zmesh.board import DURATION_BOUNDS, Board

__all__ = ["CATALOGUE", "DURATION_BOUNDS", "Family", "GatewayCounts", "SharedCounts", "render"]

Snapshot = Mapping[str, Any]
"""What the broker says of itself; a broker of another version may leave things out."""

TOTAL = "total"  # the stage and the connection that stand for a whole request, as in mosec


class Family(NamedTuple):
    """One family of metrics. A counter's samples end in `_total`, which `name` includes."""

    name: str
    kind: str  # counter, gauge, histogram
    labels: tuple[str, ...]
    help: str


CATALOGUE: tuple[Family, ...] = (
    Family("throughput_total", "counter", ("code", "endpoint"), "Answers on inference routes, by HTTP status"),
    Family(
        "process_duration_second",
        "histogram",
        ("stage", "connection"),
        'Seconds from hand-out of a batch to its last result, per stage; stage="total": from request to answer 200',
    ),
    Family("remaining_task", "gauge", (), "Requests that have no answer yet"),
    Family("batch_size", "histogram", ("stage", "connection"), "Tasks in a batch when it is handed out"),
    Family(
        "batch_duration_second",
        "histogram",
        ("stage", "connection"),
        "Seconds that a task waited for its batch to be closed and handed out",
    ),
    Family("queue_depth", "gauge", ("stage",), "Tasks waiting in the queue of a stage"),
    Family("queue_bytes", "gauge", ("stage",), "Bytes of the payloads waiting in the queue of a stage"),
    Family("leased_tasks", "gauge", ("stage",), "Tasks in the hands of the workers of a stage"),
    Family("workers_ready", "gauge", ("stage",), "Workers of a stage that take batches"),
    Family("stage_failing", "gauge", ("stage",), "1 while a stage cannot be started, else 0"),
    Family("tasks_total", "counter", ("stage", "outcome"), "Rows that a stage answered: ok or error"),
    Family("attempts_total", "counter", ("stage",), "Tasks handed to workers, each time counted"),
    Family("released_total", "counter", ("stage", "reason"), "Batches handed out, by why they left: full, crowd, …"),
    Family("deaths_total", "counter", ("stage",), "Deaths of workers that were charged to the tasks they held"),
    Family("exits_total", "counter", ("stage",), "Worker processes that ended, for whatever reason"),
    Family("returned_total", "counter", ("stage",), "Tasks that came back to the queue because their lease ended"),
    Family("poisoned_total", "counter", ("stage",), "Tasks given up because workers died of them"),
    Family("expired_total", "counter", ("stage",), "Tasks whose deadline passed at a stage"),
    Family("cancelled_total", "counter", ("stage",), "Tasks that nobody wanted any more"),
    Family("shed_total", "counter", ("stage",), "Tasks refused because a queue was full"),
    Family("broker_up", "gauge", (), "1 when the broker answered this scrape, else 0"),
    Family("broker_tasks", "gauge", (), "Tasks in the broker, at whatever stage"),
    Family("late_total", "counter", (), "Results that came for what was already answered"),
    Family("malformed_total", "counter", (), "Messages the broker could not read"),
    Family("refused_peers_total", "counter", (), "Greetings the broker refused"),
    Family("replies_total", "counter", (), "Answers the broker gave to gateways"),
)

_GAUGES = (
    ("queue_depth", "queued"),
    ("queue_bytes", "queued_bytes"),
    ("leased_tasks", "leased"),
    ("workers_ready", "ready_workers"),
)
_STAGE_COUNTERS = ("attempts", "deaths", "exits", "returned", "poisoned", "expired", "cancelled", "shed")
_BROKER_COUNTERS = ("late", "malformed", "refused_peers", "replies")
_HISTOGRAMS = (
    ("process_duration_second", "batch_seconds"),
    ("batch_size", "batch_size"),
    ("batch_duration_second", "queue_seconds"),
)


class GatewayCounts:
    """What one gateway has done since it started."""

    __slots__ = ("answers", "duration_counts", "duration_sum", "in_flight")

    def __init__(self) -> None:
        self.answers: dict[tuple[int, str], int] = {}
        self.duration_counts = [0] * (len(DURATION_BOUNDS) + 1)
        self.duration_sum = 0.0
        self.in_flight = 0

    def add(self, code: int, endpoint: str, seconds: float) -> None:
        """One answer. The duration counts for 200 only: a quick refusal says nothing about the speed of the mesh."""
        key = (code, endpoint)
        answers = self.answers
        answers[key] = answers.get(key, 0) + 1
        if code == 200:
            self.duration_counts[bisect_left(DURATION_BOUNDS, seconds)] += 1
            self.duration_sum += seconds

    def total(self) -> GatewayCounts:
        """What there is to show."""
        return self


class SharedCounts(GatewayCounts):
    """Of one of several gateways: its row of the board counts, and goes on from what its predecessor did."""

    __slots__ = ("_board", "_in_flight", "_routes", "_row")

    def __init__(self, board: Board, paths: Sequence[str]) -> None:
        self._board, self._row = board, board.mine
        self._routes = {path: number for number, path in enumerate(paths)}
        super().__init__()

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @in_flight.setter
    def in_flight(self, number: int) -> None:
        self._in_flight = self._row.requests = number

    def add(self, code: int, endpoint: str, seconds: float) -> None:
        self._row.answered(self._routes[endpoint], code)
        if code == 200:
            self._row.took(bisect_left(DURATION_BOUNDS, seconds), seconds)

    def total(self) -> GatewayCounts:
        total = GatewayCounts()
        for row in self._board.rows:
            for path, number in self._routes.items():
                for code, times in row.answers(number):
                    total.answers[code, path] = total.answers.get((code, path), 0) + times
            total.duration_counts = [sum(both) for both in zip(total.duration_counts, row.durations(), strict=True)]
            total.duration_sum += row.seconds
            total.in_flight += row.requests
        return total


class _Scrape:
    """One look at everything, as prometheus_client wants it. An empty family is left out."""

    def __init__(self, namespace: str, counts: GatewayCounts, snapshot: Snapshot | None) -> None:
        self._counts, self._snapshot = counts, snapshot
        makers = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
        self._families: dict[str, Any] = {
            family.name: makers[family.kind](f"{namespace}_{family.name}", family.help, labels=family.labels)
            for family in CATALOGUE
        }

    def collect(self) -> Iterator[Metric]:
        self._gateway()
        if self._snapshot is not None:
            for stage in self._snapshot.get("stages", ()):
                self._stage(stage)
            self._broker(self._snapshot)
        yield from (family for family in self._families.values() if family.samples)

    def _value(self, name: str, labels: Sequence[str], value: float) -> None:
        self._families[name].add_metric(labels, value)

    def _histogram(self, name: str, stage: str, bounds: Sequence[float], counts: Sequence[int], total: float) -> None:
        heights = list(accumulate(counts))
        buckets = [*zip(map(floatToGoString, bounds), heights, strict=False), ("+Inf", heights[-1])]
        self._families[name].add_metric([stage, TOTAL], buckets, total)

    def _gateway(self) -> None:
        counts = self._counts
        for (code, endpoint), times in counts.answers.items():
            self._value("throughput_total", (str(code), endpoint), times)
        self._histogram("process_duration_second", TOTAL, DURATION_BOUNDS, counts.duration_counts, counts.duration_sum)
        self._value("remaining_task", (), counts.in_flight)
        self._value("broker_up", (), int(self._snapshot is not None))

    def _stage(self, stage: Mapping[str, Any]) -> None:
        name = stage["name"]
        for family, key in _GAUGES:
            if key in stage:
                self._value(family, (name,), stage[key])
        self._value("stage_failing", (name,), int(bool(stage.get("failing"))))
        counters: Mapping[str, int] = stage.get("counters", {})
        for key in _STAGE_COUNTERS:
            if key in counters:
                self._value(f"{key}_total", (name,), counters[key])
        for key, value in counters.items():
            kind, _, which = key.partition("_")
            if kind == "released":
                self._value("released_total", (name, which), value)
            elif kind == "tasks":
                self._value("tasks_total", (name, which), value)
        for family, key in _HISTOGRAMS:
            if (found := stage.get(key)) is not None:
                self._histogram(family, name, found["bounds"], found["counts"], found["sum"])

    def _broker(self, snapshot: Snapshot) -> None:
        self._value("broker_tasks", (), snapshot.get("tasks", 0))
        counters = snapshot.get("counters", {})
        for key in _BROKER_COUNTERS:
            if key in counters:
                self._value(f"{key}_total", (), counters[key])


def render(namespace: str, counts: GatewayCounts, snapshot: Snapshot | None, accept: str = "") -> tuple[bytes, str]:
    """The text of a scrape and its content type: OpenMetrics for who accepts it, else the classic format.

    `snapshot` is None when the broker did not answer; then only the gateway's own numbers are there.
    """
    registry = CollectorRegistry(auto_describe=False, support_collectors_without_names=True)
    registry.register(_Scrape(namespace, counts, snapshot))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type

"""Metrics: plain numbers on the hot path, Prometheus families when somebody asks.

A gateway counts its answers in `GatewayCounts`, which is a dict, a list and two numbers. What the broker counts arrives
as its snapshot. `render` turns both into text, by the names of `CATALOGUE`, under the operator's namespace. Labels are
names of stages, routes and workers; nothing that a client can choose is one.

Several gateways of one host count on a board that they share, and each of them shows what all have counted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import CollectorRegistry
from prometheus_client.utils import floatToGoString

from zmesh.board import DURATION_BOUNDS, Board
from zmesh.catalogue import CATALOGUE, Family

__all__ = ["DURATION_BOUNDS", "GatewayCounts", "SharedCounts", "render"]

Snapshot = Mapping[str, Any]
"""What the broker says of itself; a broker of another version may leave things out."""

TOTAL = "total"  # the stage and the connection that stand for a whole request, as in mosec


_MAKERS = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
_UNITS = ("seconds", "bytes")
_GAUGES = (
    ("queue_depth", "queued"),
    ("queue_bytes", "queued_bytes"),
    ("suspect_tasks", "suspects"),
    ("held_tasks", "held"),
    ("leased_tasks", "leased"),
    ("workers_ready", "ready_workers"),
)
_STATES = ("starting", "ready", "draining", "lost", "exiting")
_STAGE_COUNTERS = ("attempts", "deaths", "exits", "returned", "poisoned", "expired", "cancelled", "shed")
_KINDS_OF_COUNTERS = {"released": "released_total", "tasks": "tasks_total", "bytes": "hop_bytes_total"}
_BROKER_COUNTERS = ("late", "malformed", "refused_peers")
_OF_ALL_WORKERS = (("process_duration_second", "batch_seconds"), ("ahead_wait_seconds", "ahead_seconds"))
_OF_BATCHES = (("batch_size", "batch_size"), ("batch_duration_second", "closing_seconds"))


class GatewayCounts:
    """What one gateway has done since it started."""

    __slots__ = ("answers", "duration_counts", "duration_sum", "in_flight", "lag_counts", "lag_sum")

    def __init__(self) -> None:
        self.answers: dict[tuple[int, str], int] = {}
        self.duration_counts = [0] * (len(DURATION_BOUNDS) + 1)
        self.duration_sum = 0.0
        self.lag_counts = [0] * (len(DURATION_BOUNDS) + 1)
        self.lag_sum = 0.0
        self.in_flight = 0

    def add(self, code: int, endpoint: str, seconds: float) -> None:
        """One answer. The duration counts for 200 only: a quick refusal says nothing about the speed of the mesh."""
        key = (code, endpoint)
        answers = self.answers
        answers[key] = answers.get(key, 0) + 1
        if code == 200:
            self.duration_counts[bisect_left(DURATION_BOUNDS, seconds)] += 1
            self.duration_sum += seconds

    def lagged(self, seconds: float) -> None:
        """The event loop was looked at, and ran so late."""
        seconds = max(0.0, seconds)
        self.lag_counts[bisect_left(DURATION_BOUNDS, seconds)] += 1
        self.lag_sum += seconds

    def total(self) -> GatewayCounts:
        """What there is to show. It does not change any more, so another thread may write it out."""
        total = GatewayCounts()
        total.answers, total.in_flight = self.answers.copy(), self.in_flight
        total.duration_counts, total.duration_sum = self.duration_counts.copy(), self.duration_sum
        total.lag_counts, total.lag_sum = self.lag_counts.copy(), self.lag_sum
        return total


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

    def lagged(self, seconds: float) -> None:
        seconds = max(0.0, seconds)
        self._row.lagged(bisect_left(DURATION_BOUNDS, seconds), seconds)

    def total(self) -> GatewayCounts:
        total = GatewayCounts()
        for row in self._board.rows:
            for path, number in self._routes.items():
                for code, times in row.answers(number):
                    total.answers[code, path] = total.answers.get((code, path), 0) + times
            total.duration_counts = [sum(both) for both in zip(total.duration_counts, row.durations(), strict=True)]
            total.lag_counts = [sum(both) for both in zip(total.lag_counts, row.lags(), strict=True)]
            total.duration_sum += row.seconds
            total.lag_sum += row.lag_seconds
            total.in_flight += row.requests
        return total


def _family(name: str, family: Family) -> Any:
    """Its unit is the last word of its name, where that is one. A unit in OpenMetrics is part of the name."""
    unit = name.removesuffix("_total").rpartition("_")[2]
    kind: Any = _MAKERS[family.kind]
    return kind(name, family.help, labels=family.labels, unit=unit if unit in _UNITS else "")


class _Scrape:
    """One look at everything, as prometheus_client wants it. An empty family is left out."""

    def __init__(self, namespace: str, counts: GatewayCounts, snapshot: Snapshot | None) -> None:
        self._namespace, self._counts, self._snapshot = namespace, counts, snapshot
        self._families = {family.name: _family(f"{namespace}_{family.name}", family) for family in CATALOGUE}
        self._bounds: Mapping[str, Sequence[float]] = (snapshot or {}).get("bounds", {})

    def collect(self) -> Iterator[Metric]:
        self._gateway()
        if self._snapshot is not None:
            for stage in self._snapshot.get("stages", ()):
                self._stage(stage)
            self._broker(self._snapshot)
            for metric in self._snapshot.get("metrics", ()):
                self._of_user_code(metric)
        yield from (family for family in self._families.values() if family.samples)

    def _value(self, name: str, labels: Sequence[str], value: float) -> None:
        self._families[name].add_metric(labels, value)

    def _histogram(
        self, name: str, labels: Sequence[str], bounds: Sequence[float], counts: Sequence[int], total: float
    ) -> None:
        heights = list(accumulate(counts))
        buckets = [*zip(map(floatToGoString, bounds), heights, strict=False), ("+Inf", heights[-1])]
        self._families[name].add_metric(labels, buckets, total)

    def _seen(self, name: str, labels: Sequence[str], found: Mapping[str, Any] | None, bounds: str) -> None:
        """A histogram of the broker's, if it says anything."""
        if found is not None and bounds in self._bounds:
            self._histogram(name, labels, self._bounds[bounds], found["counts"], found["sum"])

    def _gateway(self) -> None:
        counts = self._counts
        for (code, endpoint), times in counts.answers.items():
            self._value("throughput_total", (str(code), endpoint), times)
        total = TOTAL, TOTAL
        self._histogram("process_duration_second", total, DURATION_BOUNDS, counts.duration_counts, counts.duration_sum)
        self._histogram("loop_lag_seconds", ("gateway",), DURATION_BOUNDS, counts.lag_counts, counts.lag_sum)
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
            if kind in _KINDS_OF_COUNTERS:
                self._value(_KINDS_OF_COUNTERS[kind], (name, which), value)
        self._seen("queue_wait_seconds", (name,), stage.get("queue_seconds"), "seconds")
        self._workers(stage)

    def _workers(self, stage: Mapping[str, Any]) -> None:
        name, states = stage["name"], Counter(worker["state"] for worker in stage.get("workers", ()))
        for state in _STATES:
            self._value("workers", (name, state), states[state])
        kinds = _OF_ALL_WORKERS + (_OF_BATCHES if stage.get("batches_up") else ())
        for connection, tally in stage.get("tallies", {}).items():
            for family, key in kinds:
                self._seen(family, (name, connection), tally.get(key), "size" if key == "batch_size" else "seconds")

    def _broker(self, snapshot: Snapshot) -> None:
        self._value("broker_tasks", (), snapshot.get("tasks", 0))
        self._seen("loop_lag_seconds", ("broker",), snapshot.get("loop_lag"), "seconds")
        counters = snapshot.get("counters", {})
        for key in _BROKER_COUNTERS:
            if key in counters:
                self._value(f"{key}_total", (), counters[key])

    def _of_user_code(self, metric: Mapping[str, Any]) -> None:
        """The broker has seen to it that its name is not one of ours."""
        kind, of_worker = metric["kind"], ("connection",) if metric["kind"] == "gauge" else ()
        family = Family(metric["name"], kind, ("stage", *of_worker, *metric["labels"]), metric["help"])
        self._families[family.name] = _family(f"{self._namespace}_{family.name}", family)
        for stage, labels, numbers in metric["series"]:
            if kind == "histogram":
                self._histogram(
                    family.name, (stage, *labels), metric["buckets"], list(map(int, numbers[1:])), numbers[0]
                )
            else:
                self._value(family.name, (stage, *labels), numbers[0])


def render(namespace: str, counts: GatewayCounts, snapshot: Snapshot | None, accept: str = "") -> tuple[bytes, str]:
    """The text of a scrape and its content type: OpenMetrics for who accepts it, else the classic format.

    `snapshot` is None when the broker did not answer; then only the gateway's own numbers are there.
    """
    registry = CollectorRegistry(auto_describe=False, support_collectors_without_names=True)
    registry.register(_Scrape(namespace, counts, snapshot))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type

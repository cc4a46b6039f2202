"""Metrics: what is counted is shown, by the names and labels of the catalogue and in both text formats."""

from __future__ import annotations

import json
import os
from random import Random

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_classic

from zmesh.board import Board
from zmesh.catalogue import CATALOGUE, NOT_A_NAME, base_name
from zmesh.config import Limits, Plan, RoutePlan, StagePlan
from zmesh.core.dispatcher import Dispatcher
from zmesh.core.events import PeerGreeted
from zmesh.messages import Hello, PeerId, Role
from zmesh.telemetry import DURATION_BOUNDS, GatewayCounts, SharedCounts, render

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

HISTOGRAM = {"counts": [3, 2, 1], "sum": 4.5}
KINDS = ("batch_size", "closing_seconds", "batch_seconds", "ahead_seconds")
SNAPSHOT = {
    "tasks": 9,
    "bounds": {"size": [1.0, 2.0], "seconds": [0.5, 1.0]},
    "loop_lag": HISTOGRAM,
    "stages": [
        {
            "name": "Resize",
            "queued": 5,
            "queued_bytes": 512,
            "suspects": 6,
            "held": 7,
            "leased": 4,
            "ready_workers": 2,
            "failing": "stage Resize does not start: OSError",
            "counters": {
                "tasks_ok": 10,
                "tasks_error": 1,
                "bytes_in": 100,
                "bytes_out": 200,
                "batches": 4,
                "attempts": 12,
                "deaths": 1,
                "exits": 2,
                "returned": 3,
                "poisoned": 1,
                "expired": 2,
                "cancelled": 6,
                "shed": 7,
                "released_full": 1,
                "released_crowd": 2,
                "released_window": 3,
                "released_single": 4,
            },
            "workers": [{"state": state} for state in ("ready", "ready", "lost")],
            "batches_up": True,
            "tallies": {"1": dict.fromkeys(KINDS, HISTOGRAM), "1@far": dict.fromkeys(KINDS, HISTOGRAM)},
            "queue_seconds": HISTOGRAM,
        }
    ],
    "counters": {"late": 1, "malformed": 2, "refused_peers": 3, "peers": 5},
}


def scrape(counts=None, snapshot=SNAPSHOT, namespace="zmesh", accept=""):
    """Every sample as (name, labels) → value, and the families by name."""
    text, content_type = render(namespace, counts or GatewayCounts(), snapshot, accept)
    parse = parse_openmetrics if "openmetrics" in content_type else parse_classic
    families = list(parse(text.decode()))
    samples = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }
    return samples, families


def value(samples, name, **labels):
    return samples[name, frozenset(labels.items())]


def test_answers_are_a_counter_by_code_and_endpoint():
    counts = GatewayCounts()
    for code in (200, 200, 429):
        counts.add(code, "/inference", 0.01)
    samples, _ = scrape(counts)
    assert value(samples, "zmesh_throughput_total", code="200", endpoint="/inference") == 2
    assert value(samples, "zmesh_throughput_total", code="429", endpoint="/inference") == 1


def test_only_results_have_a_duration():
    counts = GatewayCounts()
    counts.add(200, "/inference", 0.003)
    counts.add(408, "/inference", 3.0)
    samples, _ = scrape(counts)
    total = {"stage": "total", "connection": "total"}
    assert value(samples, "zmesh_process_duration_second_count", **total) == 1
    assert value(samples, "zmesh_process_duration_second_sum", **total) == pytest.approx(0.003)
    assert value(samples, "zmesh_process_duration_second_bucket", le="0.002", **total) == 0
    assert value(samples, "zmesh_process_duration_second_bucket", le="0.004", **total) == 1
    assert value(samples, "zmesh_process_duration_second_bucket", le="+Inf", **total) == 1


@pytest.mark.parametrize("seconds", [0.0, *DURATION_BOUNDS])
def test_a_duration_on_a_bound_belongs_below_it(seconds):
    counts = GatewayCounts()
    counts.add(200, "/", seconds)
    index = counts.duration_counts.index(1)
    assert seconds <= DURATION_BOUNDS[index]


def test_a_duration_above_all_bounds_is_counted():
    counts = GatewayCounts()
    counts.add(200, "/", 1e6)
    assert counts.duration_counts[-1] == 1


def test_mosecs_durations_have_the_bounds_of_mosec():
    assert DURATION_BOUNDS[:13] == tuple(0.001 * 2**power for power in range(13))


def test_what_is_shown_does_not_change_while_it_is_written():
    counts = GatewayCounts()
    shown = counts.total()
    counts.add(200, "/inference", 0.1)
    counts.lagged(0.1)
    counts.in_flight = 1
    assert (shown.answers, shown.in_flight) == ({}, 0)
    assert (sum(shown.duration_counts), sum(shown.lag_counts), shown.duration_sum, shown.lag_sum) == (0, 0, 0, 0)
    again = counts.total()
    assert (again.answers, again.in_flight, again.duration_sum) == ({(200, "/inference"): 1}, 1, 0.1)
    assert (sum(again.duration_counts), sum(again.lag_counts), again.lag_sum) == (1, 1, 0.1)


def test_requests_in_flight_are_a_gauge():
    counts = GatewayCounts()
    counts.in_flight = 3
    samples, _ = scrape(counts)
    assert value(samples, "zmesh_remaining_task") == 3


def test_a_stage_shows_its_queue_its_workers_and_its_counters():
    samples, _ = scrape()
    shown = {
        name.removeprefix("zmesh_"): found
        for (name, labels), found in samples.items()
        if labels == {("stage", "Resize")} and "wait" not in name
    }
    assert shown == {
        "queue_depth": 5,
        "queue_bytes": 512,
        "suspect_tasks": 6,
        "held_tasks": 7,
        "leased_tasks": 4,
        "workers_ready": 2,
        "stage_failing": 1,
        "attempts_total": 12,
        "deaths_total": 1,
        "exits_total": 2,
        "returned_total": 3,
        "poisoned_total": 1,
        "expired_total": 2,
        "cancelled_total": 6,
        "shed_total": 7,
    }
    assert value(samples, "zmesh_tasks_total", stage="Resize", outcome="ok") == 10
    assert value(samples, "zmesh_tasks_total", stage="Resize", outcome="error") == 1
    reasons = {"full": 1, "crowd": 2, "window": 3, "single": 4}
    for reason, count in reasons.items():
        assert value(samples, "zmesh_released_total", stage="Resize", reason=reason) == count
    assert value(samples, "zmesh_hop_bytes_total", stage="Resize", direction="in") == 100
    assert value(samples, "zmesh_hop_bytes_total", stage="Resize", direction="out") == 200
    states = {"starting": 0, "ready": 2, "draining": 0, "lost": 1, "exiting": 0}
    for state, count in states.items():
        assert value(samples, "zmesh_workers", stage="Resize", state=state) == count


BY_WORKER = [
    (name, {"stage": "Resize", "connection": connection})
    for name in ("process_duration_second", "batch_size", "batch_duration_second", "ahead_wait_seconds")
    for connection in ("1", "1@far")
]


@pytest.mark.parametrize(
    ("name", "labels"),
    [*BY_WORKER, ("queue_wait_seconds", {"stage": "Resize"}), ("loop_lag_seconds", {"role": "broker"})],
)
def test_the_brokers_histograms_are_made_cumulative(name, labels):
    samples, _ = scrape()
    bounds = ("1.0", "2.0", "+Inf") if name == "batch_size" else ("0.5", "1.0", "+Inf")
    assert [value(samples, f"zmesh_{name}_bucket", le=le, **labels) for le in bounds] == [3, 5, 6]
    assert value(samples, f"zmesh_{name}_count", **labels) == 6
    assert value(samples, f"zmesh_{name}_sum", **labels) == 4.5


def test_a_stage_that_does_not_batch_shows_no_batches_as_in_mosec():
    snapshot = {**SNAPSHOT, "stages": [{**SNAPSHOT["stages"][0], "batches_up": False}]}
    _, families = scrape(snapshot=snapshot)
    shown = {family.name for family in families}
    assert "zmesh_process_duration_second" in shown
    assert not shown & {"zmesh_batch_size", "zmesh_batch_duration_second"}


def test_what_a_loop_lagged_is_counted_by_bucket_and_never_negative():
    counts = GatewayCounts()
    for seconds in (0.25, 0.003, -0.5):
        counts.lagged(seconds)
    samples, _ = scrape(counts)
    assert value(samples, "zmesh_loop_lag_seconds_count", role="gateway") == 3
    assert value(samples, "zmesh_loop_lag_seconds_sum", role="gateway") == pytest.approx(0.253)
    assert value(samples, "zmesh_loop_lag_seconds_bucket", role="gateway", le="0.001") == 1
    assert value(samples, "zmesh_loop_lag_seconds_bucket", role="gateway", le="0.004") == 2


USERS = [
    {"name": "tokens", "kind": "counter", "help": "T", "labels": ["x"], "buckets": [], "series": [["A", ["y"], [3.0]]]},
    {"name": "depth", "kind": "gauge", "help": "D", "labels": ["x"], "buckets": [],
     "series": [["A", ["1", "y"], [-2]]]},
    {"name": "sizes_bytes", "kind": "histogram", "help": "S", "labels": [], "buckets": [1.0, 2.0],
     "series": [["A", [], [4.5, 3.0, 2.0, 1.0]], ["B", [], [0.0, 0.0, 0.0, 0.0]]]},
    {"name": "unused", "kind": "gauge", "help": "U", "labels": [], "buckets": [], "series": []},
]  # fmt: skip


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_metrics_of_user_code_are_shown_beside_ours(accept):
    samples, families = scrape(snapshot={**SNAPSHOT, "metrics": USERS}, accept=accept)
    assert value(samples, "zmesh_tokens_total", stage="A", x="y") == 3
    assert value(samples, "zmesh_depth", stage="A", connection="1", x="y") == -2
    heights = [value(samples, "zmesh_sizes_bytes_bucket", stage="A", le=le) for le in ("1.0", "2.0", "+Inf")]
    assert heights == [3, 5, 6]
    assert value(samples, "zmesh_sizes_bytes_sum", stage="A") == 4.5
    assert value(samples, "zmesh_sizes_bytes_count", stage="B") == 0
    assert {family.name for family in families} >= {"zmesh_tokens", "zmesh_depth", "zmesh_sizes_bytes"}
    assert "zmesh_unused" not in {family.name for family in families}


def test_the_broker_shows_its_own_counters():
    samples, _ = scrape()
    assert value(samples, "zmesh_broker_up") == 1
    assert value(samples, "zmesh_broker_tasks") == 9
    found = [value(samples, f"zmesh_{name}_total") for name in ("late", "malformed", "refused_peers")]
    assert found == [1, 2, 3]


def test_a_silent_broker_leaves_the_gateways_own_numbers():
    samples, _ = scrape(snapshot=None)
    assert value(samples, "zmesh_broker_up") == 0
    assert value(samples, "zmesh_remaining_task") == 0
    assert not [name for name, _ in samples if "queue" in name]


def test_a_snapshot_that_leaves_things_out_is_shown_as_far_as_it_goes():
    samples, _ = scrape(snapshot={"stages": [{"name": "Bare"}]})
    assert value(samples, "zmesh_stage_failing", stage="Bare") == 0
    assert ("zmesh_queue_depth", frozenset({("stage", "Bare")})) not in samples


def test_the_snapshot_of_a_real_dispatcher_is_understood():
    stage = StagePlan(name="A", worker="A", max_batch_size=2)
    plan = Plan(stages=(stage,), routes=(RoutePlan(path="/a", stages=("A",)),))
    dispatcher = Dispatcher(plan, Limits(), Random(1), 0.0)
    hello = Hello([1], Role.WORKER, PeerId(bytes(16)), 1, "here", 1, plan.fingerprint, "A", 3)
    dispatcher.handle(PeerGreeted((1, b"w"), hello), now=0.0)
    samples, families = scrape(snapshot=json.loads(dispatcher.snapshot()))
    for name in ("process_duration_second", "ahead_wait_seconds", "batch_size", "batch_duration_second"):
        assert value(samples, f"zmesh_{name}_count", stage="A", connection="3") == 0, "it shows before its first batch"
    assert value(samples, "zmesh_workers_ready", stage="A") == 0
    shown = {family.name for family in families}
    missing = {f"zmesh_{base_name(family.name)}" for family in CATALOGUE} - shown
    assert missing == {"zmesh_throughput"}, "no request yet"


def test_the_namespace_is_the_operators():
    samples, _ = scrape(namespace="mosec_service")
    assert all(name.startswith("mosec_service_") for name, _ in samples)


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_every_family_is_in_the_catalogue_with_its_type_labels_and_help(accept):
    counts = GatewayCounts()
    counts.add(200, "/inference", 0.1)
    _, families = scrape(counts, accept=accept)
    catalogue = {f"zmesh_{base_name(family.name)}": family for family in CATALOGUE}
    assert {family.name for family in families} == set(catalogue)
    for family in families:
        listed = catalogue[family.name]
        assert (family.type, family.documentation) == (listed.kind, listed.help)
        unit = next((unit for unit in ("seconds", "bytes") if base_name(listed.name).endswith(f"_{unit}")), "")
        assert family.unit == (unit if accept else ""), "the classic format has no units"
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(listed.labels)


def test_names_of_the_catalogue_are_unique_and_counters_end_in_total():
    names = [base_name(family.name) for family in CATALOGUE]
    assert len(set(names)) == len(names)
    assert not [name for name in names if name.endswith(NOT_A_NAME)]
    assert all((family.kind == "counter") == family.name.endswith("_total") for family in CATALOGUE)


def test_mosecs_five_metrics_keep_their_names():
    names = {family.name for family in CATALOGUE}
    assert names >= {
        "throughput_total",
        "process_duration_second",
        "batch_size",
        "batch_duration_second",
        "remaining_task",
    }


def test_openmetrics_is_given_to_who_accepts_it():
    text, content_type = render("zmesh", GatewayCounts(), SNAPSHOT, OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")


@pytest.mark.parametrize("accept", ["", "*/*", "text/html"])
def test_everybody_else_gets_the_classic_text(accept):
    text, content_type = render("zmesh", GatewayCounts(), SNAPSHOT, accept)
    assert content_type.startswith("text/plain; version=")
    assert b"# EOF" not in text


def test_a_label_with_quotes_and_newlines_is_escaped():
    counts = GatewayCounts()
    counts.add(200, '/a"b\n\\', 0.1)
    samples, _ = scrape(counts)
    assert value(samples, "zmesh_throughput_total", code="200", endpoint='/a"b\n\\') == 1


# ── several gateways ──────────────────────────────────────────────────────────────────────────────────────────────

PATHS = ["/inference", "/label"]


def test_each_of_several_gateways_shows_what_all_have_counted():
    board = Board.make(2, len(PATHS))
    first = SharedCounts(board, PATHS)
    second = SharedCounts(Board.open(os.dup(board.fd), 2, len(PATHS), 1), PATHS)
    first.add(200, "/inference", 0.003)
    second.add(200, "/inference", 0.25)
    second.add(200, "/label", 0.003)
    second.add(429, "/label", 7.0)
    first.lagged(0.5)
    second.lagged(0.25)
    first.in_flight += 3
    second.in_flight += 2
    second.in_flight -= 1
    assert (first.in_flight, second.in_flight) == (3, 1)
    for one in (first, second):
        samples, _ = scrape(one.total())
        assert value(samples, "zmesh_throughput_total", code="200", endpoint="/inference") == 2
        assert value(samples, "zmesh_throughput_total", code="200", endpoint="/label") == 1
        assert value(samples, "zmesh_throughput_total", code="429", endpoint="/label") == 1
        total = {"stage": "total", "connection": "total"}
        assert value(samples, "zmesh_process_duration_second_count", **total) == 3
        assert value(samples, "zmesh_process_duration_second_sum", **total) == pytest.approx(0.256)
        assert value(samples, "zmesh_process_duration_second_bucket", le="0.004", **total) == 2
        assert value(samples, "zmesh_loop_lag_seconds_count", role="gateway") == 2
        assert value(samples, "zmesh_loop_lag_seconds_sum", role="gateway") == 0.75
        assert value(samples, "zmesh_remaining_task") == 4


def test_the_successor_of_a_gateway_goes_on_where_that_ended():
    board = Board.make(2, 1)
    former = SharedCounts(board, PATHS[:1])
    former.in_flight = 5
    former.add(200, "/inference", 0.5)
    successor = SharedCounts(board, PATHS[:1])
    assert successor.total().in_flight == 0, "what that had open has ended with it"
    successor.add(200, "/inference", 0.25)
    total = successor.total()
    assert (total.answers, total.duration_sum) == ({(200, "/inference"): 2}, 0.75)

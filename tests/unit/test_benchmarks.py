"""What the benchmarks do without measuring anything: reading wrk, verdicts, tables, plots, the pages."""

from __future__ import annotations

import json
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import pytest

from benchmarks import echo, model, pages, stages, tensors
from benchmarks.load import parse_open_loop, parse_wrk
from benchmarks.peers import PEERS, Unavailable, python_of
from benchmarks.plot import Bar, bars
from benchmarks.report import HERE, Data, at_least, at_most, load_results, rewrite, table
from benchmarks.sides import Sample, middle, mosec, skip, zmesh
from benchmarks.usage import mosec_group, spent, zmesh_group

WRK = """\
Running 3s test @ http://127.0.0.1:29859/inference
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     3.62ms    2.85ms  61.33ms   92.05%
    Req/Sec    18.82k     2.87k   22.47k    76.67%
  Latency Distribution
     50%    3.09ms
     75%    3.71ms
     90%  950.00us
     99%    1.20s
  56139 requests in 3.00s, 9.37MB read
"""
TROUBLE = "  Socket errors: connect 1, read 2, write 3, timeout 4\n  Non-2xx or 3xx responses: 17\n"
RATE = "Requests/sec:  18702.15\nTransfer/sec:      3.12MB\n"


def test_wrk_is_read_with_its_units_and_its_errors() -> None:
    run = parse_wrk(WRK + RATE)
    assert (run.requests, run.rate, run.wrong, run.broken) == (56139, 18702.15, 0, 0)
    assert run.p50 == pytest.approx(0.00309) and run.p99 == 1.2
    run = parse_wrk(WRK + TROUBLE + RATE)
    assert (run.wrong, run.broken) == (17, 10)


def test_what_is_not_from_wrk_is_refused() -> None:
    with pytest.raises(AssertionError, match="unable to connect"):
        parse_wrk("unable to connect to 127.0.0.1:1 Connection refused")


def test_an_open_loop_counts_everything_that_was_due_and_not_answered_well_as_wrong() -> None:
    latency = {"p50_ms": 1.5, "p99_ms": 20.0}
    result = {"goodput_per_second": 99.0, "due": 500, "good": 497, "latency": latency, "valid": False}
    run = parse_open_loop(json.dumps({"zmesh_bench": 1, "result": result}))
    assert (run.rate, run.p50, run.p99, run.wrong, run.is_valid) == (99.0, 0.0015, 0.02, 3, False)


def test_verdicts_know_their_direction_and_their_stretch() -> None:
    assert at_least("a", 2.0, 2.0, " x", stretch=2.5).text == "met"
    assert at_least("a", 1.9, 2.0, " x", stretch=2.5).text == "**not met**"
    assert at_least("a", 2.6, 2.0, " x", stretch=2.5).text == "met, and the stretch"
    assert at_most("a", 26.0, 25.0).text == "**not met**"
    assert at_most("a", 17.0, 25.0, " us", stretch=18.0).text == "met, and the stretch"
    assert at_most("a", 17.0, 25.0, " us", stretch=18.0).target == "≤ 25 us, stretch 18 us"


def test_a_figure_is_not_rounded_onto_its_target() -> None:
    just_below = at_least("a", 0.968, 0.97)
    assert (just_below.measured, just_below.text) == ("0.968", "**not met**")


def test_tables_are_markdown_with_aligned_columns() -> None:
    lines = table(("server", "req/s"), [("zmesh", 12345), ("m", 7)]).splitlines()
    assert lines == ["| server | req/s |", "| ------ | ----: |", "| zmesh  | 12345 |", "| m      |     7 |"]


PAGE = "# Page\n\n<!-- bench:echo -->\nold\n<!-- /bench:echo -->\n\nprose\n<!-- bench:model --><!-- /bench:model -->\n"


def test_a_section_is_rewritten_and_all_around_it_stays() -> None:
    once = rewrite(PAGE, "echo", "new\n")
    assert once == PAGE.replace("\nold\n", "\n\nnew\n\n")
    assert rewrite(once, "echo", "new") == once


@pytest.mark.parametrize("text", ["", "<!-- bench:echo -->", PAGE + PAGE, "<!-- /bench:echo --><!-- bench:echo -->"])
def test_a_page_without_exactly_one_such_section_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="one <!-- bench:echo -->"):
        rewrite(text, "echo", "new")


def test_medians_are_taken_of_each_figure_and_wrong_answers_are_added() -> None:
    runs = [Sample(rate, 0.001, 0.002, 1, {"worker": rate / 10, "agent": 0.0}) for rate in (30.0, 10.0, 20.0)]
    found = middle(runs)
    assert (found["rate"], found["wrong"], found["cpu"]) == (20.0, 3, {"worker": 2.0, "agent": 0.0})
    assert found["cpu_in_all"] == 2.0


def test_cpu_is_counted_by_group_and_from_the_first_look_on() -> None:
    before, after = {1: ("worker", 2.0)}, {1: ("worker", 3.0), 2: ("worker", 0.5), 3: ("agent", 0.25)}
    assert spent(before, after) == {"worker": 1.5, "agent": 0.25}


def test_processes_are_told_apart_by_their_command_lines() -> None:
    assert [zmesh_group(line, root) for line, root in ((["zmesh", "gateway"], False), ([], True), (["x"], False))] == [
        "gateway + broker",
        "agent",
        "worker",
    ]
    tracker = ["python", "-c", "from multiprocessing.resource_tracker import main;main(4)"]
    lines = [["/x/bin/mosec", "/tmp/config.json"], ["python", "-c", "spawn"], tracker]
    assert [mosec_group(line, False) for line in lines] == ["controller", "workers", "supervisor"]


def test_a_plot_has_a_bar_for_each_value_and_ours_is_blue() -> None:
    drawn = xml.etree.ElementTree.fromstring(bars("<x>", {"a & b": [Bar("one", 2.0, "2", True), Bar("two", 1.0, "1")]}))
    boxes = drawn.findall("{*}rect")[1:]  # the first is the background
    widths = [float(box.attrib["width"]) for box in boxes]
    assert (len(boxes), widths[0] / widths[1]) == (2, 2.0)
    assert boxes[0].attrib["fill"] != boxes[1].attrib["fill"]


def test_an_environment_that_is_not_there_is_said_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZMESH_PEERS", str(tmp_path))
    assert "mosec" in PEERS
    with pytest.raises(Unavailable, match=r"mosec is not installed: \./scripts/bench peers mosec"):
        python_of("mosec", may_install=False)


def test_every_peer_is_pinned_and_described() -> None:
    text = (HERE / "peers" / "README.md").read_text().lower()
    for peer in PEERS:
        pins = (HERE / "peers" / f"requirements-{peer}.txt").read_text().split()
        assert all("==" in pin for pin in pins)
        assert f"| {peer}" in text


# ── sections ──────────────────────────────────────────────────────────────────────────────────────────────────────


def cell(rate: float, **cpu: float) -> Data:
    used = {name.replace("_", " + "): value for name, value in cpu.items()}
    return {"rate": rate, "p50": 0.001, "p99": 0.002, "wrong": 0, "cpu": used, "cpu_in_all": sum(cpu.values())}


CIRCUMSTANCES = {"command": "./scripts/bench x", "machine": "2 cores", "commit": "abc", "date": "2026-01-01"}
SHARED: Data = {**CIRCUMSTANCES, "seconds": 1.0, "rounds": 1, "versions": {"mosec": "0.9.8"}, "skipped": {}}


def echo_data() -> Data:
    def side(settings: str, *rates: float) -> Data:
        cells = zip(("64", "256"), rates, strict=True)
        return {"settings": settings, "cells": {size: cell(rate, gateway_broker=20, worker=13) for size, rate in cells}}

    alone = {"p50": 0.001, "p99": 0.002, "rounds": [0.001]}
    throughput = {
        "zmesh": side("batch 64", 100, 100),
        "zmesh, large": side("batch 256", 90, 200),
        "mosec": side("batch 64", 40, 60),
        "mosec, large": side("batch 256", 30, 100),
        "mosec, orjson": side("orjson", 80, 90),
    }
    latency = {kind: {"zmesh": alone, "mosec": {**alone, "p50": 0.004}} for kind in ("batching", "none")}
    return {**SHARED, "orjson": True, "wait_ms": 1, "throughput": throughput, "alone": latency}


def stages_data() -> Data:
    kinds = {"one": cell(100, all=10), "two": cell(75, all=14)}
    return {**SHARED, "clients": 64, "batch": 64, "sides": {"zmesh": kinds, "mosec": {**kinds, "two": cell(30)}}}


def model_data() -> Data:
    one = {"zmesh": cell(95), "mosec": cell(96), "ideal": 100.0, "share": 0.95}
    return {**SHARED, "mosec_json": "own", "cells": {"10": {"32": one, "128": {**one, "mosec": None}}}}


def verdict_of(found: list[Any], beginning: str) -> Any:
    (one,) = [verdict for verdict in found if verdict.what.startswith(beginning)]
    return one


def test_each_side_of_the_echo_is_judged_by_its_best_configuration() -> None:
    data = echo_data()
    assert echo.best(data, "zmesh", 256)[0] == "zmesh, large"
    assert echo.best(data, "mosec", 64)[0] == "mosec, orjson"
    assert echo.best(data, "mosec", 64, orjson=False)[0] == "mosec"
    found = echo.verdicts(data)
    own = verdict_of(found, "throughput beside mosec's best with its own JSON, 64")
    both = verdict_of(found, "throughput beside mosec's best with orjson if that is faster, 64")
    assert (own.measured, own.text) == ("2.5 x", "met, and the stretch")
    assert (both.measured, both.text) == ("1.25 x", "**not met**")
    assert verdict_of(found, "latency of one client beside mosec's, batching").text == "met"
    assert verdict_of(found, "CPU of the worker").text == "**not met**"


def test_without_mosec_only_our_own_targets_are_judged() -> None:
    data = echo_data()
    data["throughput"] = {name: side for name, side in data["throughput"].items() if name.startswith("zmesh")}
    data["alone"] = {kind: {"zmesh": sides["zmesh"]} for kind, sides in data["alone"].items()}
    assert [verdict.what[:3] for verdict in echo.verdicts(data)] == ["CPU", "CPU", "ans"]
    assert pages.readme({"echo": data}) == ""


def test_every_cell_of_the_model_has_its_verdicts() -> None:
    data = model_data()
    assert [(verdict.what, verdict.is_met) for verdict in model.verdicts(data)] == [
        ("share of the ideal, 10 ms, 32 clients", True),
        ("beside mosec, 10 ms, 32 clients", False),
        ("share of the ideal, 10 ms, 128 clients", False),
        ("answers of zmesh that were wrong", True),
    ]
    assert "0.99 x" in pages.section("model", data)


def test_one_wrong_answer_of_ours_is_a_verdict_and_those_of_others_are_not() -> None:
    data = stages_data()
    data["sides"]["mosec"] = {kind: {**one, "wrong": 7} for kind, one in data["sides"]["mosec"].items()}
    assert verdict_of(stages.verdicts(data), "answers").is_met
    data["sides"]["zmesh"]["two"] = {**data["sides"]["zmesh"]["two"], "wrong": 1}
    assert not verdict_of(stages.verdicts(data), "answers").is_met


def test_without_zmesh_there_is_nothing_to_measure() -> None:
    skipped: dict[str, str] = {}
    skip(mosec("mosec", "", HERE), Unavailable("mosec is not installed"), skipped)
    assert skipped == {"mosec": "mosec is not installed"}
    with pytest.raises(SystemExit, match="zmesh could not be measured: it ended"):
        skip(zmesh("zmesh", "", HERE), Unavailable("it ended"), skipped)


def test_two_stages_are_judged_by_what_they_keep_and_beside_those_of_others() -> None:
    assert [verdict.is_met for verdict in stages.verdicts(stages_data())] == [True, False, True, True]


def test_arrays_are_judged_beside_each_way_of_mosec_and_as_a_share_of_a_copy() -> None:
    one = {"settings": "", "rate": 100.0, "p50": 0.01, "p99": 0.02, "cpu_ms": 5.0, "copies": 10.0, "large": "0.30 s"}
    sides = {"zmesh": one, "mosec": {**one, "rate": 50.0, "large": "no"}, "mosec, redis": {**one, "rate": 125.0}}
    data = {**SHARED, "megabytes": 10, "large": 100, "sides": sides}
    assert [(verdict.measured, verdict.is_met) for verdict in tensors.verdicts(data)] == [
        ("2 x", True),
        ("0.8 x", False),
        ("1", True),
    ]
    ours = next(line for line in tensors.section(data).splitlines() if line.startswith("| zmesh"))
    assert "1.00" in ours and "10%" in ours and "0.30 s" in ours
    data["sides"] = {**sides, "zmesh": {**one, "large": tensors.NO}}
    assert not tensors.verdicts(data)[-1].is_met


def test_the_readme_says_what_was_measured_beside_the_best_of_mosec_when_all_of_it_was() -> None:
    results = {"echo": echo_data(), "model": model_data()}
    assert pages.readme(results) == ""
    text = pages.readme({**results, "stages": stages_data()})
    assert "| echo, 64 clients" in text and "80 req/s (orjson)" in text and "1.25 x" in text
    assert pages.README_COMMAND in text


# ── the pages that are there ──────────────────────────────────────────────────────────────────────────────────────


def test_the_pages_say_what_results_json_says() -> None:
    """Nobody edits a figure by hand, and no section of a page has lost its marks."""
    results = load_results()
    page, front = (HERE / "RESULTS.md").read_text(), (HERE.parent / "README.md").read_text()
    for name in pages.MODULES:
        rewritten = rewrite(page, name, pages.section(name, results[name]) if name in results else "")
        assert name not in results or rewritten == page, f"make the pages again: ./scripts/bench {name} --write"
    summary = pages.readme(results)
    assert rewrite(front, "summary", summary) == front or not summary, (
        "make README.md again: ./scripts/bench all --write"
    )

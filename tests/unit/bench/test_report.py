"""What a person reads, whole; and that a program finds what the document names."""

import json
from textwrap import dedent

from zmesh.bench.figures import Figures
from zmesh.bench.knee import Knee, judged
from zmesh.bench.load import Load
from zmesh.bench.report import document, progress_line, result_document, result_text, sweep_document, sweep_text
from zmesh.bench.target import target

TARGET = target("http://127.0.0.1:8000/inference", data=["{}"])
OPEN = Load(seconds=10.0, warmup=1.0, rate=50.0)
CLOSED = Load(seconds=10.0, warmup=1.0, clients=8)


def figures(count: int = 500, lateness: float = 0.0001, latency: float = 0.02) -> Figures:
    made = Figures(10.0, due=count, good_in_time=count, connections=7, opened=7, cpu_seconds=0.5, wall_seconds=10.0)
    for _ in range(count):
        made.answered(200, latency)
        made.lateness.record(lateness)
    return made


def test_a_valid_open_loop():
    assert result_text(TARGET, OPEN, figures()) == dedent("""\
        POST http://127.0.0.1:8000/inference
        open loop, 50 req/s, poisson arrivals, seed 0, 10 s after 1 s of warm-up

        requests     500 due, 500 sent
        answers      200: 500
        goodput      50.0 req/s of 50.0 offered (2xx answers within the 10 s)
        latency      p50 20.00, p90 20.00, p99 20.00, p99.9 20.00, max 20.00 ms, since due (2xx and timed out)
        lateness     p50 0.10, p99 0.10, max 0.10 ms (the generator's own; allowed: p99 2.00 ms, max 100.00 ms)
        connections  7 at most of 256, 7 opened
        generator    5% of a core

        valid""")


def test_everything_that_can_go_wrong_has_its_line():
    made = figures(count=0)
    made.due, made.timed_out, made.broken, made.unconnected, made.not_sent = 14, 1, 2, 3, 4
    made.trouble = "Connection refused"
    for _ in range(4):
        made.answered(429, 0.001)
    made.waited.record(0.5)
    made.cpu_seconds = 9.5
    lines = result_text(TARGET, OPEN, made).splitlines()
    assert lines[3:] == [
        "requests     14 due, 7 sent",
        "answers      429: 4",
        "no answer    1 timed out, 2 lost their connection, 3 got no connection (Connection refused), 4 not sent",
        "goodput      0.0 req/s of 1.4 offered (2xx answers within the 10 s)",
        "latency      none, since due (2xx and timed out)",
        "other        p50 1.00, p90 1.00, p99 1.00, p99.9 1.00, max 1.00 ms (all other answers)",
        "lateness     none (the generator's own; allowed: p99 1.00 ms, max 100.00 ms)",
        "connections  7 at most of 256, 7 opened; 1 waited for one: p50 500.00, p99 500.00, max 500.00 ms",
        "generator    95% of a core: it may be the limit, and not the server",
        "",
        "INVALID: no request was answered with 2xx (4 were answered 429, 1 timed out, 2 lost their connection, 3 got no"
        " connection): try one with curl first",
    ]


def test_a_closed_loop_has_no_schedule_to_be_late_for():
    text = result_text(TARGET, CLOSED, figures())
    assert "closed loop, 8 clients" in text and "lateness" not in text and "offered" not in text
    assert ", since sent (" in text and "7 at most of 8" in text


def swept() -> Knee:
    knee = Knee(50.0)
    for rate in knee.rates():
        late = 0.3 if rate == 100 else 0.0001
        made = figures(round(rate * 10), late, latency=0.02 + late)
        made.good_in_time = round(min(rate, 150) * 10)
        knee.steps.append(judged(rate, made, 0.1))
        if len(knee.steps) == 3:
            break
    return knee


def test_a_sweep_shows_its_steps_and_whose_limit_each_was():
    late = "the generator was late: p99 300 ms, and 32 ms is allowed"
    head, table, last = sweep_text(TARGET, OPEN, figures(), 0.1, swept()).split("\n\n")
    assert head == dedent("""\
        POST http://127.0.0.1:8000/inference
        sweep, poisson arrivals, seed 0, steps of 10 s after 1 s of warm-up; p99 limit 100.00 ms
        one client alone: 50.0 req/s, p50 20.00, p99 20.00, max 20.00 ms""")
    assert table.splitlines() == [
        "RATE  OFFERED  GOODPUT  P50 MS  P99 MS  MAX MS  NOT 2XX  LATE P99 MS  CARRIED",
        "  50  50.0     50.0     20.10   20.10   20.10         0  0.10         yes",
        f" 100  100.0    100.0    320.00  320.00  320.00        0  300.00       no: {late}",
        f" 100  100.0    100.0    320.00  320.00  320.00        0  300.00       no: {late}",
    ]
    assert last == (
        "50 req/s was carried, and the knee may be higher: 100 req/s is the limit of the generator, not of the server"
        f" ({late}); give the generator a core or a machine of its own"
    )


def test_a_program_finds_the_fields_that_the_document_names():
    said = {**document("1", TARGET, OPEN), "result": result_document(figures(lateness=0.05))}
    again = json.loads(json.dumps(said))
    assert again["zmesh_bench"] == 1 and again["parameters"]["rate"] == 50.0
    assert again["parameters"]["timeout_ms"] == 10_000 and "timeout_seconds" not in again["parameters"]
    (fault,) = again["result"]["faults"]
    assert again["result"]["valid"] is False and set(fault) == {"whose", "text"}
    sweep = json.loads(json.dumps(sweep_document(figures(), 0.1, swept())))
    assert set(sweep) == {
        "alone", "p99_limit_ms", "steps", "knee_per_second", "knee_is_of_server", "text",
    }  # fmt: skip
    assert (sweep["knee_per_second"], sweep["knee_is_of_server"]) == (50.0, False)
    assert [(step["rate"], step["carried"], step["limit"]) for step in sweep["steps"]] == [
        (50.0, True, ""), (100.0, False, "generator"), (100.0, False, "generator"),
    ]  # fmt: skip


def test_the_line_of_progress_says_where_it_is():
    made = figures(count=20)
    made.due, made.broken = 25, 1
    assert progress_line(OPEN, 0.4, made) == "0 of 11 s, warming up"
    assert progress_line(OPEN, 5.2, made) == "5 of 11 s, 20 answers 2xx, 1 others"
    assert progress_line(OPEN, 11.6, made) == "11 s are over, waiting for 4 answers"

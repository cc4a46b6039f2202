"""The checker of `scripts/chaos` finds each kind of violation in a history that has it, and none in one without."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.checker import INVARIANTS, check
from tests.chaos.checker_mesh import SAMPLES_IN_A_ROW
from tests.chaos.faults import KillWorker, StopWorker
from tests.chaos.history import History
from tests.chaos.nemesis import schedule
from tests.chaos.profiles import FAULTS, PROFILES
from tests.chaos.report import report

Record = dict[str, Any]
TIMEOUT = 30.0


def sent(n: int, t: float, r: str = "/double", d: float = TIMEOUT, **more: object) -> Record:
    return {"e": "sent", "n": n, "t": t, "r": r, "d": d, **more}


def answer(n: int, t: float, s: int = 200, x: str = "", **more: object) -> Record:
    said = {"g": n, "a": 2 * n + 1} if s == 200 else {"x": x}
    return {"e": "answer", "n": n, "t": t, "s": s, "i": n, **said, **more}


def ran(stage: str, pid: int, t: float, n: Iterable[int], seconds: float | None = 0.01) -> list[Record]:
    """A batch; one that its process did not live to finish has no `seconds`."""
    begin = {"e": "begin", "stage": stage, "pid": pid, "t": t, "n": list(n)}
    return [begin] if seconds is None else [begin, {"e": "end", "t": t + seconds, "pid": pid}]


def fault(id: int, name: str, t: float, seconds: float = 0.0, **more: object) -> list[Record]:
    return [{"e": "fault", "id": id, "name": name, "t": t, **more}, {"e": "over", "id": id, "t": t + seconds}]


def phases(**at: float) -> list[Record]:
    return [{"e": "phase", "name": name, "t": t} for name, t in at.items()]


def stage(name: str = "First", **more: object) -> Record:
    return {"name": name, "queued": 0, "suspects": 0, "held": 0, "leased": 0, "deaths": 0, "workers": [], **more}


def mesh(t: float, *stages: Record, **more: object) -> Record:
    known = {"e": "mesh", "t": t, "epoch": 1, "tasks": 0, "kept": 0, "kept_bytes": 0, "processes": []}
    return {**known, "stages": list(stages), **more}


def found(*records: Record | list[Record]) -> list[tuple[str, str]]:
    """Which invariants are violated, and what is said of it."""
    flat = [one for record in records for one in (record if isinstance(record, list) else [record])]
    return [(violation.invariant, violation.text) for violation in check(History.of(flat))]


def invariants(*records: Record | list[Record]) -> list[str]:
    return [invariant for invariant, _ in found(*records)]


def test_a_history_without_faults_and_with_right_answers_has_no_violation() -> None:
    quiet = [
        record
        for n in range(20)
        for record in [sent(n, n / 10), answer(n, n / 10 + 0.02), *ran("First", 7, n / 10 + 0.005, [n])]
    ]
    assert found(*quiet) == []


# ── outcomes ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_lost_answer_is_found() -> None:
    assert invariants(sent(1, 0.0)) == ["I1"]
    assert invariants(sent(1, 0.0), {"e": "lost", "n": 1, "t": 41.0}) == ["I1"]


def test_a_broken_connection_is_a_lost_answer() -> None:
    assert invariants(sent(1, 0.0), {"e": "broken", "n": 1, "t": 0.5}, fault(1, "kill-broker", 0.4)) == ["I1"]


def test_who_left_is_owed_nothing() -> None:
    assert found(sent(1, 0.0), {"e": "left", "n": 1, "t": 0.02}) == []


def test_a_doubled_answer_is_found() -> None:
    assert invariants(sent(1, 0.0), answer(1, 0.1), answer(1, 0.2)) == ["I2"]


def test_an_answer_that_nobody_asked_for_is_found() -> None:
    assert invariants({"e": "extra", "t": 0.1, "s": 200, "i": 4, "g": 4, "a": 9}) == ["I2"]


def test_a_wrong_nonce_is_found() -> None:
    assert invariants(sent(1, 0.0), answer(1, 0.1, g=2)) == ["I3"]
    assert invariants(sent(1, 0.0), answer(1, 0.1, a=4)) == ["I3"]
    assert invariants(sent(1, 0.0), answer(1, 0.1, i=2)) == ["I3"]


def test_an_error_that_names_another_request_is_found() -> None:
    assert invariants(*crowd(9), sent(1, 0.0), answer(1, 0.1, 429, i=2), capacity(9)) == ["I3"]


def test_work_for_a_nonce_that_was_never_sent_is_found() -> None:
    assert invariants(ran("First", 7, 0.0, [5])) == ["I3"]


# ── time ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_late_outcome_is_found() -> None:
    assert invariants(sent(1, 0.0, d=0.5), answer(1, 0.8)) == ["I4"]
    assert found(sent(1, 0.0, d=0.5), answer(1, 0.74)) == []


def test_lateness_of_the_client_itself_is_allowed_for() -> None:
    assert found(sent(1, 0.0, d=0.5), answer(1, 0.8), {"e": "late", "t": 1.0, "s": 0.1}) == []
    assert invariants(sent(1, 0.0, d=0.5), answer(1, 0.8), {"e": "late", "t": 9.0, "s": 0.1}) == ["I4"]


def test_a_gateway_that_is_stopped_across_a_deadline_may_be_late_by_that() -> None:
    asked = sent(1, 0.0, d=0.5)
    assert found(asked, answer(1, 1.2), fault(1, "stop-gateway", 0.3, seconds=0.8)) == []
    assert invariants(asked, answer(1, 1.5), fault(1, "stop-gateway", 0.3, seconds=0.8)) == ["I4"]
    assert invariants(asked, answer(1, 1.2), fault(1, "stop-worker", 0.3, seconds=0.8)) == ["I4"]


def test_a_request_that_is_sent_to_a_stopped_gateway_has_its_time_from_when_that_goes_on() -> None:
    asked = sent(1, 0.1, d=0.5)
    stopped = fault(1, "stop-gateway", 0.0, seconds=1.0)
    assert found(asked, answer(1, 1.5, 408), stopped) == []
    assert invariants(asked, answer(1, 1.9, 408), stopped) == ["I4"]


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_timeout_is_explained_only_by_faults_that_cost_as_much() -> None:
    long, short = (sent(1, 0.0), answer(1, 30.0, 408)), (sent(1, 0.0, d=0.5), answer(1, 0.5, 408))
    assert invariants(*long) == ["I1"]
    assert invariants(*short) == ["I1"]
    assert invariants(*long, fault(1, "kill-worker", 5.0)) == ["I1"]
    assert found(*short, fault(1, "kill-worker", 0.1)) == []
    assert invariants(*long, fault(1, "stop-worker", 5.0, seconds=20.0)) == ["I1"]
    assert found(*long, fault(1, "stop-broker", 0.0, seconds=30.0)) == []


def test_a_timeout_before_the_deadline_is_found() -> None:
    assert invariants(sent(1, 0.0, d=2.0), answer(1, 0.5, 408), fault(1, "kill-worker", 0.1)) == ["I1"]


def capacity(tasks: int) -> Record:
    return {"e": "settings", "capacity": tasks}


def crowd(size: int, until: float = 0.5) -> list[Record]:
    """So many requests that are open from the beginning until then."""
    return [record for n in range(100, 100 + size) for record in (sent(n, 0.0), answer(n, until))]


def test_a_refusal_for_load_is_found_unless_a_queue_could_be_full() -> None:
    refused = sent(1, 0.3), answer(1, 0.4, 429)
    assert invariants(*refused) == ["I1"]
    assert invariants(*refused, *crowd(8), capacity(9), fault(1, "overload", 0.0, seconds=1.0)) == ["I1"]
    assert found(*refused, *crowd(9), capacity(9)) == []


def test_refused_requests_do_not_fill_a_queue() -> None:
    herd = [record for n in range(20) for record in (sent(n, 0.3), answer(n, 0.4, 429))]
    assert invariants(*herd, capacity(9)) == ["I1"] * 20


def test_a_gateway_may_refuse_for_a_moment_what_the_mesh_would_have_refused() -> None:
    assert found(sent(1, 0.6), answer(1, 0.61, 429), *crowd(9), capacity(9)) == []
    assert invariants(sent(1, 0.8), answer(1, 0.81, 429), *crowd(9), capacity(9)) == ["I1"]


def test_a_request_whose_client_left_is_open_until_the_mesh_can_know() -> None:
    left = [record for n in range(100, 109) for record in (sent(n, 0.0), {"e": "left", "n": n, "t": 0.1})]
    assert found(sent(1, 1.0), answer(1, 1.01, 429), *left, capacity(9)) == []
    late = sent(1, 4.0), answer(1, 4.01, 429), *left, capacity(9)
    assert invariants(*late) == ["I1"]
    assert found(*late, fault(1, "stop-gateway", 0.0, seconds=3.0)) == []


@pytest.mark.parametrize("status", [400, 404, 413, 503])
def test_other_refusals_are_found_whatever_happened(status: int) -> None:
    everything = [fault(number, name, 0.0, seconds=1.0) for number, name in enumerate(FAULTS)]
    assert "I1" in invariants(sent(1, 0.5), answer(1, 0.6, status), *everything)


def test_a_500_without_deaths_is_found() -> None:
    died = answer(1, 0.2, 500, "inference internal error: worker died")
    assert invariants(sent(1, 0.0), died) == ["I8"]
    assert invariants(sent(1, 0.0), answer(1, 0.2, 500, "inference internal error")) == ["I1"]


def test_a_500_after_two_aborts_of_it_alone_is_right() -> None:
    died = answer(1, 0.9, 500, "inference internal error: worker died")
    first, second = ran("First", 7, 0.1, [1], None), ran("First", 8, 0.5, [1], None)
    aborts = fault(1, "abort-worker", 0.11, pid=7), fault(2, "abort-worker", 0.51, pid=8)
    charged = mesh(1.0, stage(deaths=2))
    assert found(sent(1, 0.0), died, first, second, *aborts, charged) == []
    assert invariants(sent(1, 0.0), died, first, second, aborts[0], fault(2, "kill-worker", 0.51, pid=8)) == ["I8"]
    in_company = ran("First", 7, 0.1, [1, 2], None)
    assert "I8" in invariants(sent(2, 0.0), answer(2, 0.9), sent(1, 0.0), died, in_company, second, *aborts)


def test_an_unknown_outcome_belongs_to_the_route_that_runs_nothing_twice_and_to_a_fault() -> None:
    unknown = answer(1, 0.2, 500, "inference internal error: outcome unknown")
    assert invariants(sent(1, 0.0, "/once"), unknown) == ["I1"]
    assert invariants(sent(1, 0.0, "/double"), unknown, fault(1, "kill-worker", 0.1)) == ["I1"]
    assert found(sent(1, 0.0, "/once"), unknown, fault(1, "kill-worker", 0.1)) == []


# ── executions ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_execution_twice_at_a_once_only_stage_is_found() -> None:
    twice = ran("Once", 7, 0.1, [1], None), ran("Once", 8, 0.3, [1])
    assert invariants(sent(1, 0.0, "/once"), answer(1, 0.4), *twice, fault(1, "kill-worker", 0.2, pid=7)) == ["I5"]


def test_a_second_execution_after_a_death_is_allowed() -> None:
    twice = ran("First", 7, 0.1, [1], None), ran("First", 8, 0.3, [1])
    assert found(sent(1, 0.0), answer(1, 0.4), *twice, fault(1, "kill-worker", 0.2, pid=7)) == []


def test_too_many_attempts_are_found() -> None:
    runs = [ran("First", pid, pid / 10, [1], None) for pid in range(1, 11)]
    asked = sent(1, 0.0), answer(1, 2.0), *runs
    assert invariants(*asked) == ["I5"]
    assert found(*asked, fault(1, "kill-broker", 0.5)) == []


def test_two_executions_at_the_same_time_are_found_unless_a_lease_may_have_ended() -> None:
    runs = ran("First", 7, 0.1, [1], 0.5), ran("First", 8, 0.3, [1], 0.5)
    assert invariants(sent(1, 0.0), answer(1, 0.7), *runs, fault(1, "kill-worker", 0.2)) == ["I5"]
    assert found(sent(1, 0.0), answer(1, 0.7), *runs, fault(1, "kill-broker", 0.2)) == []


def test_an_execution_after_the_answer_is_found() -> None:
    assert invariants(sent(1, 0.0), answer(1, 0.1), ran("First", 7, 0.5, [1])) == ["I5"]
    runs = ran("First", 7, 0.02, [1]), ran("First", 8, 0.5, [1])
    assert invariants(sent(1, 0.0), answer(1, 0.1), *runs) == ["I5"]


def test_an_execution_after_the_deadline_is_found() -> None:
    asked = sent(1, 0.0, d=0.5), answer(1, 0.5, 408), fault(1, "kill-broker", 0.1), ran("First", 7, 0.9, [1])
    assert invariants(*asked) == ["I11"]
    assert found(*asked, fault(2, "stop-worker", 0.2, seconds=0.6)) == []


def test_an_execution_after_the_client_left_is_found() -> None:
    asked = sent(1, 0.0), {"e": "left", "n": 1, "t": 0.05}
    assert found(*asked, ran("First", 7, 0.9, [1])) == []
    assert invariants(*asked, ran("First", 7, 1.1, [1])) == ["I11"]


# ── poison ────────────────────────────────────────────────────────────────────────────────────────────────────────


def poisoned(kills: int, answered: Record) -> list[Record]:
    """A batch of two that dies, then the poison alone, again and again."""
    runs = [one for pid in range(1, kills) for one in ran("First", pid, 0.1 + pid / 20, [1], None)]
    group = ran("First", 99, 0.1, [1, 2], None)
    return [sent(1, 0.0, how="poison"), sent(2, 0.0), answer(2, 0.2), answered, *group, *runs]


def test_a_poison_ends_few_workers_and_gets_its_500() -> None:
    died = answer(1, 0.9, 500, "inference internal error: worker died")
    assert found(*poisoned(4, died)) == []
    assert invariants(*poisoned(5, died)) == ["I8"], "3 + log2(2) = 4"


def test_a_poison_that_is_answered_200_is_found() -> None:
    assert invariants(*poisoned(1, answer(1, 0.9))) == ["I8"]


def test_a_death_that_was_charged_for_nothing_is_found() -> None:
    samples = mesh(0.0, stage(deaths=0)), mesh(1.0, stage(deaths=1))
    assert invariants(*samples, fault(1, "kill-worker", 0.5)) == ["I8"]
    assert found(*samples, fault(1, "abort-worker", 0.5)) == []


def test_deaths_are_counted_anew_by_another_broker() -> None:
    samples = mesh(0.0, stage(deaths=1)), mesh(1.0, stage(deaths=1), epoch=2)
    assert found(*samples, fault(1, "abort-worker", 0.0), fault(2, "abort-worker", 0.5)) == []
    assert invariants(*samples, fault(1, "abort-worker", 0.0)) == ["I8"]


# ── the mesh ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_more_tasks_than_requests_are_found() -> None:
    assert invariants(sent(1, 0.0), answer(1, 5.0), mesh(1.0, tasks=2)) == ["I6"]


def test_a_gateway_that_stands_still_does_not_know_who_left() -> None:
    left, seen = [sent(1, 0.0), {"e": "left", "n": 1, "t": 1.0}], mesh(2.2, tasks=1)
    assert invariants(*left, seen) == ["I6"]
    assert invariants(*left, seen, fault(1, "stop-gateway", 0.9, seconds=1.2)) == []
    assert invariants(*left, mesh(2.7, tasks=1), fault(1, "stop-gateway", 0.9, seconds=1.2)) == ["I6"]
    assert found(sent(1, 0.0), answer(1, 5.0), mesh(1.0, tasks=1)) == []


def test_a_queue_above_its_capacity_is_found() -> None:
    settings = {"e": "settings", "capacity": 8, "workers": 1, "batch": 2}
    assert invariants(settings, mesh(1.0, stage(queued=13))) == ["I6"]
    assert found({**settings, "layout": "gateways"}, mesh(1.0, stage(queued=20))) == []
    assert invariants({**settings, "layout": "gateways"}, mesh(1.0, stage(queued=21))) == ["I6"]
    assert found(settings, mesh(1.0, stage(queued=12))) == []
    assert found(settings, mesh(1.0, stage("Second", queued=13))) == []
    assert found(settings, mesh(1.0, stage(queued=13)), fault(1, "kill-broker", 0.5)) == []
    assert invariants(settings, mesh(9.0, stage(queued=13)), fault(1, "kill-broker", 0.5)) == ["I6"]


def test_a_process_that_grew_is_found() -> None:
    times = phases(nemesis=1.0, drain=9.0)
    before = mesh(0.5, processes=[["broker", 5, 30_000, 40]])
    assert invariants(*times, before, mesh(10.0, processes=[["broker", 6, 120_000, 40]])) == ["I6"]
    assert invariants(*times, before, mesh(10.0, processes=[["broker", 6, 30_000, 90]])) == ["I6"]
    assert found(*times, before, mesh(10.0, processes=[["broker", 6, 60_000, 60]])) == []


def loaded(rate_after: int) -> Iterator[Record]:
    """100 answers a second before a fault at 10 s, and `rate_after` from 12 s to 20 s."""
    yield from phases(load=0.0, baseline=2.0, nemesis=8.0, recovery=11.0, drain=20.0, over=21.0)
    yield from fault(1, "kill-worker", 10.0)
    moments = [n / 100 for n in range(1000)] + [12 + n / rate_after for n in range(8 * rate_after)]
    for n, moment in enumerate(moments):
        yield sent(n, moment)
        yield answer(n, moment + 0.01)
    yield mesh(20.5)


def test_a_mesh_that_stays_slow_is_found() -> None:
    assert invariants(*loaded(90)) == ["I7"]
    assert found(*loaded(97)) == []


def test_what_other_programs_took_is_allowed_for() -> None:
    """CPUs are asked for seconds in all, idle ones, and ours: before the faults all was ours, then a tenth was not."""
    before = [mesh(2.5, cpu=[0.0, 0.0, 0.0]), mesh(7.5, cpu=[10.0, 0.0, 10.0])]
    busy = [mesh(12.5, cpu=[20.0, 0.0, 19.0]), mesh(17.5, cpu=[30.0, 0.0, 28.0])]
    quiet = [mesh(12.5, cpu=[20.0, 1.0, 19.0]), mesh(17.5, cpu=[30.0, 2.0, 28.0])]
    assert found(*loaded(90), before, busy, mesh(20.5)) == []
    assert invariants(*loaded(80), before, busy, mesh(20.5)) == ["I7"]
    assert invariants(*loaded(90), before, quiet, mesh(20.5)) == ["I7"], "it was idle"


def test_a_mesh_that_is_slower_under_faults_than_its_profile_says_is_found() -> None:
    assert invariants({"e": "settings", "during_share": 0.7}, *loaded(100)) == ["I7"], "2 of 3 s, then 1 s of none"
    assert found({"e": "settings", "during_share": 0.6}, *loaded(100)) == []


def test_a_run_in_which_nobody_was_answered_is_no_success() -> None:
    times = phases(load=0.0, baseline=2.0, nemesis=8.0, recovery=11.0, drain=20.0, over=21.0)
    assert invariants(*times, mesh(20.5)) == ["I7"]


def test_tables_that_are_not_empty_in_the_end_are_found() -> None:
    quiet = list(loaded(100))[:-1]
    for left in (mesh(20.5, kept=1), mesh(20.5, stage(leased=1)), mesh(20.5, stage(suspects=1)), mesh(15.0)):
        assert invariants(*quiet, left) == ["I7"], left


def test_a_program_that_ends_badly_is_found() -> None:
    assert invariants(*loaded(100), {"e": "exit", "name": "head", "t": 22.0, "code": 4}) == ["I7"]


def idle(
    t: float, batches: int = 5, leases: int = 0, state: str = "ready", queued: int = 3, suspects: int = 0
) -> Record:
    return mesh(t, stage(queued=queued, suspects=suspects, workers=[[1, 77, state, leases, batches]]))


def test_an_idle_worker_beside_waiting_tasks_is_found_once() -> None:
    assert invariants(*(idle(float(t)) for t in range(SAMPLES_IN_A_ROW + 2))) == ["I12"]


@pytest.mark.parametrize(
    "other",
    [
        idle(1.0, batches=6),
        idle(1.0, leases=1),
        idle(1.0, state="lost"),
        idle(1.0, queued=0),
        {"e": "mesh", "t": 1.0, "processes": []},
    ],
    ids=["it worked", "it holds something", "it is lost", "nothing waits", "nobody knows"],
)
def test_a_worker_that_did_something_in_between_is_not_idle(other: Record) -> None:
    assert found(idle(0.0), other, idle(2.0)) == []


def test_children_that_outlive_their_agent_are_found() -> None:
    assert invariants(fault(1, "kill-agent", 0.0, gone_in=1.2)) == ["kin"]
    assert found(fault(1, "kill-agent", 0.0, gone_in=0.2)) == []


# ── around it ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    def write(name: str, *records: Record) -> None:
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records))

    write("settings.json", {"e": "settings", "capacity": 3})
    write("clients.jsonl", sent(1, 0.0), answer(1, 0.1), sent(2, 0.2))
    write("nemesis.jsonl", *fault(1, "kill-worker", 0.1, pid=7), {"e": "missed", "t": 0.2, "name": "kill-worker"})
    write("mesh.jsonl", mesh(0.3))
    write("executions-First-7-1.jsonl", *ran("First", 7, 0.05, [1]))
    with (tmp_path / "executions-First-7-1.jsonl").open("a") as file:
        file.write('{"e": "begin", "sta')  # its process was killed as it wrote
    history = History.read(tmp_path)
    assert [(r.nonce, len(r.answers), len(r.runs)) for r in history.requests.values()] == [(1, 1, 1), (2, 0, 0)]
    assert (len(history.faults), history.missed, len(history.samples), history.settings["capacity"]) == (1, 1, 1, 3)


def test_violations_are_laid_to_the_faults_of_their_time() -> None:
    records = [
        *fault(1, "kill-worker", 0.1),
        *fault(2, "stop-agent", 50.0, seconds=1.0),
        sent(1, 0.0),
        answer(1, 0.2, 503),
    ]
    history = History.of(records)
    lines = report(history, check(history)).splitlines()
    table = {line.split()[0]: line.split()[1:] for line in lines if line.startswith(("kill-worker", "stop-agent"))}
    assert table["kill-worker"][INVARIANTS.index("I1")] == "1"
    assert table["stop-agent"][INVARIANTS.index("I1")] == "✓"
    assert any(line.startswith("1 violations") for line in lines)


def test_a_seed_gives_the_same_schedule_again_and_another_seed_another_one() -> None:
    faults = PROFILES["mix"].faults
    assert schedule(faults, 7, 60.0) == schedule(faults, 7, 60.0) != schedule(faults, 8, 60.0)


def test_leaving_a_fault_out_changes_nothing_for_the_others() -> None:
    both = {"kill-worker": KillWorker(2.0, is_random=True), "stop-worker": StopWorker(3.0, least=1.0, most=2.0)}
    alone = {"stop-worker": both["stop-worker"]}
    assert [one for one in schedule(both, 7, 60.0) if one.name == "stop-worker"] == schedule(alone, 7, 60.0)


def test_nothing_lasts_longer_than_the_nemesis() -> None:
    for profile in PROFILES.values():
        planned = schedule(profile.faults, 3, 60.0)
        drawn = [one for one in planned if not profile.faults[one.name].given]
        assert all(one.stroke.at + one.stroke.seconds <= 60.0 for one in drawn)

"""What `/metrics` of a real mesh promises: exact over its processes, and nothing goes back when they die."""

from __future__ import annotations

import os
import signal
import threading
from itertools import pairwise
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.harness import RunningMesh, closed_loop, running, wait_until
from tests.hosts import free_ports, loopback_hosts

COUNTING = Path(__file__).parent / "apps" / "counting.py"
STAGES, WORKERS, ROUNDS = ("First", "Last"), 4, 5

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(mesh: RunningMesh) -> Samples:
    return parsed(mesh.get("/metrics").body)


def parsed(text: bytes) -> Samples:
    families = text_string_to_metric_families(text.decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def total(samples: Samples, name: str, **labels: str) -> float:
    """Over all series that have these labels."""
    return sum(
        value for (found, given), value in samples.items() if found == f"zmesh_{name}" and labels.items() <= given
    )


def fallen(before: Samples, after: Samples) -> list[str]:
    """Counts that went back, or went away."""
    ends = ("_total", "_count", "_bucket")
    return [
        f"{name} {dict(labels)}: {value} → {after.get((name, labels))}"
        for (name, labels), value in before.items()
        if name.endswith(ends) and after.get((name, labels), -1.0) < value
    ]


def test_counts_are_exact_over_processes_and_twenty_kills_take_nothing_back() -> None:
    with running(COUNTING, "--timeout", "30000", env={"MODEL_MS": "5"}) as mesh:
        for number in range(41):
            assert mesh.post("/count", b"%d" % number).json() == number
        seen = scrape(mesh)
        for stage in STAGES:
            found = [total(seen, "served_total", stage=stage, parity=parity) for parity in ("even", "odd")]
            assert found == [21, 20], "what a batch has counted came with its results"
            assert total(seen, "sizes_sum", stage=stage) == total(seen, "tasks_total", stage=stage, outcome="ok") == 41
            assert total(seen, "batch_size_sum", stage=stage) == total(seen, "attempts_total", stage=stage) == 41
            sizes = total(seen, "sizes_count", stage=stage)
            assert sizes == total(seen, "process_duration_second_count", stage=stage)
            assert sizes == total(seen, "released_total", stage=stage)
        over, scrapes = threading.Event(), [seen]
        sender = threading.Thread(target=lambda: answers.extend(send(mesh, over)))
        answers: list[int] = []
        sender.start()
        try:
            kill_everybody_often(mesh, scrapes)
        finally:
            over.set()
            sender.join(60)
        scrapes.append(scrape(mesh))
        assert [fallen(before, after) for before, after in pairwise(scrapes)] == [[]] * (len(scrapes) - 1)
        last = scrapes[-1]
        assert total(last, "exits_total") == ROUNDS * WORKERS
        assert total(last, "throughput_total", code="200") == 41 + answers.count(200) == 41 + len(answers)
        for stage in STAGES:
            ok = total(last, "tasks_total", stage=stage, outcome="ok")
            assert ok <= total(last, "served_total", stage=stage) <= total(last, "attempts_total", stage=stage)
        names = {dict(labels)["connection"] for name, labels in last if name == "zmesh_batch_size_sum"}
        assert names == {"1", "2"}, "a successor goes on with the series of the dead"
        pids = {int(value) for (name, _), value in last.items() if name == "zmesh_pid"}
        assert pids == set(mesh.worker_pids()), "a gauge goes with its worker"
        assert mesh.stop() == 0, mesh.log()


def test_what_living_workers_have_counted_outlives_the_broker() -> None:
    """On two agents of one host, whose workers have the same numbers."""
    with loopback_hosts() as (head, elsewhere):
        http = free_ports(4)
        bind = f"tcp://127.0.0.1:{http + 1}"
        with (
            head.program("run", COUNTING, "--isolate-broker", "--bind", bind, "--port", http) as mesh,
            elsewhere.program("worker", COUNTING, "--connect", bind),
        ):

            def count(numbers: range) -> None:
                for number in numbers:
                    assert head.request("POST", http, "/count", b"%d" % number).status == 200

            def samples() -> Samples:
                return parsed(head.request("GET", http, "/metrics").body)

            def eight_ready() -> bool:
                return head.is_ready(http) and total(samples(), "workers_ready") == 8

            wait_until(eight_ready, 30, "all workers to be ready")
            count(range(24))
            before = samples()
            assert [total(before, "served_total", stage=stage) for stage in STAGES] == [24, 24]
            os.kill(mesh.child("zmesh.serving"), signal.SIGKILL)
            wait_until(
                lambda: eight_ready() and not total(samples(), "attempts_total"), 30, "a new broker, and all workers"
            )
            count(range(24, 30))
            after = samples()
            assert [total(after, "served_total", stage=stage) for stage in STAGES] == [30, 30]
            assert [total(after, "attempts_total", stage=stage) for stage in STAGES] == [6, 6], (
                "the broker's own are new"
            )
            assert mesh.stop() == 0, mesh.log()


def send(mesh: RunningMesh, over: threading.Event) -> list[int]:
    found = closed_loop(mesh.port, 3, lambda client, number: ("/count", b"%d" % number), over.is_set)
    return [answer.status for _, _, answer in found]


def kill_everybody_often(mesh: RunningMesh, scrapes: list[Samples]) -> None:
    """Each time when all workers are there and have worked."""
    former: set[int] = set()
    seen: list[set[int]] = [former]

    def all_new() -> bool:
        workers = [worker for stage in mesh.mesh()["stages"] for worker in stage["workers"] if worker["batches"]]
        found = {worker["pid"] for worker in workers}
        if found != seen[-1]:  # somebody died, or came and worked
            seen.append(found)
            scrapes.append(scrape(mesh))
        return len(found) == WORKERS and not found & former

    for _ in range(ROUNDS):
        wait_until(all_new, 30, "four new workers that have worked")
        former = set(mesh.worker_pids())
        for pid in former:
            os.kill(pid, signal.SIGKILL)
    wait_until(all_new, 30, "four new workers that have worked")

"""A `forward` that takes too long, or that nobody waits for, in real worker processes."""

import http.client
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.harness import RunningMesh, all_at_once, running, wait_until
from tests.integration.storm import storm
from tests.lone_worker import LoneWorker, lone_worker
from zmesh.messages import Cancel, Heartbeat, LeaseId, Phase, Status, TaskId

APP = Path(__file__).parent / "apps" / "stubborn.py"
UNWANTED = (Status.CANCELLED, b"cancelled: nobody waits for this result any more")
FOR_EVER = 1e9


def bodies(count: int = 1, **item: Any) -> list[bytes]:
    return [json.dumps(item).encode()] * count


def running_lease(worker: LoneWorker, lease: int) -> None:
    """Wait until it is in `forward`."""
    worker.wait(lambda: worker.slate.read()[:2] == (lease, Phase.FORWARD))


@pytest.mark.parametrize("kind", ["alarm", "interrupt"])
def test_signals_around_the_end_of_a_batch_tear_no_message_and_hit_nobody_else(kind: str) -> None:
    """500 of each; `python -m tests.integration.storm` fires 10 000."""
    seen = storm(kind, 500, seed=1)
    hit = "TIMEOUT" if kind == "alarm" else "CANCELLED"
    assert seen["target OK"] > 25 and seen[f"target {hit}"] > 25, f"most of them came at another time: {seen}"


@pytest.mark.parametrize("how", ["spin", "sleep"])
def test_a_worker_is_interrupted_in_what_nobody_waits_for_and_serves_the_next(how: str) -> None:
    with lone_worker(APP, "Stubborn") as worker:
        worker.lease(1, bodies(3, how=how, ms=FOR_EVER))
        worker.lease(2, bodies(1, ms=0))
        running_lease(worker, 1)
        worker.child.interrupt(LeaseId(1))
        assert worker.answer(1) == [UNWANTED] * 3
        assert [status for status, _ in worker.answer(2)] == [Status.OK]


@pytest.mark.parametrize("how", ["spin", "sleep"])
def test_a_worker_over_its_timeout_says_so_and_serves_the_next(how: str) -> None:
    with lone_worker(APP, "Stubborn", timeout=0.1) as worker:
        started = time.monotonic()
        worker.lease(1, bodies(3, how=how, ms=FOR_EVER))
        worker.lease(2, bodies(1, ms=0))
        assert worker.answer(1) == [(Status.TIMEOUT, b"request timeout: the stage took longer than 0.1 s")] * 3
        assert time.monotonic() - started >= 0.1
        assert [status for status, _ in worker.answer(2)] == [Status.OK]


def test_while_forward_asks_only_a_cancel_counts_and_what_else_came_waits_for_its_end() -> None:
    """Lease 2 comes while lease 1 looks into the socket, and so does the end of one of its rows."""
    with lone_worker(APP, "Stubborn") as worker:
        worker.lease(1, bodies(2, how="poll", ms=20_000))
        running_lease(worker, 1)
        worker.lease(2, bodies(3, ms=0))
        worker.tell(Heartbeat(0, 0, []))
        worker.tell(Cancel([TaskId(201)], "its client left"))
        worker.tell(Cancel([TaskId(100), TaskId(101)], "their clients left"))
        assert worker.answer(1) == [(Status.OK, b"true")] * 2
        assert [status for status, _ in worker.answer(2)] == [Status.OK, Status.CANCELLED, Status.OK]
        worker.lease(3, bodies(1, ms=0))
        assert [status for status, _ in worker.answer(3)] == [Status.OK]


# ── in a mesh ─────────────────────────────────────────────────────────────────────────────────────────────────────


def leave(mesh: RunningMesh, path: str, **item: Any) -> None:
    """A client that leaves as soon as its request is in `forward`."""
    connection = http.client.HTTPConnection("127.0.0.1", mesh.port)
    connection.request("POST", path, body=json.dumps(item))
    wait_until(lambda: f"doing {item['how']}" in mesh.log(), what="forward to begin")
    connection.close()


def test_a_python_loop_over_its_timeout_costs_its_own_request_and_neither_a_neighbour_nor_a_worker() -> None:
    with running(APP, "--timeout", "20000") as mesh:
        pids = mesh.worker_pids()
        slow = mesh.post("/timed", *bodies(how="spin", ms=FOR_EVER))
        assert (slow.status, slow.body) == (408, b"request timeout: the stage took longer than 0.5 s")
        assert slow.seconds < 5, "long before its own deadline"
        with all_at_once(mesh.port, "/timed", bodies(3, how="sleep", ms=250)):  # so that the next ones share a batch
            wait_until(lambda: "doing sleep" in mesh.log())
            mixed = [*bodies(1, ms=FOR_EVER), *bodies(3, ms=2)]
            with all_at_once(mesh.port, "/timed", mixed) as answers:
                pass
        assert [answer.status for answer in answers] == [408, 200, 200, 200]
        assert mesh.worker_pids() == pids
        log = mesh.log()
        assert "stubborn.py" in log
        assert re.search(r"request \S+ \S+.* failed: ForwardTimeout: the stage took longer than 0.5 s", log), "no batch"


def test_a_client_that_leaves_is_seen_by_a_forward_that_asks_and_ends_one_that_does_not() -> None:
    with running(APP, "--timeout", "20000") as mesh:
        pids = mesh.worker_pids()
        leave(mesh, "/patient", how="poll", ms=FOR_EVER)  # the first batch of a worker is not interrupted
        after = mesh.post("/patient", *bodies(ms=1))
        assert after.status == 200 and after.seconds < 10, "the worker was free again"
        assert "told: [True]" in mesh.log()
        leave(mesh, "/patient", how="spin", ms=FOR_EVER)
        after = mesh.post("/patient", *bodies(ms=1))
        assert after.status == 200 and after.seconds < 10, "the worker was free again"
        assert "is interrupted: nobody waits" in mesh.log()
        assert mesh.worker_pids() == pids

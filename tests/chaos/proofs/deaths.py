"""Those that die, and those that never come back."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Collection
from pathlib import Path
from time import monotonic

from tests.chaos.history import History
from tests.chaos.layouts import FARM, is_alive
from tests.chaos.proofs.few import lines_of, lonely
from tests.chaos.proofs.findings import Findings, hold_all_right, loaded
from tests.harness import all_at_once, wait_until
from tests.hosts import children

GONE_SECONDS = 1.0
BACK_SECONDS = 60.0


def agent_killed(found: Findings) -> None:
    """SIGKILL for one of two agents under load: its children are gone in 1 s, its work is answered elsewhere."""
    kills = []
    with loaded(FARM, workers=1, batch=8, service_ms=20.0) as it:
        for _ in range(1 if found.is_short else 5):
            it.wait_served(300)
            victim = it.mesh.programs["others"].process
            family = children(victim.pid)
            # Between two batches a worker has nothing that could be cut short.
            wait_until(lambda those=family: _are_held_at_work(it.directory, those), BACK_SECONDS, "a worker at work")
            at = monotonic()
            victim.kill()
            victim.wait()
            wait_until(lambda gone=family: not any(map(is_alive, gone)), BACK_SECONDS, "the children to be gone")
            kills.append((at, monotonic() - at, family))
            it.wait_served(300)
            if found.is_short:
                break
            it.mesh.start("others")
            wait_until(lambda: len(it.mesh.workers()) == 4, BACK_SECONDS, "its successor's workers")
        deaths = it.deaths()
        history = it.finish()
    hold_all_right(found, history)
    for at, gone, family in kills:
        found.hold(bool(family) and gone <= GONE_SECONDS, f"{len(family)} children gone {gone:.3f} s after their agent")
        cut = [batch for batch in history.batches if batch.pid in family and batch.begin < at and batch.end is None]
        nonces = {nonce for batch in cut for nonce in batch.nonces}
        inside = [request for request in history.requests.values() if request.sent < at < request.done]
        again = [history.requests[nonce].done - at for nonce in nonces]
        found.hold(
            bool(again) and bool(inside),
            f"{len(again)} requests that ran there were answered elsewhere within {max(again, default=0):.2f} s of the "
            f"kill, all {len(inside)} that were in the mesh within {max(r.done - at for r in inside):.2f} s",
        )
    found.hold(deaths == 0, f"{deaths} deaths charged")


def _are_held_at_work(directory: Path, pids: Collection[int]) -> bool:
    """Whether these are stopped now, and one of them in the middle of a batch. If none is, all go on."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: all(_is_stopped(pid) for pid in pids), GONE_SECONDS, "the workers to stop")
    if any(batch.pid in pids and batch.end is None for batch in History.read(directory).batches):
        return True
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    return False


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def native_loop(found: Findings) -> None:
    """A row in a loop that heeds no signal, over its stage's timeout: 408 for it alone, and its worker is replaced."""
    seconds, guilty = (1.0, 3) if found.is_short else (3.0, 3)
    with lonely("stuck", "--timeout", "60000", STAGE_TIMEOUT=str(seconds)) as (mesh, directory):
        wait_until(lambda: len(mesh.worker_pids()) == 2, BACK_SECONDS, "both workers")
        before = set(mesh.worker_pids())
        bodies = [json.dumps({"n": n, "stuck": n == guilty}).encode() for n in range(8)]
        with all_at_once(mesh.port, "/go", bodies) as answers:
            pass
        batches = lines_of(directory / "batches.jsonl")
        wait_until(lambda: len(mesh.worker_pids()) == 2, BACK_SECONDS, "another worker")
        after = set(mesh.worker_pids())
        again = mesh.post("/go", b'{"n": 99}')
        wait_until(lambda: mesh.mesh()["tasks"] == 0, BACK_SECONDS, "nothing to be left")
        deaths = sum(stage["counters"]["deaths"] for stage in mesh.mesh()["stages"])
    first = batches[0]
    found.hold(len(first["n"]) == 8, f"the first batch had {len(first['n'])} of 8 rows, row {guilty} never comes back")
    blamed = answers[guilty]
    text = blamed.body.decode(errors="replace")
    found.hold(
        blamed.status == 408, f"the guilty got {blamed.status} {text[:80]!r} after {blamed.seconds:.2f} s, "
        f"run {sum(guilty in batch['n'] for batch in batches)} times, with a timeout of {seconds:g} s"
    )  # fmt: skip
    others = [answer for n, answer in enumerate(answers) if n != guilty]
    right = sum(answer.status == 200 and answer.json() == {"n": n} for n, answer in enumerate(answers) if n != guilty)
    found.hold(right == 7, f"{right} of 7 neighbours got 200, the last after {max(a.seconds for a in others):.2f} s")
    stuck = {batch["pid"] for batch in batches if guilty in batch["n"]}
    is_replaced = first["pid"] in before - after and not stuck & after
    found.hold(is_replaced, f"{len(stuck)} workers that ran it were replaced, and the stage answers {again.status}")
    found.note(f"{deaths} deaths charged")
    found.hold(again.status == 200, "the stage serves on")


def abandoned(found: Findings) -> None:
    """The only worker is blocked, requests queue, their clients leave, the worker goes on: nothing of them is run."""
    number = 50 if found.is_short else 500
    with lonely("gate", "--timeout", "60000") as (mesh, directory):
        connections = [ask(mesh.port, 0)]
        runs = directory / "runs.jsonl"
        wait_until(runs.exists, what="the worker to be blocked")
        connections += [ask(mesh.port, n) for n in range(1, number + 1)]
        wait_until(lambda: mesh.mesh()["tasks"] == number + 1, what="all requests to be in the mesh")
        for connection in connections[1:]:
            connection.close()
        at = monotonic()
        wait_until(lambda: mesh.mesh()["tasks"] == 1, what="those of clients that left to be gone")
        took = monotonic() - at
        (directory / "open").touch()
        status = int(connections[0].recv(4096).split(b" ", 2)[1])
        connections[0].close()
        wait_until(lambda: mesh.mesh()["tasks"] == 0, what="the mesh to be empty")
        last = mesh.post("/go", b'{"n": 1000000}')  # behind whatever may still wait in the worker
        executed = [line["n"] for line in lines_of(runs)]
    found.hold(status == 200, f"the client that stayed got {status}")
    found.note(f"{number} clients left; {took:.3f} s later nothing of theirs was left in the mesh")
    counted = len(executed) - 1
    found.hold(executed == [0, 1_000_000] and last.status == 200, f"executed = {counted}, of {number + 1}")


def ask(port: int, n: int) -> socket.socket:
    """A connection with a request on it."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    body = json.dumps({"n": n}).encode()
    connection.sendall(b"POST /go HTTP/1.1\r\nhost: mesh\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
    return connection

"""Each point of `ZMESH_CRASH_AT`, under load: the process that comes there dies, and every request is answered.

One mesh stands for all of them. It is started with every point disarmed, its file being there already; a test arms its
own by taking the file away. The points of an agent need one that may die: it works for the same mesh.
"""

from __future__ import annotations

import ast
import http.client
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.harness import REPOSITORY, Answer, closed_loop, exchange, wait_until
from tests.hosts import Host, Program, children, free_ports, loopback_hosts
from zmesh import messages
from zmesh.crashing import POINTS, VARIABLE

APP = REPOSITORY / "tests" / "integration" / "apps" / "two_stages.py"
CLIENTS = 24
CHILDREN_SECONDS = 1.0  # that a child may outlive its agent
JOIN_SECONDS = 40.0  # that a client may wait: more than the time of its request

# Where a process ends; what is done so that somebody comes there, if load alone does not bring it about.
AS_IT_IS, WORKER_KILLED, ROWS_THAT_RAISE = "", "a worker is killed", "rows that make forward raise"
HOLDS = {
    "worker.heard.welcome": WORKER_KILLED,
    "worker.heard.tasks": AS_IT_IS,
    "worker.forward": AS_IT_IS,
    "worker.sending.results": AS_IT_IS,
    "worker.between_results": ROWS_THAT_RAISE,
    "worker.sent.results": AS_IT_IS,
    "worker.heard.ack": AS_IT_IS,
    "broker.heard.hello": WORKER_KILLED,
    "broker.heard.submit": AS_IT_IS,
    "broker.sending.tasks": AS_IT_IS,
    "broker.sent.tasks": AS_IT_IS,
    "broker.heard.results": AS_IT_IS,
    "broker.next_step": AS_IT_IS,
    "broker.sending.reply": AS_IT_IS,
    "broker.sent.reply": AS_IT_IS,
    "broker.heard.exited": WORKER_KILLED,
}
OF_A_GATEWAY = ["gateway.sent.submit", "gateway.heard.reply"]
OF_AN_AGENT = ["agent.spawned", "agent.sending.exited", "agent.sent.exited"]
WHEN_LEAVING = ["worker.sending.goodbye"]


class Points:
    """The files of the points, all there at first."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        for point in POINTS:
            self.file(point).write_text("disarmed")

    def file(self, point: str) -> Path:
        return self._directory / point

    def env(self, points: list[str]) -> dict[str, str]:
        return {VARIABLE: ",".join(f"{point}@{self.file(point)}" for point in points)}

    def arm(self, point: str) -> None:
        self.file(point).unlink()

    def victim(self, point: str) -> int:
        """The pid of who ended there, as soon as somebody has."""

        def written() -> str:
            file = self.file(point)
            return file.read_text().strip() if file.exists() else ""

        wait_until(written, what=f"somebody to come to {point}")
        pid = int(written())
        wait_until(lambda: not is_alive(pid), what=f"{pid} to end at {point}")
        return pid


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@dataclass
class Mesh:
    """A head with a broker and workers of its own, which others may join at `bind`."""

    host: Host
    head: Program
    port: int
    bind: str
    points: Points

    def snapshot(self) -> dict[str, Any]:
        """Empty when the gateway or its broker cannot be asked."""
        try:
            answer = self.host.request("GET", self.port, "/mesh")
        except (OSError, http.client.HTTPException):
            return {}
        return dict(answer.json()) if answer.status == 200 else {}

    def pids(self, role: str) -> list[int]:
        if role == "broker":
            return [self.head.child("zmesh.serving")]
        snapshot = self.snapshot()
        if role == "gateway":
            return [snapshot["gateway"]["pid"]]
        return [worker["pid"] for stage in snapshot["stages"] for worker in stage["workers"]]

    def has(self, workers: int) -> bool:
        """So many at each stage, all of them alive and ready."""
        stages = self.snapshot().get("stages", [])
        ready = [[is_alive(w["pid"]) and w["state"] == "ready" for w in stage["workers"]] for stage in stages]
        return ready == [[True] * workers] * 2

    def is_drained(self) -> bool:
        snapshot = self.snapshot()
        if not snapshot:
            return False
        left = [stage[count] for stage in snapshot["stages"] for count in ("queued", "suspects", "held", "leased")]
        return not any([snapshot["tasks"], snapshot["task_bytes"], snapshot["gateway"]["requests"], *left])

    def exits(self) -> int:
        """Of workers, as this broker has seen them."""
        return sum(stage["counters"]["exits"] for stage in self.snapshot()["stages"])

    def kill_a_worker(self) -> None:
        os.kill(self.pids("worker")[0], signal.SIGKILL)

    def check_peace(self) -> None:
        """It serves, it has charged nobody with a death, and nothing is left in it."""
        assert_right(0, 0, self.host.request("POST", self.port, *body(0, 0)), self.head.log())
        wait_until(self.is_drained, what="nothing to be left in the mesh")
        assert [stage["counters"]["deaths"] for stage in self.snapshot()["stages"]] == [0, 0]


@pytest.fixture(scope="module", name="mesh")
def running_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    points = Points(tmp_path_factory.mktemp("points"))
    port = free_ports(4)
    bind = f"tcp://127.0.0.1:{port + 1}"
    arguments = "run", APP, "--isolate-broker", "--port", port, "--bind", bind, "--timeout", "30000"
    with (
        loopback_hosts() as (host, _),
        host.program(*arguments, **points.env([*HOLDS, *OF_A_GATEWAY])) as head,
    ):
        mesh = Mesh(host, head, port, bind, points)
        host.wait_ready(port)
        yield mesh
        wait_until(lambda: mesh.snapshot()["counters"]["kept_replies"] == 0, what="every answer to be acknowledged")
        assert head.stop() == 0, head.log()


def body(client: int, number: int, *, alone: bool = False) -> tuple[str, bytes]:
    return "/double", json.dumps({"nonce": client * 1_000_000 + number, "alone": alone}).encode()


def body_that_raises(client: int, number: int) -> tuple[str, bytes]:
    return body(client, number, alone=(client + number) % 5 == 0)


def assert_right(client: int, number: int, answer: Answer, log: str) -> None:
    nonce = client * 1_000_000 + number
    assert answer.status == 200, f"{answer}\n{log[-3000:]}"
    assert answer.json() == {"nonce": nonce, "answer": 2 * nonce + 1}


@contextmanager
def meanwhile(deed: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Gives whether `deed`, in a thread of its own, is over; raises what it raised."""
    with ThreadPoolExecutor(1) as thread:
        doing = thread.submit(deed)
        yield doing.done
        doing.result()


def ask_meanwhile(mesh: Mesh, deed: Callable[[], None], make: Any = body) -> list[tuple[int, int, Answer]]:
    """The answers of a closed loop, all of them right."""
    with meanwhile(deed) as is_over:
        answers = closed_loop(mesh.port, CLIENTS, make, is_over)
    log = mesh.head.log()
    for client, number, answer in answers:
        assert_right(client, number, answer, log)
    return answers


@pytest.mark.parametrize("point", HOLDS)
def test_a_crash_there_costs_no_request(mesh: Mesh, point: str) -> None:
    wait_until(lambda: mesh.has(workers=2), what="all workers")
    before, exits = mesh.pids(role := point.partition(".")[0]), mesh.exits()
    victims: list[int] = []

    def deed() -> None:
        mesh.points.arm(point)
        if HOLDS[point] == WORKER_KILLED:
            mesh.kill_a_worker()
        victims.append(mesh.points.victim(point))
        wait_until(lambda: mesh.has(workers=2), what="all workers to be back")

    make = body_that_raises if HOLDS[point] == ROWS_THAT_RAISE else body
    answers = ask_meanwhile(mesh, deed, make)
    assert len(answers) >= CLIENTS
    is_newborn = point == "worker.heard.welcome"
    assert (victims[0] in before) != is_newborn, f"{victims} ended at {point}, and the {role} was {before}"
    mesh.check_peace()
    if role == "worker":  # the broker lived, and remembers
        assert mesh.exits() - exits == (2 if HOLDS[point] == WORKER_KILLED else 1)
    print(f"{point}: {len(answers)} requests, longest wait {max(a.seconds for _, _, a in answers):.2f} s")


@pytest.mark.parametrize("point", OF_A_GATEWAY)
def test_a_gateway_that_crashes_there_leaves_nobody_waiting_and_nothing_behind(mesh: Mesh, point: str) -> None:
    wait_until(lambda: mesh.has(workers=2), what="all workers")
    before, workers = mesh.pids("gateway"), mesh.pids("worker")

    def deed() -> None:
        mesh.points.arm(point)
        assert [mesh.points.victim(point)] == before
        wait_until(lambda: mesh.has(workers=2), what="another gateway")

    with meanwhile(deed) as is_over:
        answers, broken = stubborn_clients(mesh.port, is_over)
    for client, number, answer in answers:
        assert_right(client, number, answer, mesh.head.log())
    assert broken > 0, "their connections ended with the gateway"
    assert mesh.pids("worker") == workers, "nobody else had to go"
    mesh.check_peace()


def stubborn_clients(port: int, is_over: Callable[[], bool]) -> tuple[list[tuple[int, int, Answer]], int]:
    """Clients that connect anew when their connection breaks: the answers, and how often that was."""
    answers: list[tuple[int, int, Answer]] = []
    broken: list[int] = []

    def client(index: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=JOIN_SECONDS)
        number = 0
        while not is_over():
            number += 1
            try:
                answers.append((index, number, exchange(connection, "POST", *body(index, number))))
            except TimeoutError:
                raise
            except (OSError, http.client.HTTPException):
                broken.append(index)
                connection.close()
        connection.close()

    with ThreadPoolExecutor(CLIENTS) as threads:
        for done in [threads.submit(client, index) for index in range(CLIENTS)]:
            done.result(2 * JOIN_SECONDS)
    return answers, len(broken)


@contextmanager
def joined_agent(mesh: Mesh, *points: str) -> Iterator[Program]:
    """A worker of each stage more, on an agent of their own."""
    stages = "--stage", "First:1", "--stage", "Second:1"
    with mesh.host.program("worker", APP, "--connect", mesh.bind, *stages, **mesh.points.env([*points])) as agent:
        wait_until(lambda: mesh.has(workers=3), what="the workers of another agent")
        yield agent


@pytest.mark.parametrize("point", OF_AN_AGENT)
def test_an_agent_that_crashes_there_takes_its_workers_along_and_others_do_their_work(mesh: Mesh, point: str) -> None:
    wait_until(lambda: mesh.has(workers=2), what="all workers")
    with joined_agent(mesh, point) as agent:

        def deed() -> None:
            family = {*children(agent.process.pid)}
            assert len(workers_of(agent.process.pid)) == len(family) == 2
            mesh.points.arm(point)
            os.kill(min(family), signal.SIGKILL)
            assert agent.process.wait(20) == -signal.SIGKILL
            assert mesh.points.victim(point) == agent.process.pid
            wait_until(lambda: not workers_of(agent.process.pid), CHILDREN_SECONDS, "its children to be gone")
            wait_until(lambda: mesh.has(workers=2), what="the broker to know")

        ask_meanwhile(mesh, deed)
    mesh.check_peace()


def workers_of(agent: int) -> list[int]:
    """Processes that this agent started, whoever their parent is now: their environment names it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if re.search(rb"ZMESH_PIPE=\d+:%d\0" % agent, (process / "environ").read_bytes()):
                found.append(int(process.name))
        except OSError:
            continue  # it ended, or is not ours
    return [pid for pid in found if is_alive(pid)]


@pytest.mark.parametrize("point", WHEN_LEAVING)
def test_a_worker_that_crashes_while_it_leaves_costs_no_request(mesh: Mesh, point: str) -> None:
    wait_until(lambda: mesh.has(workers=2), what="all workers")
    with joined_agent(mesh, point) as agent:
        family = children(agent.process.pid)

        def deed() -> None:
            mesh.points.arm(point)
            agent.process.terminate()
            assert mesh.points.victim(point) in family
            assert agent.process.wait(20) == 0, agent.log()
            wait_until(lambda: mesh.has(workers=2), what="the broker to know")

        ask_meanwhile(mesh, deed)
    mesh.check_peace()


# ── the table is whole ────────────────────────────────────────────────────────────────────────────────────────────


def test_every_point_is_struck_by_one_test() -> None:
    struck = [*HOLDS, *OF_A_GATEWAY, *OF_AN_AGENT, *WHEN_LEAVING]
    assert sorted(struck) == sorted(POINTS)


def test_every_point_has_one_place_in_the_code() -> None:
    places = [place for path in sorted((REPOSITORY / "zmesh").rglob("*.py")) for place in places_in(path)]
    kinds = {name.lower() for name in messages.__all__}
    for point in POINTS:
        place, _, kind = point.rpartition(".")
        if point not in places:
            assert kind in kinds, f"{point} is neither a place nor a message at one"
        assert places.count(point) + places.count(place) == 1, point
    assert {place.partition(".")[0] for place in places} == {"worker", "broker", "gateway", "agent"}


def places_in(path: Path) -> list[str]:
    """The first arguments of the calls of `crash_at`, `{self._owner}` being each who has a `Line`."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    named = [ast.unparse(call.args[0]) for call in calls if ast.unparse(call.func) == "crash_at"]
    owners = "worker", "gateway", "agent"
    texts = [name.strip("f'\"") for name in named]
    return [t.replace("{self._owner}", owner) for t in texts for owner in (owners if "{" in t else owners[:1])]


def test_every_point_is_in_the_table_of_the_documentation() -> None:
    table = (REPOSITORY / "docs" / "testing.md").read_text()
    named = re.findall(r"^\| `((?:worker|broker|gateway|agent)\.[a-z_.]+)` \|", table, re.MULTILINE)
    assert sorted(named) == sorted(POINTS)

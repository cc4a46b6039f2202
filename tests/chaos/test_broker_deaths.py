"""A broker in a process of its own is killed, stopped and cut off, and every request is answered, once and rightly."""

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.harness import all_at_once, closed_loop, wait_until
from tests.hosts import Host, Program, free_ports, loopback_hosts
from tests.proxy import Proxy

APPS = Path(__file__).parent.parent / "integration" / "apps"
TWO_STAGES, SIZED = APPS / "two_stages.py", APPS / "sized.py"
STOPPED_SECONDS = 30.0
KIB = 1024


@dataclass
class Mesh:
    """A head with a broker of its own; `port` is its gateway's."""

    host: Host
    head: Program
    port: int

    def broker(self) -> int:
        return self.head.child("zmesh.serving")

    def kill_broker(self) -> int:
        """The pid of its successor."""
        before = self.broker()
        os.kill(before, signal.SIGKILL)

        def is_replaced() -> bool:
            try:
                return self.broker() != before
            except (AssertionError, OSError):
                return False

        wait_until(is_replaced, what="another broker")
        return self.broker()

    def stages(self) -> list[dict[str, Any]]:
        return list(self.host.request("GET", self.port, "/mesh").json()["stages"])

    def finished(self, stage: str) -> int:
        """Tasks of that stage that this broker has seen to a good end; 0 without a broker."""
        answer = self.host.request("GET", self.port, "/mesh")
        stages = answer.json()["stages"] if answer.status == 200 else []
        return sum(one["counters"]["tasks_ok"] for one in stages if one["name"] == stage)


@contextmanager
def mesh_of(app: Path, *arguments: str, port: int = 0, **env: str) -> Iterator[Mesh]:
    with loopback_hosts() as (host, _), ExitStack() as running:
        port = port or free_ports(1)
        command = ["run", app, "--isolate-broker", "--port", port, "--timeout", "60000", *arguments]
        head = running.enter_context(host.program(*command, **env))
        if "--no-workers" not in arguments:
            host.wait_ready(port)
        yield Mesh(host, head, port)


def doubled(client: int, number: int) -> tuple[str, bytes]:
    return "/double", json.dumps({"nonce": client * 1_000_000 + number}).encode()


def assert_doubled(client: int, number: int, answer: Any, log: str = "") -> None:
    nonce = client * 1_000_000 + number
    assert answer.status == 200, f"{answer}\n{log[-3000:]}"
    assert answer.json() == {"nonce": nonce, "answer": 2 * nonce + 1}


def stand_still(begun: threading.Event, called_off: threading.Event) -> Callable[[], None]:
    """Stops a broker under load for a while; what is returned judges what came of it."""
    with mesh_of(TWO_STAGES) as mesh:
        begun.set()
        pids = sorted(worker["pid"] for stage in mesh.stages() for worker in stage["workers"])
        broker, over = mesh.broker(), threading.Event()

        def nemesis() -> None:
            called_off.wait(1.0)
            os.kill(broker, signal.SIGSTOP)
            called_off.wait(STOPPED_SECONDS)
            os.kill(broker, signal.SIGCONT)
            called_off.wait(2.0)
            over.set()

        stopper = threading.Thread(target=nemesis, daemon=True)
        stopper.start()
        answers = closed_loop(mesh.port, 64, doubled, over.is_set)
        stopper.join(5)
        stages, log, after = mesh.stages(), mesh.head.log(), mesh.broker()

    def judge() -> None:
        assert after == broker, "it is the same process"
        for client, number, answer in answers:
            assert_doubled(client, number, answer, log)
        assert sum(stage["counters"]["deaths"] for stage in stages) == 0
        assert sorted(worker["pid"] for stage in stages for worker in stage["workers"]) == pids, "no worker was ended"
        longest = max(answer.seconds for _, _, answer in answers)
        assert longest >= STOPPED_SECONDS - 1, "nobody waited for it"
        print(f"{len(answers)} requests, {STOPPED_SECONDS:g} s stopped, all 200; longest wait {longest:.2f} s")

    return judge


@pytest.fixture(scope="module", autouse=True)
def standstill() -> Iterator[Future[Callable[[], None]]]:
    """It stands still from the first test of this file on, and takes no time of a processor while the others run, each
    of which has a mesh of its own."""
    begun, called_off = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as beside:
        still = beside.submit(stand_still, begun, called_off)
        wait_until(lambda: begun.is_set() or still.done(), what="its mesh to have its ports")
        yield still
        called_off.set()


def test_an_idle_mesh_answers_the_next_request_after_its_broker_died() -> None:
    with mesh_of(TWO_STAGES) as mesh:
        for number in range(3):
            mesh.kill_broker()
            answer = mesh.host.request("POST", mesh.port, *doubled(1, number))
            assert_doubled(1, number, answer, mesh.head.log())
        wait_until(lambda: [len(stage["workers"]) for stage in mesh.stages()] == [2, 2], what="all workers to be back")


def test_a_lost_first_greeting_leaves_no_stage_empty() -> None:
    """Workers elsewhere reach the broker through a proxy that loses the first message of every connection."""
    first = free_ports(8)
    real, seen = first + 1, first + 4  # the ports of front and two stages, and those of the proxy before them
    bind, connect = f"tcp://127.0.0.1:{real}", f"tcp://127.0.0.1:{seen}"
    ways = range(seen, seen + 3), range(real, real + 3)
    with (
        mesh_of(TWO_STAGES, "--no-workers", "--bind", bind, port=first) as mesh,
        Proxy(*ways, drop=1) as proxy,
        mesh.host.program("worker", TWO_STAGES, "--connect", connect),
    ):
        mesh.host.wait_ready(mesh.port)
        assert proxy.dropped >= 5, "an agent and four workers greeted in vain"
        before = proxy.dropped
        mesh.kill_broker()
        assert_doubled(2, 1, mesh.host.request("POST", mesh.port, *doubled(2, 1)), mesh.head.log())
        wait_until(lambda: [len(stage["workers"]) for stage in mesh.stages()] == [2, 2], what="all workers")
        assert proxy.dropped >= before + 5


def test_a_thousand_large_requests_in_flight_survive_their_broker() -> None:
    bodies = [random.Random(number).randbytes(60 * KIB) for number in range(1000)]
    with mesh_of(SIZED, "--capacity", "2000", ECHO_MS="100") as mesh:

        def held() -> int:
            return sum(stage["queued"] + stage["leased"] for stage in mesh.stages())

        with all_at_once(mesh.port, "/echo", bodies) as answers:
            wait_until(lambda: held() > 500, what="most of them to be in the mesh")
            mesh.kill_broker()
        log = mesh.head.log()
    for number, answer in enumerate(answers):
        assert answer.status == 200, f"{answer.status} {answer.body[:200]!r}\n{log[-3000:]}"
        assert answer.body == bodies[number]
    assert log.count("the broker lost its memory") == 1, log
    longest = max(answer.seconds for answer in answers)
    print(f"1000 requests of 60 KiB, one kill, all 200; longest wait {longest:.2f} s")


def test_brokers_killed_again_and_again_under_load_cost_no_request() -> None:
    with mesh_of(TWO_STAGES) as mesh:
        over, kills = threading.Event(), []

        def nemesis() -> None:
            while len(kills) < 6:
                time.sleep(0.7)
                # A request may lose three brokers and no more, and one that never was ready is soon not started again.
                wait_until(lambda: mesh.finished("Second") >= 200, 30.0, "what was in the mesh at the last kill")
                kills.append(mesh.kill_broker())
            time.sleep(1.0)
            over.set()

        killer = threading.Thread(target=nemesis, daemon=True)
        killer.start()
        answers = closed_loop(mesh.port, 64, doubled, over.is_set)
        killer.join(5)
        log = mesh.head.log()
    for client, number, answer in answers:
        assert_doubled(client, number, answer, log)
    longest = max(answer.seconds for _, _, answer in answers)
    print(f"{len(answers)} requests, {len(kills)} brokers killed, all 200; longest wait {longest:.2f} s")


def test_connections_cut_again_and_again_cost_no_request() -> None:
    """Workers elsewhere, whose every connection breaks six times under load."""
    first = free_ports(8)
    real, seen = first + 1, first + 4
    bind, connect = f"tcp://127.0.0.1:{real}", f"tcp://127.0.0.1:{seen}"
    with (
        mesh_of(TWO_STAGES, "--no-workers", "--bind", bind, port=first) as mesh,
        Proxy(range(seen, seen + 3), range(real, real + 3)) as proxy,
        mesh.host.program("worker", TWO_STAGES, "--connect", connect) as workers,
    ):
        mesh.host.wait_ready(mesh.port)
        over = threading.Event()

        def nemesis() -> None:
            for _ in range(6):
                time.sleep(0.7)
                proxy.cut()
            time.sleep(1.0)
            over.set()

        cutter = threading.Thread(target=nemesis, daemon=True)
        cutter.start()
        answers = closed_loop(mesh.port, 64, doubled, over.is_set)
        cutter.join(5)
        log = workers.log()
        deaths = sum(stage["counters"]["deaths"] for stage in mesh.stages())
    for client, number, answer in answers:
        assert_doubled(client, number, answer, log)
    assert deaths == 0
    assert proxy.connections > 15, "they came back each time"
    longest = max(answer.seconds for _, _, answer in answers)
    print(f"{len(answers)} requests, {proxy.connections} connections, all 200; longest wait {longest:.2f} s")


def test_a_broker_that_stands_still_charges_nobody_and_loses_nothing(
    standstill: Future[Callable[[], None]],
) -> None:
    """The last one of this file, since by now most of the time is over."""
    judge = standstill.result(STOPPED_SECONDS + 25)
    judge()

"""Several gateways on one port: they share the work and the counting, and one that dies takes only its own along."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.harness import ZMESH, Answer, RunningMesh, exchange, running, wait_until
from tests.hosts import children, free_ports, loopback_hosts
from tests.load import APP as TWO_STAGES
from tests.load import doubled

MOODY = Path(__file__).parent / "apps" / "moody.py"
CLIENTS = 16


def gateways(mesh: RunningMesh) -> list[dict[str, Any]]:
    return list(mesh.mesh().get("gateways", ()))


def both_there(mesh: RunningMesh) -> list[int]:
    """Their pids."""
    wait_until(lambda: len(gateways(mesh)) == 2, 20, "two gateways")
    return [one["pid"] for one in gateways(mesh)]


def connection_to(mesh: RunningMesh, wanted: int) -> HTTPConnection:
    """One that this gateway has taken; while others take them, they have more than it has."""
    with ExitStack() as others:
        while True:
            connection = HTTPConnection("127.0.0.1", mesh.port, timeout=30)
            if exchange(connection, "GET", "/mesh").json()["gateway"]["pid"] == wanted:
                return connection
            others.callback(connection.close)


@contextmanager
def connected(mesh: RunningMesh, pids: list[int]) -> Iterator[dict[int, list[HTTPConnection]]]:
    """As many connections to each of these gateways."""
    found: dict[int, list[HTTPConnection]] = {pid: [] for pid in pids}
    try:
        for _ in range(CLIENTS // len(pids)):
            for pid, connections in found.items():
                connections.append(connection_to(mesh, pid))
        yield found
    finally:
        for connections in found.values():
            for connection in connections:
                connection.close()


def metrics(text: bytes) -> dict[str, float]:
    """Samples by name and labels, as they are written."""
    return {
        f"{sample.name}{dict(sorted(sample.labels.items())) or ''}": sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def answered(mesh: RunningMesh, path: str = "/double") -> float:
    """With 200, as any gateway says it."""
    return metrics(mesh.get("/metrics").body).get(f"zmesh_throughput_total{ {'code': '200', 'endpoint': path} }", 0.0)


@pytest.mark.parametrize("command", [[*ZMESH, "run", str(TWO_STAGES)], [sys.executable, str(TWO_STAGES)]])
def test_two_gateways_share_one_port_and_count_together(command: list[str]) -> None:
    with running(TWO_STAGES, "--gateways", "2", command=command) as mesh:
        pids = both_there(mesh)
        assert len(children(mesh.process.pid)) == 7, "two gateways, the broker, four workers"
        with connected(mesh, pids) as found:
            for number, (pid, connections) in enumerate(found.items()):
                for connection in connections:
                    assert exchange(connection, "POST", *doubled(pid, number)).status == 200
                assert exchange(connections[0], "GET", "/readyz").status == 200
            seen = [metrics(exchange(some[0], "GET", "/metrics").body) for some in found.values()]
            for one in seen:
                assert one["zmesh_throughput_total{'code': '200', 'endpoint': '/double'}"] == CLIENTS
                total = "{'connection': 'total', 'stage': 'total'}"
                assert one[f"zmesh_process_duration_second_count{total}"] == CLIENTS
                assert 0 < one[f"zmesh_process_duration_second_sum{total}"] < 60
                assert one["zmesh_remaining_task"] == 0 and one["zmesh_broker_up"] == 1
            has = {one["pid"]: one["connections"] for one in gateways(mesh)}
            assert sum(has.values()) == CLIENTS + 1, "and the one that asks"
        shown = subprocess.run([*ZMESH, "status", mesh.url], capture_output=True, text=True, check=True).stdout
        lines = [line.split() for line in shown.splitlines()]
        assert ["GATEWAY", "PID", "REQUESTS", "CONNECTIONS"] in lines and str(pids[0]) in shown, shown
        assert mesh.stop() == 0, mesh.log()
        assert "zmesh is ready on" in mesh.log()


@dataclass
class Clients:
    """One per connection, each of which knows its gateway, until `over`; one that is cut off connects again."""

    mesh: RunningMesh
    wanted: list[int]  # the gateways to begin with, in turn
    over: threading.Event = field(default_factory=threading.Event)
    answers: list[tuple[int, int, Answer]] = field(default_factory=list)
    connected: list[int] = field(default_factory=list)
    cut_off: list[int] = field(default_factory=list)  # the gateways it happened with
    failures: list[BaseException] = field(default_factory=list)

    def client(self, index: int) -> None:
        number, pid = 0, self.wanted[index % len(self.wanted)]
        try:
            connection = connection_to(self.mesh, pid)
            self.connected.append(index)
            while True:
                try:
                    while not self.over.is_set():
                        answer = exchange(connection, "POST", *doubled(index, number))
                        self.answers.append((index, number, answer))
                        number += 1
                        if answer.headers.get("connection") == "close":
                            return
                except (OSError, HTTPException):
                    self.cut_off.append(pid)
                    number += 1
                finally:
                    connection.close()
                if self.over.is_set():
                    return
                connection = HTTPConnection("127.0.0.1", self.mesh.port, timeout=30)
                pid = exchange(connection, "GET", "/mesh").json()["gateway"]["pid"]
        except BaseException as error:
            self.failures.append(error)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        threads = [threading.Thread(target=self.client, args=(index,), daemon=True) for index in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.over.set()
            for thread in threads:
                thread.join(60)
                assert not thread.is_alive(), "a client never got its answer"
        if self.failures:
            raise self.failures[0]

    def wait_for_more(self) -> None:
        """Ten rounds of answers from now on."""
        wait_until(lambda: len(self.connected) == CLIENTS or self.failures, 30, "every client to be connected")
        most = len(self.answers) + 10 * CLIENTS
        wait_until(lambda: len(self.answers) >= most or self.failures, 30, "more answers")


def test_a_gateway_that_is_killed_takes_only_its_own_connections_along() -> None:
    with running(TWO_STAGES, "--gateways", "2", "--timeout", "30000") as mesh:
        victim, other = both_there(mesh)
        clients, seen = Clients(mesh, [victim, other]), []
        with clients.at_work():
            clients.wait_for_more()
            seen.append(answered(mesh))
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda: [one["pid"] for one in gateways(mesh)] == [other], 5, "the other one to be alone")
            wait_until(lambda: seen.append(answered(mesh)) or len(set(both_there(mesh)) - {victim, other}) == 1)
            clients.wait_for_more()
            seen.append(answered(mesh))
        assert clients.cut_off == [victim] * (CLIENTS // 2)
        for client, number, answer in clients.answers:
            nonce = client * 1_000_000 + number
            assert (answer.status, answer.json()) == (200, {"nonce": nonce, "answer": 2 * nonce + 1})
        assert seen == sorted(seen), "what was counted stays counted"
        # The victim may have counted an answer that its client never saw.
        assert 0 <= answered(mesh) - len(clients.answers) <= len(clients.cut_off)
        assert "gateway/1 ended: SIGKILL; it is started again at once" in mesh.log()
        wait_until(lambda: metrics(mesh.get("/metrics").body)["zmesh_remaining_task"] == 0)
        assert mesh.stop() == 0, mesh.log()


def test_all_that_two_gateways_accepted_is_answered_before_the_end() -> None:
    with running(TWO_STAGES, "--gateways", "2", "--timeout", "30000") as mesh:
        clients = Clients(mesh, both_there(mesh))
        with clients.at_work():
            clients.wait_for_more()
            assert mesh.stop() == 0, mesh.log()
        assert clients.cut_off == []
        assert {answer.status for *_, answer in clients.answers} <= {200, 503}
        ends = Counter(client for client, _, answer in clients.answers if answer.headers.get("connection") == "close")
        assert ends == dict.fromkeys(range(CLIENTS), 1), "each was told that its connection ends"


def test_requests_that_wait_at_both_gateways_are_answered_before_the_end(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    body = json.dumps({"until": str(gate)}).encode()
    with running(MOODY, "--gateways", "2", "--timeout", "30000") as mesh:
        answers: list[Answer] = []
        with connected(mesh, both_there(mesh)) as found:
            threads = [
                threading.Thread(target=lambda one=one: answers.append(exchange(one, "POST", "/moody", body)))
                for some in found.values()
                for one in some
            ]
            for thread in threads:
                thread.start()
            wait_until(lambda: sum(one["requests"] for one in gateways(mesh)) == CLIENTS, 20, "all to be accepted")
            assert [one["requests"] for one in gateways(mesh)] == [CLIENTS // 2] * 2
            mesh.process.send_signal(signal.SIGTERM)
            wait_until(lambda: mesh.log().count("requests left to answer") >= 2, 10, "both to drain")
            gate.touch()
            for thread in threads:
                thread.join(30)
        assert [answer.status for answer in answers] == [200] * CLIENTS
        assert mesh.process.wait(10) == 0, mesh.log()


def test_two_gateways_of_a_broker_elsewhere_share_a_port() -> None:
    with loopback_hosts() as (host, _), ExitStack() as running:
        http = free_ports(4)
        bind = f"tcp://127.0.0.1:{http + 1}"
        broker = running.enter_context(host.program("broker", TWO_STAGES, "--bind", bind))
        gateway = running.enter_context(
            host.program("gateway", TWO_STAGES, "--connect", bind, "--port", http, "--gateways", "2")
        )
        worker = running.enter_context(host.program("worker", TWO_STAGES, "--connect", bind))
        host.wait_ready(http)
        wait_until(lambda: len(host.request("GET", http, "/mesh").json()["gateways"]) == 2, 20, "two gateways")
        for number in range(20):
            assert host.request("POST", http, *doubled(1, number)).status == 200
        shown = metrics(host.request("GET", http, "/metrics").body)
        assert shown["zmesh_throughput_total{'code': '200', 'endpoint': '/double'}"] == 20
        for program in (gateway, worker, broker):
            assert program.stop() == 0, program.log()


def test_new_connections_go_on_while_a_gateway_is_stuck() -> None:
    """It has the socket too, and takes nobody: the other one does."""
    with running(TWO_STAGES, "--gateways", "2", "--timeout", "30000") as mesh:
        stuck, other = both_there(mesh)
        os.kill(stuck, signal.SIGSTOP)
        try:
            with connected(mesh, [other]) as found:
                assert [exchange(one, "GET", "/livez").status for one in found[other]] == [200] * CLIENTS
        finally:
            os.kill(stuck, signal.SIGCONT)
        assert mesh.stop() == 0, mesh.log()

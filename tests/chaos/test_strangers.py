"""Whoever reaches the ports of a broker and is no peer: port scanners, health checks, broken clients."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from tests.harness import wait_until
from tests.hosts import free_ports, loopback_hosts

APP = Path(__file__).parent.parent / "integration" / "apps" / "two_stages.py"
VISITS = 3000  # libzmq holds some 2000 events of one socket for a reader, and stands still when there are more


def test_thousands_of_connections_that_come_and_go_do_not_stop_a_mesh() -> None:
    with loopback_hosts() as (host, _):
        http = free_ports(4)
        bind = f"tcp://127.0.0.1:{http + 1}"
        with host.program("run", APP, "--bind", bind, "--port", http, "--timeout", "10000") as head:
            host.wait_ready(http)
            for _ in range(VISITS):
                socket.create_connection(("127.0.0.1", http + 1), timeout=10).close()
            for number in range(3):
                answer = host.request("POST", http, "/double", json.dumps({"nonce": number}).encode())
                assert answer.json() == {"nonce": number, "answer": 2 * number + 1}
            with host.program("worker", APP, "--connect", bind, "--stage", "First:1") as late:
                late.said("zmesh works for")

                def workers() -> list[int]:
                    return [len(stage["workers"]) for stage in host.request("GET", http, "/mesh").json()["stages"]]

                wait_until(lambda: workers() == [3, 2], what="a worker that comes later")
            assert head.stop() == 0, head.log()

"""`zmesh drain`: a mesh, or one host of it, is told to go from elsewhere, and loses nothing."""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.harness import REPOSITORY, ZMESH, all_at_once, running, wait_until
from tests.hosts import children, free_ports, loopback_hosts
from tests.load import APP, assert_all_right, under_load

MOODY = Path(__file__).parent / "apps" / "moody.py"
ELSEWHERE = "maintained"  # the name of the other host


def zmesh_drain(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*ZMESH, "drain", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_mesh_that_is_drained_by_its_directory_answers_what_it_accepted(tmp_path: Path) -> None:
    sockets, gate = tmp_path / "s", tmp_path / "gate"
    bodies = [json.dumps({"until": str(gate)}).encode()] * 8
    with running(MOODY, "--path", str(sockets), "--timeout", "30000", "--isolate-broker") as mesh:
        family = [mesh.process.pid, *children(mesh.process.pid)]
        with all_at_once(mesh.port, "/moody", bodies) as answers:
            wait_until(lambda: mesh.mesh()["gateway"]["requests"] == len(bodies), 20, "all of them to be accepted")
            with subprocess.Popen(
                [*ZMESH, "drain", "--path", str(sockets)], cwd=REPOSITORY, stdout=subprocess.PIPE
            ) as command:
                wait_until(lambda: not is_listening(mesh.port), 10, "the agent to be told")
                assert command.poll() is None
                gate.touch()
                assert command.communicate(timeout=20)[0].decode() == f"the mesh at {sockets} has left\n"
            assert command.returncode == 0
            assert not sockets.exists() and not any(map(is_alive, family[1:]))
        assert [answer.status for answer in answers] == [200] * len(bodies)
        assert mesh.process.wait(5) == 0
        assert "zmesh drain: finishing what was accepted, for 30 s at most" in mesh.log()


def test_one_of_two_hosts_is_drained_under_load(need: Callable[[object, str], None]) -> None:
    if os.geteuid() != 0:
        pytest.skip("another host name is for root")
    need(shutil.which("unshare") and shutil.which("hostname"), "unshare or hostname is not installed")
    renamed = ["unshare", "--uts", "sh", "-c", f'hostname {ELSEWHERE} && exec "$@"', "sh", *ZMESH]
    with loopback_hosts() as (host, _), ExitStack() as held:
        http = free_ports(4)
        bind = f"tcp://127.0.0.1:{http + 1}"
        head = held.enter_context(host.program("run", APP, "--bind", bind, "--port", http, "--timeout", "30000"))
        away = held.enter_context(host.program("worker", APP, "--connect", bind, command=renamed))

        def agents() -> list[str]:
            return sorted(one["host"] for one in host.request("GET", http, "/mesh").json()["agents"])

        def workers() -> list[list[Any]]:
            found = host.request("GET", http, "/mesh").json()["stages"]
            return [sorted(one["host"] for one in stage["workers"]) for stage in found]

        here = socket.gethostname()
        host.wait_ready(http)
        wait_until(lambda: workers() == [sorted([here, here, ELSEWHERE, ELSEWHERE])] * 2)
        wait_until(lambda: agents() == sorted([here, ELSEWHERE]))
        unknown = zmesh_drain("--connect", bind, "--host", "nowhere")
        hosts = ", ".join(sorted([here, ELSEWHERE]))
        said = f"zmesh: no host nowhere has joined; the hosts are: {hosts}\n"
        assert (unknown.returncode, unknown.stdout, unknown.stderr) == (1, "", said)
        drained: list[subprocess.CompletedProcess[str]] = []
        answers = under_load(
            http, lambda: drained.append(zmesh_drain("--connect", bind, "--host", ELSEWHERE, "--drain-timeout", 20000))
        )
        assert (drained[0].returncode, drained[0].stdout) == (0, f"host {ELSEWHERE} has left\n"), drained[0].stderr
        assert away.process.wait(5) == 0, away.log()
        assert "zmesh drain: finishing what was accepted, for 20 s at most" in away.log()
        assert agents() == [here] and workers() == [[here, here]] * 2
        assert_all_right(answers, head.log())
        assert sum(one["counters"]["deaths"] for one in host.request("GET", http, "/mesh").json()["stages"]) == 0
        last = zmesh_drain("--connect", bind)
        assert (last.returncode, last.stdout) == (0, f"the mesh at {bind} has left\n"), last.stderr
        assert head.process.wait(10) == 0, head.log()


def test_a_broker_alone_is_drained_by_its_agent() -> None:
    with loopback_hosts() as (host, _):
        bind = f"tcp://127.0.0.1:{free_ports(3)}"
        with host.program("broker", APP, "--bind", bind) as broker:
            wait_until(lambda: "is ready on" in broker.log())
            drained = zmesh_drain("--connect", bind, "--drain-timeout", 5000)
            assert (drained.returncode, drained.stdout) == (0, f"the mesh at {bind} has left\n"), drained.stderr
            assert broker.process.wait(5) == 0, broker.log()
            assert "zmesh drain: finishing what was accepted, for 5 s at most" in broker.log()

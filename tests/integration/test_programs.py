"""Each program of a mesh on its own: started in any order, stopped under load, replaced, and refused."""

import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.harness import wait_until
from tests.hosts import Host, free_ports, loopback_hosts
from tests.load import APP, assert_all_right, doubled, under_load


def stages(host: Host, port: int) -> list[dict[str, Any]]:
    return list(host.request("GET", port, "/mesh").json()["stages"])


def agents(host: Host, port: int) -> int:
    return len(host.request("GET", port, "/mesh").json()["agents"])


def workers(host: Host, port: int) -> list[int]:
    return [len(stage["workers"]) for stage in stages(host, port)]


def test_a_host_of_workers_leaves_under_load_and_another_one_takes_over() -> None:
    with loopback_hosts() as (host, _), ExitStack() as running:
        http = free_ports(4)
        bind = f"tcp://127.0.0.1:{http + 1}"
        head = running.enter_context(
            host.program("run", APP, "--bind", bind, "--port", http, "--no-workers", "--timeout", "30000")
        )
        first = running.enter_context(host.program("worker", APP, "--connect", bind))
        host.wait_ready(http)
        wait_until(lambda: workers(host, http) == [2, 2])

        def replace() -> None:
            running.enter_context(
                host.program("worker", APP, "--connect", bind, "--stage", "First:1", "--stage=Second:1")
            )
            wait_until(lambda: workers(host, http) == [3, 3])
            assert first.stop() == 0, first.log()
            wait_until(lambda: agents(host, http) == 2, 2, "the agent's GOODBYE; its silence is noticed after 5 s")
            wait_until(lambda: workers(host, http) == [1, 1])

        answers = under_load(http, replace)
        assert sum(stage["counters"]["deaths"] for stage in stages(host, http)) == 0
        assert_all_right(answers, head.log())
        assert head.stop() == 0


def test_a_broker_that_is_told_to_stop_leaves_its_work_to_the_next_one() -> None:
    with loopback_hosts() as (host, _), ExitStack() as running:
        http = free_ports(4)
        bind = f"tcp://127.0.0.1:{http + 1}"
        first = running.enter_context(host.program("broker", APP, "--bind", bind, "--timeout", "30000"))
        gateway = running.enter_context(
            host.program("gateway", APP, "--connect", bind, "--port", http, "--timeout", "30000")
        )
        worker = running.enter_context(host.program("worker", APP, "--connect", bind))
        host.wait_ready(http)
        wait_until(lambda: workers(host, http) == [2, 2])
        pids = sorted(one["pid"] for stage in stages(host, http) for one in stage["workers"])

        def replace() -> None:
            assert first.stop() == 0, first.log()
            running.enter_context(host.program("broker", APP, "--bind", bind))

        answers = under_load(http, replace)
        assert_all_right(answers, gateway.log())
        wait_until(lambda: workers(host, http) == [2, 2])
        assert sorted(one["pid"] for stage in stages(host, http) for one in stage["workers"]) == pids
        assert worker.stop() == 0, worker.log()
        assert gateway.stop() == 0, gateway.log()


def test_workers_wait_for_a_head_that_is_killed_and_started_again() -> None:
    with loopback_hosts() as (host, _), ExitStack() as running:
        http = free_ports(4)
        bind = f"tcp://127.0.0.1:{http + 1}"
        command = ("run", APP, "--bind", bind, "--port", http, "--no-workers")
        first = running.enter_context(host.program(*command))
        worker = running.enter_context(host.program("worker", APP, "--connect", bind))
        host.wait_ready(http)
        wait_until(lambda: workers(host, http) == [2, 2])
        pids = sorted(one["pid"] for stage in stages(host, http) for one in stage["workers"])
        assert first.stop(signal.SIGKILL) == -signal.SIGKILL
        wait_until(lambda: not is_served(host, http), what="everything of the head to be gone")
        second = running.enter_context(host.program(*command))
        host.wait_ready(http)
        wait_until(lambda: workers(host, http) == [2, 2])
        assert sorted(one["pid"] for stage in stages(host, http) for one in stage["workers"]) == pids
        assert host.request("POST", http, *doubled(1, 2)).json()["answer"] == 2_000_005
        assert worker.stop() == 0, worker.log()
        assert second.stop() == 0, second.log()


def is_served(host: Host, port: int) -> bool:
    try:
        host.request("GET", port, "/livez")
    except OSError:
        return False
    return True


def test_a_host_with_another_app_is_refused_and_told_what_differs(tmp_path: Path) -> None:
    other = tmp_path / "app.py"
    other.write_text(
        "from zmesh import Server, Worker\n"
        "class First(Worker):\n    def forward(self, data):\n        return data\n"
        "class Third(First): pass\n"
        "server = Server()\n"
        "server.append_worker(First, route='/double')\nserver.append_worker(Third, route='/double')\n"
    )
    with loopback_hosts() as (host, _), ExitStack() as running:
        http = free_ports(4)
        bind = f"tcp://127.0.0.1:{http + 1}"
        head = running.enter_context(host.program("run", APP, "--bind", bind, "--port", http))
        host.wait_ready(http)
        for verb, more in (("worker", []), ("gateway", ["--port", "0"])):
            with host.program(verb, other, "--connect", bind, *more) as stranger:
                assert stranger.process.wait(20) == 1
                last = stranger.log().splitlines()[-1]
            assert last.startswith("zmesh: ") and "Second" in last and "Third" in last, last
            print(last)
        assert workers(host, http) == [2, 2]
        assert host.request("POST", http, *doubled(1, 1)).status == 200
        assert head.stop() == 0

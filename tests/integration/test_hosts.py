"""One mesh on two hosts: the head on one, workers on the other, in every way to cut it into programs."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.harness import REPOSITORY, wait_until
from tests.hosts import Host, free_ports, loopback_hosts, namespaces

FOLDER = REPOSITORY / "examples" / "digits"
APP = FOLDER / "app.py"

LAYOUTS = ("run", "run --isolate-broker", "broker, gateway, worker")


@pytest.fixture(params=["loopback", "namespaces"])
def hosts(request: pytest.FixtureRequest, need: Callable[[object, str], None]) -> Iterator[tuple[Host, Host]]:
    if request.param == "loopback":
        with loopback_hosts() as both:
            yield both
    else:
        if os.geteuid() != 0:
            pytest.skip("network namespaces are for root")
        need(shutil.which("ip"), "the command ip is not installed (package iproute2)")
        with namespaces() as both:
            yield both


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_hosts_read_the_same_digits(hosts: tuple[Host, Host], layout: str) -> None:
    head, elsewhere = hosts
    first = free_ports(5)
    http, bind = first, f"tcp://{head.address}:{first + 1}"
    insecure = ["--insecure"] if head.namespace else []
    with ExitStack() as running:

        def start(host: Host, *words: object) -> None:
            started.append(running.enter_context(host.program(*words, *insecure)))

        started = []
        start(elsewhere, "worker", APP, "--connect", bind, "--stage", "Classify:2")  # before its broker
        stages = ["--stage", "Decode", "--stage", "Label"]
        if layout == LAYOUTS[2]:
            start(head, "gateway", APP, "--connect", bind, "--port", http)
            start(head, "broker", APP, "--bind", bind)
            start(elsewhere, "worker", APP, "--connect", bind, *stages)
        else:
            start(head, *layout.replace("run", f"run {APP}").split(), "--bind", bind, "--port", http, *stages)
        head.wait_ready(http)
        client = [sys.executable, str(FOLDER / "client.py"), "--url", f"http://127.0.0.1:{http}/digits"]
        done = subprocess.run(head.command(*client), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "40 of 40 right" in done.stdout.splitlines()[-1]
        assert ("insecure" in head.request("GET", http, "/readyz").json()) == bool(insecure)
        workers = [1, 2, 1]
        wait_until(
            lambda: [len(one["workers"]) for one in head.request("GET", http, "/mesh").json()["stages"]] == workers
        )
        assert [program.stop() for program in started] == [0] * len(started)


def test_the_example_says_which_host_did_what() -> None:
    app = REPOSITORY / "examples" / "two_hosts" / "app.py"
    with loopback_hosts() as (head, elsewhere):
        http = free_ports(4)
        bind = f"tcp://127.0.0.1:{http + 1}"
        with (
            head.program("run", app, "--bind", bind, "--port", http, "--stage", "Parse"),
            elsewhere.program("worker", app, "--connect", bind, "--stage", "Classify"),
        ):
            head.wait_ready(http)
            sample = FOLDER / "samples" / "07_is_9.png"
            answer = head.request("POST", http, "/digits", sample.read_bytes()).json()
    assert answer["digit"] == 9
    assert answer["parsed_on"] == answer["classified_on"] == socket.gethostname()

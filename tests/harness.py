"""A real mesh for tests and benchmarks: start an app as a user would, wait for conditions, talk HTTP to it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
ZMESH = [sys.executable, "-m", "zmesh"]

TEXT = {"ZMESH_LOG_FORMAT": "text"}
"""For a mesh whose log is a file, where it would be JSON: what tests look for is how a person reads it."""

PROGRAMS = 2 if os.environ.get("ZMESH_ISOLATE_BROKER") else 1
"""Children of a `zmesh run` beside its workers: gateway and broker in one process, or each in its own."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], object], seconds: float = 20.0, what: str = "") -> None:
    """Poll until `condition()` is true; AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what or condition}"
        time.sleep(0.01)


@dataclass
class Answer:
    status: int
    body: bytes
    headers: Mapping[str, str]
    seconds: float

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class RunningMesh:
    """One `zmesh run`, from its start to its end."""

    process: subprocess.Popen[bytes]
    port: int
    log_path: Path
    started: float = field(default_factory=time.monotonic)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def said(self, beginning: str, seconds: float = 20.0) -> str:
        """The rest of the first line of the log that begins so, as soon as there is one."""

        def found() -> list[str]:
            lines = self.log().splitlines(keepends=True)
            return [line.strip() for line in lines if line.startswith(beginning) and line.endswith("\n")]

        wait_until(found, seconds, f"a line {beginning!r}")
        return found()[0].removeprefix(beginning)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 60.0,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            return exchange(connection, method, path, body, headers)
        finally:
            connection.close()

    def post(self, path: str, body: bytes, headers: Mapping[str, str] | None = None, timeout: float = 60.0) -> Answer:
        return self.request("POST", path, body, headers, timeout)

    def get(self, path: str) -> Answer:
        return self.request("GET", path)

    def mesh(self) -> dict[str, Any]:
        return dict(json.loads(self.get("/mesh").body))

    def worker_pids(self) -> list[int]:
        return [worker["pid"] for stage in self.mesh()["stages"] for worker in stage["workers"]]

    def wait_ready(self, seconds: float = 30.0) -> float:
        """Until `/readyz` is 200; returns the seconds since the start."""

        def ready() -> bool:
            assert self.process.poll() is None, f"the mesh ended with {self.process.returncode}:\n{self.log()}"
            try:
                return self.get("/readyz").status == 200
            except OSError:
                return False

        wait_until(ready, seconds, "the mesh to be ready")
        return time.monotonic() - self.started

    def stop(self, sign: int = signal.SIGTERM, seconds: float = 20.0) -> int:
        if self.process.poll() is None:
            self.process.send_signal(sign)
        return self.process.wait(seconds)


def exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    started = time.monotonic()
    connection.request(method, path, body=body, headers=dict(headers or {}))
    response = connection.getresponse()
    data = response.read()
    named = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, data, named, time.monotonic() - started)


@contextmanager
def running(
    app: Path | str,
    *arguments: str,
    command: Sequence[str] | None = None,
    env: Mapping[str, str] | None = None,
    ready: bool = True,
    up: Callable[[RunningMesh], object] = RunningMesh.wait_ready,
) -> Iterator[RunningMesh]:
    """Run `zmesh run app` (or `command`) on a free port with its log in a file, and leave nothing behind.

    With `ready` it is handed out once `up` returns.
    """
    port = free_port()
    line = [*(command or [*ZMESH, "run", str(app)]), "--port", str(port), *arguments]
    with tempfile.NamedTemporaryFile(prefix="zmesh-log-", suffix=".txt", delete=False) as log:
        process = subprocess.Popen(
            line, stdout=log, stderr=subprocess.STDOUT, cwd=REPOSITORY, env={**TEXT, **os.environ, **(env or {})}
        )
    mesh = RunningMesh(process, port, Path(log.name))
    try:
        if ready:
            up(mesh)
        yield mesh
    except BaseException:
        print(mesh.log()[-6000:])
        raise
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        mesh.log_path.unlink(missing_ok=True)


def closed_loop(
    port: int,
    clients: int,
    body: Callable[[int, int], tuple[str, bytes]],
    until: Callable[[], bool],
) -> list[tuple[int, int, Answer]]:
    """`clients` threads, each sending its next request when it has its answer, until `until()`.

    `body(client, number)` gives path and body. Returns (client, number, answer) of everything that was sent.
    """
    answers: list[tuple[int, int, Answer]] = []
    failures: list[BaseException] = []

    def client(index: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        number = 0
        try:
            while not until():
                path, data = body(index, number)
                answers.append((index, number, exchange(connection, "POST", path, data)))
                number += 1
        except BaseException as error:
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=client, args=(index,), daemon=True) for index in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a client never got its answer"
    if failures:
        raise failures[0]
    return answers


@contextmanager
def all_at_once(port: int, path: str, bodies: Sequence[bytes]) -> Iterator[list[Answer]]:
    """One request per body, all at the same time; at the end every answer is there, in the order of the bodies."""
    answers: dict[int, Answer] = {}
    failures: list[BaseException] = []

    def ask(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            answers[number] = exchange(connection, "POST", path, bodies[number])
        except BaseException as error:
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(len(bodies))]
    for thread in threads:
        thread.start()
    found: list[Answer] = []
    yield found
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a client never got its answer"
    if failures:
        raise failures[0]
    found += [answers[number] for number in range(len(bodies))]

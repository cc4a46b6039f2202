"""What both kinds of load have in common: connections, what is on them, and the count of what becomes of it.

Everything has a bound: connections, those that are being made, and the time from due to the answer.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from itertools import cycle
from time import monotonic, process_time
from typing import Any

from zmesh.bench.connection import Connection
from zmesh.bench.figures import Figures, is_good
from zmesh.bench.load import Load
from zmesh.bench.target import Target

__all__ = ["Generator"]

OPENING_MAX = 64  # connections that are being made at the same time
TICK_SECONDS = 0.02  # how often it is looked for requests whose time is over


class Generator(ABC):
    """Its connections, and what is on them."""

    def __init__(self, target: Target, address: tuple[str, int], load: Load) -> None:
        self.load, self.figures = load, Figures(load.seconds)
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(self._failed)
        self.over: asyncio.Future[None] = self.loop.create_future()
        self.busy: dict[Connection, None] = {}  # in the order in which their requests were due
        self.idle: list[Connection] = []  # the last one first, so that no more are used than are needed
        self._address = address
        self._requests = cycle(target.requests)
        self._all: set[Connection] = set()
        self._opening: set[asyncio.Task[bool]] = set()
        self._measured_from = self._measured_until = float("inf")
        self._begun_cpu = self._begun_wall = 0.0

    async def prepare(self) -> None:
        """Open connections before the clock starts. What fails is counted when somebody needs it."""
        first = self._first_connections()
        for _ in range(0, first, OPENING_MAX):
            for _ in range(min(OPENING_MAX, first - len(self._all))):
                self._open()
            await asyncio.gather(*self._opening)

    def begin(self, start: float) -> None:
        """From `start` on, on the clock of `time.monotonic`."""
        load = self.load
        self._measured_from = start + load.warmup
        self._measured_until = self._measured_from + load.seconds
        now = monotonic()
        self.loop.call_later(self._measured_from - now, self._meter_on)
        self.loop.call_later(self._measured_until - now, self._meter_off)
        self.loop.call_later(TICK_SECONDS, self._expire)

    async def close(self) -> None:
        for task in self._opening:
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        for connection in self._all:
            self.figures.bytes_received += connection.bytes_received
            connection.close()

    def _meter_on(self) -> None:
        self._begun_cpu, self._begun_wall = process_time(), monotonic()

    def _meter_off(self) -> None:
        self.figures.cpu_seconds = process_time() - self._begun_cpu
        self.figures.wall_seconds = monotonic() - self._begun_wall

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Our own mistake ends the run, and is told."""
        if not self.over.done():
            self.over.set_exception(context.get("exception") or RuntimeError(context["message"]))

    # ── connections ───────────────────────────────────────────────────────────────────────────────────────────────

    def _open(self) -> None:
        task = self.loop.create_task(self._connect())
        self._opening.add(task)
        task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[bool]) -> None:
        self._opening.discard(task)
        if not task.cancelled() and task.result() and not self.over.done():
            self._missing()

    async def _connect(self) -> bool:
        try:
            async with asyncio.timeout(self.load.timeout_seconds):
                _, connection = await self.loop.create_connection(lambda: Connection(self), *self._address)
        except OSError as error:  # TimeoutError is one
            self.figures.trouble = error.strerror or "it took too long"
            self._not_opened()
            return False
        self._all.add(connection)
        self.figures.opened += 1
        self.figures.connections = max(self.figures.connections, len(self._all))
        self._freed(connection, monotonic())
        return True

    def _room(self) -> int:
        """How many connections more may be opened now."""
        making = len(self._opening)
        return min(OPENING_MAX - making, self._connections_max() - making - len(self._all))

    def _forget(self, connection: Connection) -> None:
        self._all.discard(connection)
        self.figures.bytes_received += connection.bytes_received
        connection.close()

    # ── requests ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _has_begun(self) -> bool:
        return self._measured_from < float("inf")

    def _is_measured(self, due: float) -> bool:
        return self._measured_from <= due < self._measured_until

    def _send(self, connection: Connection, due: float) -> None:
        self.busy[connection] = None
        connection.send(next(self._requests), due)

    def answered(self, connection: Connection, status: int, keeps_alive: bool) -> None:
        now, due, figures = monotonic(), connection.due, self.figures
        del self.busy[connection]
        if self._is_measured(due):
            figures.answered(status, now - due)
        if self._measured_from <= now < self._measured_until and is_good(status):
            figures.good_in_time += 1
        if keeps_alive:
            self._freed(connection, now)
        else:
            self._forget(connection)
            self._missing()

    def lost(self, connection: Connection) -> None:
        self._forget(connection)
        if connection in self.busy:
            del self.busy[connection]
            self.figures.broken += self._is_measured(connection.due)
        elif connection in self.idle:
            self.idle.remove(connection)
        self._missing()

    def _expire(self) -> None:
        now = monotonic()
        before = now - self.load.timeout_seconds
        while self.busy and (connection := next(iter(self.busy))).due <= before:
            del self.busy[connection]
            self._forget(connection)
            self._timed_out(connection.due, now)
            self._missing()
        self._expire_waiting(before, now)
        if not self.over.done():
            self.loop.call_later(TICK_SECONDS, self._expire)
            if now >= self._measured_until and not self.busy and not self._has_more():
                self.over.set_result(None)

    def _timed_out(self, due: float, now: float) -> None:
        if self._is_measured(due):
            self.figures.timed_out_after(now - due)

    # ── what the two kinds do each in their own way ───────────────────────────────────────────────────────────────

    @abstractmethod
    def _first_connections(self) -> int: ...

    @abstractmethod
    def _connections_max(self) -> int: ...

    @abstractmethod
    def _freed(self, connection: Connection, now: float) -> None:
        """It can take a request."""

    @abstractmethod
    def _not_opened(self) -> None:
        """A connection could not be made."""

    @abstractmethod
    def _missing(self) -> None:
        """There is a connection less."""

    def _expire_waiting(self, before: float, now: float) -> None:  # noqa: B027 - most have none
        """What was due at `before` or earlier has waited for a connection for too long."""

    @abstractmethod
    def _has_more(self) -> bool:
        """Whether there is something left to send when the time is over."""

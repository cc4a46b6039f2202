"""The two kinds of load: by the clock, and by clients.

Open loop: a request is due at a moment that was drawn before, whatever becomes of those before it, and its latency
counts from that moment. If all connections are busy it waits for one, and one more is opened while there may be one; if
too many wait, it is not sent. So a server that stands still shows in the latency of all who would have come meanwhile
(no "coordinated omission").

Closed loop: each client sends its next request when it has its answer, so a server that stands still is asked less.
"""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from collections.abc import Callable
from random import Random
from time import monotonic

import uvloop

from zmesh.bench.arrivals import arrivals
from zmesh.bench.connection import Connection
from zmesh.bench.figures import Figures
from zmesh.bench.generator import Generator
from zmesh.bench.load import Load
from zmesh.bench.target import Target
from zmesh.bench.timer import Timer

__all__ = ["Progress", "generate"]

OPENED_FIRST = 32  # connections of an open loop before its clock starts
BURST_MAX = 64  # requests that are sent before answers are read again
RETRY_SECONDS = 0.1  # before a client that got no connection tries again
HEAD_START_SECONDS = 0.01  # so that the first of an open loop is not late
PROGRESS_SECONDS = 0.5

Progress = Callable[[float, Figures], None]  # seconds since the beginning, and what is known so far


def generate(target: Target, address: tuple[str, int], load: Load, progress: Progress | None = None) -> Figures:
    """Run the load against who listens at `address`, to its end. What is still on its way then is waited for."""
    gc.collect()
    gc.freeze()  # a collection in the middle looks at what came since only
    try:
        return uvloop.run(_generate(target, address, load, progress))
    finally:
        gc.unfreeze()


async def _generate(target: Target, address: tuple[str, int], load: Load, progress: Progress | None) -> Figures:
    kind = _ClosedLoop if load.clients else _OpenLoop
    generator = kind(target, address, load)
    try:
        await generator.prepare()
        begun = monotonic()
        generator.begin(begun)
        while not generator.over.done():
            await asyncio.wait((generator.over,), timeout=PROGRESS_SECONDS)
            if progress is not None:
                progress(monotonic() - begun, generator.figures)
        generator.over.result()
    finally:
        await generator.close()
    figures = generator.figures
    assert figures.fates == figures.due, "each request has one fate"
    return figures


class _OpenLoop(Generator):
    """By the clock."""

    def __init__(self, target: Target, address: tuple[str, int], load: Load) -> None:
        super().__init__(target, address, load)
        self._waiting: deque[float] = deque()  # when they were due
        self._offsets = arrivals(load.arrivals, load.rate, load.warmup + load.seconds, Random(load.seed))
        self._timer = Timer(self._ring)
        self._start, self._next = 0.0, float("inf")

    def begin(self, start: float) -> None:
        self._start = start + HEAD_START_SECONDS
        super().begin(self._start)
        self._advance()
        self._ring()

    async def close(self) -> None:
        self._timer.close()
        await super().close()

    def _advance(self) -> None:
        self._next = self._start + next(self._offsets, float("inf"))

    def _ring(self) -> None:
        """Send what is due; the rest of a crowd after answers were read."""
        for _ in range(BURST_MAX):
            now = monotonic()
            if self._next > now:
                break
            self._take(self._next, now)
            self._advance()
        if self._next < float("inf"):
            self._timer.set(self._next)

    def _take(self, due: float, now: float) -> None:
        figures = self.figures
        if measured := self._is_measured(due):
            figures.due += 1
            figures.lateness.record(now - due)
        if self.idle:
            self._send(self.idle.pop(), due)
        elif len(self._waiting) < self.load.waiting_max:
            self._waiting.append(due)
            self._missing()
        else:
            figures.not_sent += measured

    def _freed(self, connection: Connection, now: float) -> None:
        if not self._waiting:
            self.idle.append(connection)
            return
        due = self._waiting.popleft()
        if self._is_measured(due):
            self.figures.waited.record(now - due)
        self._send(connection, due)

    def _not_opened(self) -> None:
        if self._waiting:
            self.figures.unconnected += self._is_measured(self._waiting.popleft())

    def _missing(self) -> None:
        """Open one more, if somebody waits for whom none is being opened yet."""
        if len(self._waiting) > len(self._opening) and self._room() > 0:
            self._open()

    def _expire_waiting(self, before: float, now: float) -> None:
        while self._waiting and self._waiting[0] <= before:
            self._timed_out(self._waiting.popleft(), now)
        for _ in range(min(len(self._waiting) - len(self._opening), self._room())):
            self._open()  # some could not be opened, and nobody came since

    def _has_more(self) -> bool:
        return self._next < float("inf") or bool(self._waiting)

    def _first_connections(self) -> int:
        return min(OPENED_FIRST, self.load.connections)

    def _connections_max(self) -> int:
        return self.load.connections


class _ClosedLoop(Generator):
    """By clients, each of whom has a connection and waits for its answer."""

    def begin(self, start: float) -> None:
        super().begin(start)
        while self.idle:
            self._freed(self.idle.pop(), monotonic())
        for _ in range(self._room()):
            self._open()  # for those that got none

    def _freed(self, connection: Connection, now: float) -> None:
        if not self._has_begun():
            self.idle.append(connection)
        elif now < self._measured_until:
            self.figures.due += self._is_measured(now)
            self._send(connection, now)

    def _not_opened(self) -> None:
        now = monotonic()
        if self._is_measured(now):
            self.figures.due += 1
            self.figures.unconnected += 1
        self.loop.call_later(RETRY_SECONDS, self._missing)

    def _missing(self) -> None:
        if self._has_begun() and self._room() > 0 and monotonic() < self._measured_until:
            self._open()

    def _has_more(self) -> bool:
        return False

    def _first_connections(self) -> int:
        return self.load.clients

    def _connections_max(self) -> int:
        return self.load.clients

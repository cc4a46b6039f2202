"""Connections on which nothing is asked, and when each of them is closed.

A connection begins and ends to rest with every request, thousands of times a second, and a timer of the event loop for
each would cost as much as parsing the request. One timer serves all: they rest equally long, so who began first is
first. It may be late, by a tenth of that time.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

__all__ = ["Rest", "Resting"]

LATE = 0.1  # of the time a connection may rest


class _Sleeper(Protocol):
    def timeout_keep_alive_handler(self) -> None: ...


class Rest:
    """That of one connection; it stands where uvicorn keeps a timer."""

    __slots__ = ("_resting", "connection")

    def __init__(self, resting: Resting, connection: _Sleeper) -> None:
        self._resting, self.connection = resting, connection

    def begin(self) -> None:
        self._resting.add(self)

    def cancel(self) -> None:
        self._resting.since.pop(self, None)


class Resting:
    """All connections of a gateway that rest; each may for so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.since: dict[Rest, float] = {}  # on the clock of the event loop; who began first comes first
        self._timer: asyncio.TimerHandle | None = None

    def add(self, rest: Rest) -> None:
        """It begins to rest, or begins again."""
        loop = asyncio.get_running_loop()
        self.since.pop(rest, None)
        self.since[rest] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._end_longest)

    def _end_longest(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self.since:
            rest, since = next(iter(self.since.items()))
            if (left := since + self._seconds - now) > 0:
                self._timer = loop.call_later(max(left, LATE * self._seconds), self._end_longest)
                return
            del self.since[rest]
            rest.connection.timeout_keep_alive_handler()

"""Connections on which nothing is asked, and when each of them is closed.

A connection begins and ends to rest with every request, thousands of times a second, and a timer of the event loop for
each would cost as much as parsing the request. So a connection only notes since when it rests, and one timer looks at
all of them, when the longest may be over. It may be late, by a tenth of the time that they may rest.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import Protocol

__all__ = ["Rest", "Resting"]

LATE = 0.1  # of the time a connection may rest


class _Sleeper(Protocol):
    def timeout_keep_alive_handler(self) -> None: ...


class Rest:
    """That of one connection; it stands where uvicorn keeps a timer."""

    __slots__ = ("_resting", "_time", "connection", "since")

    def __init__(self, resting: Resting, connection: _Sleeper) -> None:
        self._resting, self.connection = resting, connection
        self._time = asyncio.get_running_loop().time
        self.since = inf  # while it does not rest

    def begin(self) -> None:
        """Also when it rests already: it begins again."""
        self.since = self._time()
        if self not in self._resting.rests:
            self._resting.add(self)

    def cancel(self) -> None:
        self.since = inf

    def forget(self) -> None:
        """Its connection is gone."""
        self._resting.rests.pop(self, None)


class Resting:
    """All connections of a gateway that rest; each may for so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.rests: dict[Rest, None] = {}  # in order; also those that were cancelled since the timer rang
        self._timer: asyncio.TimerHandle | None = None

    def add(self, rest: Rest) -> None:
        self.rests[rest] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._end_longest)

    def _end_longest(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer, latest = None, loop.time() - self._seconds
        over = [rest for rest in self.rests if rest.since <= latest]
        self.rests = {rest: None for rest in self.rests if latest < rest.since < inf}
        if self.rests:
            left = min(rest.since for rest in self.rests) - latest
            self._timer = loop.call_later(max(left, LATE * self._seconds), self._end_longest)
        for rest in sorted(over, key=lambda rest: rest.since):
            rest.connection.timeout_keep_alive_handler()

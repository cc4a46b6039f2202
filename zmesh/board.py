"""A page of memory that the gateways of one host share: each writes a row of numbers, all may read them.

So a scrape of any of them shows what all have counted, exactly and without asking anybody, and each knows whether it
has more connections than the others. The page is their agent's: what a gateway has counted outlives it, and its
successor goes on from there.

Every number is eight bytes that are written in one piece and have one writer: the gateway, or its agent when that is
gone.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

__all__ = ["DURATION_BOUNDS", "Board", "Row"]

DURATION_BOUNDS = tuple(0.001 * 2**power for power in range(17))  # seconds: 1 ms to 65.5 s, mosec's and beyond
OK, FIRST_ERROR, LAST_ERROR = 200, 400, 599  # what a request for inference may be answered with
COLUMNS = 2 + LAST_ERROR - FIRST_ERROR  # of a route: one for each status

# Where in a row; DURATIONS, LAGS and ANSWERS are the first of their kind.
PID, REQUESTS, CONNECTIONS, SECONDS, LAG_SECONDS, DURATIONS = range(6)
LAGS = DURATIONS + len(DURATION_BOUNDS) + 1
ANSWERS = LAGS + len(DURATION_BOUNDS) + 1


class Row:
    """What one gateway says of itself. What was answered, took time or lagged only grows, whoever is in it; the rest is
    of now."""

    def __init__(self, page: memoryview) -> None:
        self._page, self._cells, self._reals = page, page.cast("Q"), page.cast("d")

    def enter(self, pid: int) -> None:
        """A gateway begins to take connections."""
        self.leave()
        self._cells[PID] = pid

    def leave(self) -> None:
        """It is gone, and what it had open with it."""
        for column in (PID, REQUESTS, CONNECTIONS):
            self._cells[column] = 0

    @property
    def pid(self) -> int:
        """0 when nobody is there."""
        return self._cells[PID]

    @property
    def requests(self) -> int:
        """Without an answer."""
        return self._cells[REQUESTS]

    @requests.setter
    def requests(self, number: int) -> None:
        self._cells[REQUESTS] = number

    @property
    def connections(self) -> int:
        return self._cells[CONNECTIONS]

    @connections.setter
    def connections(self, number: int) -> None:
        self._cells[CONNECTIONS] = number

    def answered(self, route: int, code: int) -> None:
        """One answer with this status on the route of that number."""
        self._cells[ANSWERS + route * COLUMNS + (code - FIRST_ERROR + 1 if code != OK else 0)] += 1

    def took(self, bucket: int, seconds: float) -> None:
        """One request was answered with 200 after so long; the bucket is by `DURATION_BOUNDS`."""
        self._cells[DURATIONS + bucket] += 1
        self._reals[SECONDS] += seconds

    def lagged(self, bucket: int, seconds: float) -> None:
        """The event loop was so late; the bucket is by `DURATION_BOUNDS` too."""
        self._cells[LAGS + bucket] += 1
        self._reals[LAG_SECONDS] += seconds

    def answers(self, route: int) -> Iterator[tuple[int, int]]:
        """Each status that this route was answered with, and how often."""
        first = ANSWERS + route * COLUMNS
        for column, times in enumerate(self._cells[first : first + COLUMNS].tolist()):
            if times:
                yield (FIRST_ERROR + column - 1 if column else OK), times

    @property
    def seconds(self) -> float:
        """All that `took` was told."""
        return self._reals[SECONDS]

    def durations(self) -> list[int]:
        """How many took so long, by bucket."""
        return self._cells[DURATIONS:LAGS].tolist()

    @property
    def lag_seconds(self) -> float:
        """All that `lagged` was told."""
        return self._reals[LAG_SECONDS]

    def lags(self) -> list[int]:
        """How often the loop was so late, by bucket."""
        return self._cells[LAGS:ANSWERS].tolist()

    def close(self) -> None:
        for view in (self._cells, self._reals, self._page):
            view.release()


class Board:
    """The page. `mine` is the row of the gateway that opened it, counted from 0."""

    def __init__(self, fd: int, gateways: int, routes: int, mine: int = 0) -> None:
        self.fd = fd
        size = 8 * (ANSWERS + routes * COLUMNS)
        self._pages = mmap.mmap(fd, gateways * size)
        self._whole = memoryview(self._pages)
        self.rows = [Row(self._whole[number * size : (number + 1) * size]) for number in range(gateways)]
        self.mine = self.rows[mine]

    @staticmethod
    def make(gateways: int, routes: int) -> Board:
        """Only what is written to takes memory."""
        fd = os.memfd_create("zmesh-board", os.MFD_CLOEXEC)
        os.ftruncate(fd, 8 * (ANSWERS + routes * COLUMNS) * gateways)
        return Board(fd, gateways, routes)

    @staticmethod
    def open(fd: int, gateways: int, routes: int, mine: int) -> Board:
        os.set_inheritable(fd, False)
        return Board(fd, gateways, routes, mine)

    def others(self) -> list[int]:
        """How many connections each other gateway has that is there."""
        return [row.connections for row in self.rows if row is not self.mine and row.pid]

    def summary(self) -> list[dict[str, int]]:
        """Those that are there, for `/mesh`."""
        return [
            {"number": number, "pid": row.pid, "requests": row.requests, "connections": row.connections}
            for number, row in enumerate(self.rows, 1)
            if row.pid
        ]

    def close(self) -> None:
        for row in self.rows:
            row.close()
        self._whole.release()
        self._pages.close()
        os.close(self.fd)

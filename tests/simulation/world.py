"""Virtual time: one heap of things to come, dice by name, and the transcript of what came.

Nothing here knows what is simulated. Time is seconds on a clock that only `run` moves; two things at the same moment
happen in the order in which they were asked for. Every source of chance has a name and a `Random` of its own, seeded by
the seed and that name, so that a change in one of them does not shuffle all others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from math import inf
from random import Random
from typing import Any, NamedTuple

__all__ = ["START", "Line", "Process", "World"]

START = 1000.0  # seconds; the clock does not begin at zero, so that a forgotten zero shows
REACTION_SECONDS = 20e-6  # from a descriptor that is readable to the turn that reads it


class Line(NamedTuple):
    """One line of the transcript; `ids` are the tasks it is about."""

    at: float
    who: str
    text: str
    ids: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.at - START:12.6f}  {self.who:<12} {self.text}"


class World:
    """`is_told` keeps a transcript; it changes nothing of what happens."""

    def __init__(self, seed: int, *, is_told: bool = False) -> None:
        self.seed, self.is_told = seed, is_told
        self.now = START
        self.transcript: list[Line] = []
        self.steps = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def dice(self, name: str) -> Random:
        """A new source of chance; equal for equal names and seeds."""
        return Random(f"{self.seed} {name}")

    def at(self, when: float, act: Callable[..., None], *args: Any) -> None:
        """`act(*args)` happens at `when`, or now if that is past."""
        self._count += 1
        heappush(self._heap, (max(self.now, when), self._count, act, args))

    def after(self, seconds: float, act: Callable[..., None], *args: Any) -> None:
        self._count += 1
        heappush(self._heap, (self.now + seconds, self._count, act, args))

    def run(self, until: float) -> None:
        """Let everything happen that is due by then."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, act, args = heappop(heap)
            self.steps += 1
            act(*args)
        self.now = max(self.now, until)

    def tell(self, who: str, text: str, ids: Iterable[int] = ()) -> None:
        """For the transcript. Where the text costs something to make, ask `is_told` first."""
        if self.is_told:
            self.transcript.append(Line(self.now, who, text, tuple(ids)))

    def digest(self) -> str:
        """The whole transcript in a few characters."""
        return hashlib.sha256("\n".join(map(str, self.transcript)).encode()).hexdigest()


class Process:
    """One process of one thread. It runs in turns; a stopped one takes none until it goes on."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.is_alive = True
        self.stopped_until = 0.0
        self.stops: list[tuple[float, float]] = []
        self.hurt_at = 0.0  # until when it was last stopped, cut off, or giving up on its connection
        self.connections = 0  # how many it has greeted on
        self._rings_at = inf

    def turn(self) -> None:
        """Whatever this process does when it is woken."""
        raise NotImplementedError

    def lost_connection(self) -> None:
        """The socket's end of its connection is gone. Nothing tells most programs."""

    def wake(self) -> None:
        self.wake_at(self.world.now + REACTION_SECONDS)

    def wake_at(self, when: float | None) -> None:
        """A turn at that moment, unless there is an earlier one; that one asks again."""
        if when is not None and when < self._rings_at:
            self._rings_at = when
            self.world.at(when, self._ring, when)

    def _ring(self, when: float) -> None:
        if when != self._rings_at or not self.is_alive:
            return
        self._rings_at = inf
        if self.is_stopped:
            self.wake_at(self.stopped_until)
        else:
            self.turn()

    @property
    def is_stopped(self) -> bool:
        return self.world.now < self.stopped_until

    def stop(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after `seconds`."""
        now = self.world.now
        self.stopped_until = max(self.stopped_until, now + seconds)
        self.stops.append((now, self.stopped_until))
        self.hurt(seconds)
        self.wake_at(self.stopped_until)

    def hurt(self, seconds: float = 0.0) -> None:
        """Others may rightly find it wanting, from now on for so long."""
        self.hurt_at = max(self.hurt_at, self.world.now + seconds)

    def ran_between(self, start: float, end: float) -> float:
        """Seconds in that time in which it was not stopped."""
        stopped, reached = 0.0, start
        for begin, finish in self.stops:
            stopped += max(0.0, min(finish, end) - max(begin, reached))
            reached = max(reached, finish)
        return max(0.0, end - start) - stopped

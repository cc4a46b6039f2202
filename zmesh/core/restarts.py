"""When a process that ended is started again, and when its stage is called failing.

Only trouble at the start is slowed down: a worker that had finished a lease is replaced at once, since it worked; one
that dies before that is tried again after longer and longer. A budget bounds both. A stage is *failing* after three
failed starts in a row, or when it has used up its budget: then the agent keeps trying, rarely, and the broker answers
for it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from enum import Enum
from random import Random
from typing import NamedTuple

__all__ = ["BACKOFF_SECONDS", "DEATHS", "FAILED_STARTS_MAX", "Death", "Deeds", "Restarts"]

BACKOFF_SECONDS = (0.0, 0.1, 0.5, 2.0, 10.0, 30.0)
FAILED_STARTS_MAX = 3
RESTARTS_PER_MINUTE = 120  # per worker: room for a poison every 2 s, which costs three
JITTER = 0.2  # of a wait, up or down, so that what died together does not start together


class Deeds(Enum):
    """How far a process came before it ended."""

    NONE = "none"  # it never was ready: a failed start
    READY = "ready"
    WORKED = "worked"  # it finished a lease


class Death(NamedTuple):
    """What a death means: whether it counts as a failed start, and whether the back-off goes on."""

    is_failed_start: bool
    backs_off: bool


DEATHS: Mapping[Deeds, Death] = {
    Deeds.NONE: Death(is_failed_start=True, backs_off=True),
    Deeds.READY: Death(is_failed_start=False, backs_off=True),
    Deeds.WORKED: Death(is_failed_start=False, backs_off=False),
}


class Restarts:
    """Of the workers of one stage on one host."""

    def __init__(self, workers: int, random: Random, per_minute: int = RESTARTS_PER_MINUTE) -> None:
        """`per_minute` is for each of the workers."""
        self._budget = per_minute * workers
        self._random = random
        self._deaths: Counter[int] = Counter()  # by worker, since it last finished a lease
        self._lately: deque[float] = deque()  # restarts within the last minute
        self._is_over_budget = False
        self.failed_starts = 0  # in a row, of the whole stage

    @property
    def is_failing(self) -> bool:
        return self.failed_starts >= FAILED_STARTS_MAX or self._is_over_budget

    @property
    def excess(self) -> str:
        """In words, that there were too many; empty as long as there were not."""
        return f"its workers ended more than {self._budget} times within a minute" if self._is_over_budget else ""

    def started(self) -> None:
        """One of them is ready."""
        self.failed_starts = 0
        self._is_over_budget = False

    def died(self, worker_id: int, deeds: Deeds, now: float) -> float:
        """One of them ended unasked; the seconds to wait before it is started again."""
        death = DEATHS[deeds]
        self.failed_starts += death.is_failed_start
        if not death.backs_off:
            self._deaths[worker_id] = 0
        seconds = BACKOFF_SECONDS[min(self._deaths[worker_id], len(BACKOFF_SECONDS) - 1)]
        self._deaths[worker_id] += death.backs_off
        while self._lately and self._lately[0] <= now - 60:
            self._lately.popleft()
        self._is_over_budget = len(self._lately) >= self._budget
        self._lately.append(now)
        if self.is_failing:
            seconds = BACKOFF_SECONDS[-1]
        return seconds * self._random.uniform(1 - JITTER, 1 + JITTER)

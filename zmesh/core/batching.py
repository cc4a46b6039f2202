"""When a batch is cut.

A worker that takes what is there the moment it is free looks busy and wastes half its time. Clients that wait for an
answer before they ask again come back within a millisecond of it, one after another; whoever leaves with the first few
of them makes all others wait for a whole batch, and these are then the first few of the next. The crowd falls into two
halves that take turns for ever, each batch half full. A fixed window heals that and taxes everybody else: with one
client it waits for nobody, and the window that is right for one load is wrong for the next.

So a stage learns from its own traffic who is still to come, in *windows* that all last `max_wait_seconds`:

* the *answer* window opens when clients were answered: how many tasks follow, and when;
* the *burst* window opens at a task that nobody expected: how many follow such a one, and when.

With these forecasts waiting is a trade. Each further second costs every waiting task a second. Each task that comes in
time for this batch, and that no other idle worker would take, saves the time until a worker is free again. A partial
batch waits while some horizon saves more than `MARGIN` times its cost, never longer than `max_wait_seconds` after both
a task and a worker were there, and it goes the moment the last one of the crowd is back.

Where a route has several stages, its clients come back when the last one has answered: that opens the answer window of
every stage of the route, since a quick first stage passes the crowd on before the window of the second is over. A third
window, *onward*, opens when a stage has passed a batch on: behind it may be stages so quick that its clients are back
before that window is over. And a later stage knows more than any window: which batches of the stages before it are
running, how many tasks each brings, and when it should end.

The windows go on counting whatever was decided: a decision to go must not hide the tasks that show it was wrong.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from enum import Enum
from itertools import accumulate
from math import ceil, inf

__all__ = ["Batcher", "Release"]

FIRST_BIN_SECONDS = 125e-6
BIN_GROWTH = 0.12
MARGIN = 1.5  # what waiting must save, as a multiple of what it costs
WINDOW_RATE = 0.15  # weight of the newest window in what is usual
SERVICE_RATE = 0.2  # weight of the newest batch in the time a batch takes
SLOPE_RATE = 0.04  # ... and in how that depends on its size
TINY = 1e-60  # (seconds x tasks)²: nothing but rounding
SIGNIFICANT = 4.0  # a slope counts from twice its own uncertainty (squared)
LESSONS_MIN = 5  # so many answer windows take every task for an expected one
NOBODY = 0.5  # fewer tasks than this are nobody
REGULAR = 0.8  # a window expects somebody if in so many of its openings somebody came
SHARE_MAX = 1.5  # more tasks for an answered one have another cause
JUST_AFTER_SECONDS = 1e-7  # ask again inside the next bin, not on its edge
UNEVEN_FACTOR = 1.5  # a worker whose batches take so many times longer, or less, than usual is judged by itself
STUCK_FACTOR = 1.5  # a batch that runs so many times longer than any before tells nothing of when it ends

SLOW_SECONDS = 0.050
WIDE_FACTOR = 2.0
WIDE_SAMPLES_MIN = 8
RECENT_MAX = 32
SHORTEST_OF = 16
MINUTE_SAMPLES, MINUTE_SECONDS = 20, 60.0


class Release(Enum):
    """Why a batch left."""

    FULL = "full"
    CROWD = "crowd"  # everybody expected is here, or waiting no longer pays
    WINDOW = "window"
    SINGLE = "single"  # the stage does not batch


FULL, CROWD, WINDOW, SINGLE = Release  # by name they are cheaper, see `tasks`


class Batcher:
    """The batching of one stage: told what arrives and what is answered, asked when a partial batch may leave."""

    def __init__(self, max_batch_size: int, max_wait_seconds: float, mode: str = "crowd") -> None:
        assert max_batch_size >= 1, "a batch of no tasks is no batch"
        assert max_wait_seconds >= 0, "nobody waits a negative time"
        assert mode in {"crowd", "fixed", "greedy"}, f"no batching is called {mode!r}"
        if max_batch_size == 1 or max_wait_seconds == 0:
            mode = "greedy"
        self._max_batch_size, self._max_wait, self._mode = max_batch_size, max_wait_seconds, mode
        edges = _bin_edges(max_wait_seconds)
        self._answer = _Window(edges)
        self._onward = _Window(edges)
        self._burst = _Window(edges)
        self._services = _Services()

    @property
    def service(self) -> float:
        """Expected seconds of a batch, 0.0 before the first."""
        return self._services.mean

    @property
    def longest(self) -> float:
        """Seconds of the longest of the last batches, 0.0 before the first."""
        return self._services.longest

    def arrived(self, now: float, count: int) -> None:
        """`count` tasks came in one message."""
        if self._mode != "crowd" or self._answer.count(now, count) | self._onward.count(now, count):
            return  # both counted: a client that comes back after its answer follows nobody's burst
        if now - self._burst.opened < self._max_wait:
            self._burst.count(now, count)
        else:
            self._burst.open(now, 0)  # those who came with the first need no waiting for

    def ran(self, now: float, count: int, service_seconds: float, workers_seconds: float = 0.0) -> float:
        """A batch of `count` tasks came back, at least one of them with a result: else its time says nothing. It ran
        at a worker whose batches took `workers_seconds` so far, 0.0 before its first; returns what they take now."""
        self._services.learn(now, count, service_seconds)
        return _smoothed(workers_seconds, service_seconds)

    def answered(self, now: float, count: int) -> None:
        """So many clients whose tasks came through here were answered, and may ask again."""
        if self._mode == "crowd":
            self._answer.open(now, count)

    def passed_on(self, now: float, count: int) -> None:
        """So many tasks went from here to the next stage; if that is quick their clients are back soon."""
        if self._mode == "crowd":
            self._onward.open(now, count)

    def due(
        self,
        now: float,
        waiting: int,
        oldest: float,
        idle_since: float,
        idle_others: int,
        free_in: Callable[[float], float],
        coming: Callable[[float], list[tuple[float, int]]] | None = None,
        pace: float = 1.0,
    ) -> float:
        """When to ask again about a partial batch and an idle worker; not later than `now` means go.

        `free_in(now)` is how many seconds later the first busy worker should be free, inf when none is busy.
        `coming(now)` is when the batches of the stages before this one should end, in order, and how many tasks of each
        come here. `pace` is how long a batch takes at the idle worker, as a multiple of what is usual.
        """
        if self._mode == "greedy":
            return now
        end = max(oldest, idle_since) + self._max_wait
        if self._mode == "fixed":
            return end
        saves = self._services.intercept * pace
        if saves > 0:
            saves = min(saves, free_in(now))
        if saves <= 0 or now >= end:
            return now
        price = MARGIN * waiting / saves  # tasks that must come per second of waiting
        room = self._max_batch_size - waiting
        again = self._answer.ask_again(now, end, price, idle_others, room)
        again = again or self._onward.ask_again(now, end, price, idle_others, room)
        again = again or self._burst.ask_again(now, end, price, idle_others, room)
        if not again and coming is not None:
            again = _ask_again(coming(now), now, end, price, idle_others, room)
        return min(again, end) if again else now

    def reason(self, now: float, waiting: int, oldest: float, idle_since: float) -> Release:
        """Why a batch that leaves now leaves."""
        if self._max_batch_size == 1:
            return SINGLE
        if waiting >= self._max_batch_size:
            return FULL
        if self._mode != "greedy" and now >= max(oldest, idle_since) + self._max_wait:
            return WINDOW
        return CROWD

    def pace(self, seconds: float) -> float:
        """What batches that take so long are to those of the whole stage: 1.0 unless a worker is much slower or faster
        than the others, and where nothing is known of it."""
        usual = self._services.mean
        is_like_others = not seconds or usual <= UNEVEN_FACTOR * seconds <= UNEVEN_FACTOR**2 * usual
        return 1.0 if is_like_others else seconds / usual

    def remaining(self, elapsed: float, pace: float = 1.0) -> float:
        """Seconds left of a batch that runs for so long at a worker of this pace; inf if nothing is known of that."""
        if pace == 1.0:
            return self._services.remaining(elapsed)
        return _left(pace * self._services.mean, elapsed)

    def prefetch_pays(self) -> bool:
        """Whether a full batch may wait at a busy worker: not where batches are slow, or take anything between."""
        return self._services.are_short_and_even

    def shortest(self, now: float) -> float | None:
        """The least a batch took lately, None unless enough were seen in the last minute to rely on it."""
        return self._services.shortest(now)


def _ask_again(coming: list[tuple[float, int]], now: float, end: float, price: float, others: int, room: int) -> float:
    """When the first of these should be here for whom waiting pays, else 0.0; one that is late is here in a moment."""
    company = -others
    for when, count in coming:
        if when > end:
            break
        company += count
        if min(company, room) > price * (when - now):
            return max(when, now + FIRST_BIN_SECONDS) + JUST_AFTER_SECONDS
    return 0.0


def _bin_edges(length: float) -> list[float]:
    """Bins as fine as a hop at first and ever wider, so that a long window costs little and loses nothing."""
    edges = [0.0]
    while edges[-1] < length:
        edges.append(edges[-1] + max(FIRST_BIN_SECONDS, BIN_GROWTH * edges[-1]))
    edges[-1] = length
    return edges


class _Window:
    """What follows one kind of opening: how many tasks, and when."""

    def __init__(self, edges: list[float]) -> None:
        bins = len(edges) - 1
        self._edges, self._length = edges, edges[-1]
        self._profile = [0.0] * bins  # tasks that usually come in each bin
        self._ahead = [0.0] * (bins + 1)  # ... in this bin or later
        self._share = 1.0  # tasks that usually come for each that was answered
        self._regularity = 1.0  # how often anybody comes at all
        self._lessons = 0
        self.opened = -inf
        self._answered = self._arrived = 0
        self._counts = [0] * bins
        self._expected = inf

    def open(self, now: float, answered: int) -> None:
        """Start anew, wiser by what the last opening brought. Without an answer nothing limits who may come."""
        whole = bisect_right(self._edges, now - self.opened) - 1
        if whole and self.opened > -inf:
            self._learn(min(whole, len(self._counts)))
        self.opened = now
        self._answered, self._arrived = answered, 0
        self._counts = [0] * len(self._counts)
        self._expected = max(self._ahead[0], self._share * answered) if answered else inf

    def _learn(self, whole: int) -> None:
        """Learn from the bins that were seen to their end: the next answer may cut a window short, not its forecast."""
        rate = WINDOW_RATE if self._lessons > LESSONS_MIN else 1 / (self._lessons + 1)
        self._lessons += 1
        profile = self._profile
        profile[:whole] = [a + rate * (b - a) for a, b in zip(profile, self._counts[:whole], strict=False)]
        self._ahead = [*accumulate(reversed(profile), initial=0.0)][::-1]
        was_cut = whole < len(profile)
        if self._answered and not was_cut:
            self._share += rate * (min(self._arrived / self._answered, SHARE_MAX) - self._share)
        if self._arrived or not was_cut:
            self._regularity += rate * ((self._arrived > 0) - self._regularity)

    def count(self, now: float, count: int) -> bool:
        """Note arrivals; True if this window expected them all.

        Nobody is expected where mostly nobody comes: bursts that happen to hit an answer would else pass for its crowd.
        """
        elapsed = now - self.opened
        if elapsed >= self._length:
            return False
        bin = bisect_right(self._edges, elapsed) - 1
        self._counts[bin] += count
        self._arrived += count
        if self._lessons < LESSONS_MIN:
            return True
        is_usual = self._regularity >= REGULAR and self._ahead[bin] >= NOBODY
        return is_usual and self._arrived - 1 < self._expected + NOBODY

    def ask_again(self, now: float, end: float, price: float, others: int, room: int) -> float:
        """The end of this bin if waiting up to some bin's end pays, else 0.0.

        It pays when more tasks come than `price` a second; `others` of them find a worker anyway, more than `room`
        are of no use, and no more come than are missing.
        """
        edges, ahead = self._edges, self._ahead
        elapsed = now - self.opened
        if elapsed >= self._length:
            return 0.0
        bin = bisect_right(edges, elapsed)  # the end of the running bin
        later = ahead[bin] + self._profile[bin - 1] * (edges[bin] - elapsed) / (edges[bin] - edges[bin - 1])
        missing = self._expected - self._arrived
        if missing < NOBODY:
            return 0.0
        scale = missing / later if missing < later else 1.0
        most = min(later * scale - others, room)
        latest = elapsed + min(most / price, end - now)  # no horizon beyond it can pay
        for k in range(bin, bisect_right(edges, latest)):
            if (later - ahead[k]) * scale - others > price * (edges[k] - elapsed):
                return self.opened + edges[bin] + JUST_AFTER_SECONDS
        return 0.0


class _Services:
    """How long batches take: on average, before their first task, at least, and how evenly."""

    def __init__(self) -> None:
        self.mean = self.intercept = 0.0
        self.are_short_and_even = True
        self._size = 0.0
        self._slope = _Slope()
        self._recent: deque[float] = deque(maxlen=RECENT_MAX)
        self._when: deque[float] = deque(maxlen=MINUTE_SAMPLES)
        self._times: list[float] = []  # the recent ones, sorted
        self._longer: list[float] = []  # seconds of this one and all longer ones; made when they are asked for

    def learn(self, now: float, count: int, seconds: float) -> None:
        rate = SERVICE_RATE if self._recent else 1.0
        self._size += rate * (count - self._size)
        self.mean = _smoothed(self.mean, seconds)
        self.intercept = max(0.0, self.mean - self._slope.learn(count, seconds) * self._size)
        self._recent.append(seconds)
        self._when.append(now)
        self._times = times = sorted(self._recent)
        self._longer.clear()
        p90 = times[ceil(0.9 * len(times)) - 1]
        is_wide = len(times) >= WIDE_SAMPLES_MIN and p90 > WIDE_FACTOR * times[(len(times) - 1) // 2]
        self.are_short_and_even = p90 <= SLOW_SECONDS and not is_wide

    @property
    def longest(self) -> float:
        return self._times[-1] if self._times else 0.0

    def remaining(self, elapsed: float) -> float:
        """What is left of a batch that runs for so long: as of others as long; past all of them 0; stuck, inf."""
        times, shorter = self._times, bisect_right(self._times, elapsed)
        if not times:
            return inf
        if shorter < len(times):
            if not self._longer:
                self._longer = [*accumulate(reversed(times), initial=0.0)][::-1]
            return self._longer[shorter] / (len(times) - shorter) - elapsed
        return _left(times[-1], elapsed)

    def shortest(self, now: float) -> float | None:
        if len(self._when) < MINUTE_SAMPLES or self._when[0] < now - MINUTE_SECONDS:
            return None
        return min(list(self._recent)[-SHORTEST_OF:])


def _left(seconds: float, elapsed: float) -> float:
    """Of a batch that should take so long: past that it is any moment now, until it is stuck."""
    if elapsed < seconds:
        return seconds - elapsed
    return 0.0 if elapsed < STUCK_FACTOR * seconds else inf


def _smoothed(before: float, newest: float) -> float:
    """What a batch takes on average, the newest weighing most; `before` is 0.0 before the first."""
    return before + SERVICE_RATE * (newest - before) if before else newest


class _Slope:
    """Seconds that a batch takes longer for each task in it: a straight line through the newest batches."""

    def __init__(self) -> None:
        self._samples = 0.0
        self._size = self._time = 0.0
        self._size_size = self._size_time = self._time_time = 0.0  # variances and covariance

    def learn(self, size: float, time: float) -> float:
        """The slope, as far as it is significant: noise over nearly equal sizes has any slope."""
        size, time = size - self._size, time - self._time
        rate = max(SLOPE_RATE, 1 / (self._samples + 1))
        self._samples = 1 / rate
        self._size += rate * size
        self._time += rate * time
        if size * size < self._size_size:  # near the usual size: nothing is learned, so nothing may be forgotten
            rate *= size * size / self._size_size
        keep = 1 - rate
        self._size_size = keep * (self._size_size + rate * size * size)
        self._size_time = keep * (self._size_time + rate * size * time)
        self._time_time = keep * (self._time_time + rate * time * time)
        explained = self._size_time * self._size_time
        if self._size_time <= 0 or explained < TINY:
            return 0.0
        doubt = SIGNIFICANT * (self._size_size * self._time_time - explained) / (self._samples * explained)
        return max(0.0, 1 - doubt) * self._size_time / self._size_size

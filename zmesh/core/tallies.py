"""What each worker of a stage did, for `/metrics`: under a name that its successors share, so that nothing goes back.

A worker that dies or is replaced leaves its tally to the one with its number. Only so many are kept apart in a mesh;
when there are more, as where hosts get new names all the time, the rest share one. Nothing is ever taken out, since
what a dead worker did was done.
"""

from __future__ import annotations

from bisect import bisect_left

__all__ = ["OTHERS", "SECONDS_BOUNDS", "SIZE_BOUNDS", "Histogram", "Tallies", "Tally"]

SIZE_BOUNDS = tuple(float(2**power) for power in range(11))
SECONDS_BOUNDS = tuple(0.0005 * 2**power for power in range(18))  # 0.5 ms to 65.5 s
OTHERS = "other"  # what those share who have no tally of their own
HOST_CHARACTERS_MAX = 64


class Histogram:
    """Counts between fixed bounds (`le`), and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def snapshot(self) -> dict[str, object]:
        return {"counts": self.counts, "sum": self.sum}


class Tally:
    """Of one worker through all its lives. `running` is of batches with a result, from when their worker was free for
    them; `ahead` is how long those waited for it that it was given while it still ran another."""

    __slots__ = ("ahead", "closing", "name", "running", "sizes", "tasks")

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.sizes = [0] * 64  # batches handed out, by the bits of their size less one: 1, 2, 3-4, 5-8, …
        self.tasks = 0  # in them
        self.closing = Histogram(SECONDS_BOUNDS)  # how long a batch was held open for company
        self.running = Histogram(SECONDS_BOUNDS)
        self.ahead = Histogram(SECONDS_BOUNDS)

    @property
    def batches(self) -> int:
        return sum(self.sizes)

    def snapshot(self) -> dict[str, object]:
        last = len(SIZE_BOUNDS)
        return {
            "batch_size": {"counts": [*self.sizes[:last], sum(self.sizes[last:])], "sum": self.tasks},
            "closing_seconds": self.closing.snapshot(),
            "batch_seconds": self.running.snapshot(),
            "ahead_seconds": self.ahead.snapshot(),
        }


class Tallies:
    """Those of one stage, by the name of the worker; at most `most`, and one for all others."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.by_name: dict[str, Tally] = {}

    def of(self, worker_id: int, host: str = "") -> Tally:
        """Without a host it is the broker's own, whose workers have their number for a name."""
        name = f"{worker_id}@{host[:HOST_CHARACTERS_MAX]}" if host else str(worker_id)
        if name not in self.by_name and len(self.by_name) >= self._most:
            name = OTHERS
        return self.by_name.setdefault(name, Tally(name))

    @property
    def batches(self) -> int:
        return sum([tally.batches for tally in self.by_name.values()])

    @property
    def tasks(self) -> int:
        return sum([tally.tasks for tally in self.by_name.values()])

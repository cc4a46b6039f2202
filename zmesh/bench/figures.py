"""What a run saw: durations in a histogram of bounded size, and one fate for each request. Pure.

Measured are the requests that were due between the end of the warm-up and the end of the run, and each of them has
exactly one fate: answered with a status, timed out, broken (its connection ended), unconnected (no connection could be
made for it), or not sent (too many waited for a connection). In a closed loop a request is due when it is sent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["PERCENTILES", "Figures", "Histogram", "is_good"]

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
TICKS_PER_SECOND = 1_000_000
BITS = 10  # of a duration that are kept: below 1.024 ms each microsecond has its bucket, above it each part in 512
HALF = 1 << (BITS - 1)
TICKS_MAX = (1 << 36) - 1  # 19 hours; longer ones count as this
BUCKETS = (36 - BITS) * HALF + 2 * HALF


def is_good(status: int) -> bool:
    """Whether it counts as goodput. A redirect does not: nothing follows it."""
    return 200 <= status < 300


class Histogram:
    """Durations in seconds, in buckets as those of HdrHistogram: wider for longer ones.

    A percentile is too long by a microsecond or by 0.2 %, whichever is more, and never too short; the longest is exact.
    """

    __slots__ = ("_counts", "count", "longest", "total")

    def __init__(self) -> None:
        self._counts = [0] * BUCKETS
        self.count, self.longest, self.total = 0, 0.0, 0.0

    def record(self, seconds: float) -> None:
        ticks = min(int(seconds * TICKS_PER_SECOND), TICKS_MAX)
        shift = ticks.bit_length() - BITS
        self._counts[ticks if shift <= 0 else (shift << (BITS - 1)) + (ticks >> shift)] += 1
        self.count += 1
        self.total += seconds
        if seconds > self.longest:
            self.longest = seconds

    def percentile(self, percent: float) -> float:
        """The shortest duration that `percent` of 100 do not exceed, in seconds; 0 when there are none."""
        rank = max(1, -(-self.count * round(percent * 1000) // 100_000))
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if seen >= rank:
                return min(_end_of(index) / TICKS_PER_SECOND, self.longest)
        return self.longest

    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    def to_json(self) -> dict[str, float]:
        """Milliseconds by name."""
        values = {f"p{percent:g}": self.percentile(percent) for percent in PERCENTILES}
        values.update(max=self.longest, mean=self.mean())
        return {"count": self.count, **{f"{name}_ms": round(1e3 * value, 4) for name, value in values.items()}}


def _end_of(index: int) -> int:
    """Where a bucket ends, in ticks."""
    if index < 2 * HALF:
        return index + 1
    shift = (index >> (BITS - 1)) - 1
    return (index - (shift << (BITS - 1)) + 1) << shift


@dataclass(slots=True)
class Figures:
    """One run. `seconds` is what was measured, without the warm-up."""

    seconds: float
    due: int = 0
    statuses: dict[int, int] = field(default_factory=dict)
    timed_out: int = 0
    broken: int = 0
    unconnected: int = 0
    not_sent: int = 0
    good_in_time: int = 0  # 2xx answers that came while it was measured, whenever their requests were due
    latency: Histogram = field(default_factory=Histogram)  # of 2xx answers; and what the timed out had waited
    latency_of_others: Histogram = field(default_factory=Histogram)  # of all other answers
    lateness: Histogram = field(default_factory=Histogram)  # from due until the generator turned to it: its own fault
    waited: Histogram = field(default_factory=Histogram)  # for a connection, of those that had to
    connections: int = 0  # at most at the same time
    opened: int = 0
    bytes_received: int = 0
    cpu_seconds: float = 0.0  # of the generator while it was measured
    wall_seconds: float = 0.0
    trouble: str = ""  # why a connection could not be made, the last time

    def answered(self, status: int, seconds: float) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1
        (self.latency if is_good(status) else self.latency_of_others).record(seconds)

    def timed_out_after(self, seconds: float) -> None:
        """It had waited so long; its latency would have been more, so leaving it out would hide the worst."""
        self.timed_out += 1
        self.latency.record(seconds)

    @property
    def good(self) -> int:
        return sum(count for status, count in self.statuses.items() if is_good(status))

    @property
    def fates(self) -> int:
        """Requests of which it is known what became of them; in the end, all that were due."""
        return sum(self.statuses.values()) + self.timed_out + self.broken + self.unconnected + self.not_sent

    @property
    def offered(self) -> float:
        """Requests per second that were due."""
        return self.due / self.seconds

    @property
    def goodput(self) -> float:
        """2xx answers per second while it was measured: what comes after the end is no proof of keeping up."""
        return self.good_in_time / self.seconds

    @property
    def cpu_share(self) -> float:
        """Of one core, that the generator took."""
        return self.cpu_seconds / self.wall_seconds if self.wall_seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "due": self.due,
            "offered_per_second": round(self.offered, 3),
            "goodput_per_second": round(self.goodput, 3),
            "good": self.good,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "timed_out": self.timed_out,
            "broken": self.broken,
            "unconnected": self.unconnected,
            "not_sent": self.not_sent,
            "latency": self.latency.to_json(),
            "latency_of_others": self.latency_of_others.to_json(),
            "lateness": self.lateness.to_json(),
            "waited_for_connection": self.waited.to_json(),
            "connections_at_most": self.connections,
            "connections_opened": self.opened,
            "bytes_received": self.bytes_received,
            "generator_cpu_share": round(self.cpu_share, 4),
        }

"""When requests are due: a schedule that knows nothing of the answers. Pure, and the same for the same seed."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

__all__ = ["ARRIVALS", "arrivals"]

ARRIVALS = ("poisson", "constant")


def arrivals(kind: str, rate: float, seconds: float, random: Random) -> Iterator[float]:
    """Seconds from the beginning at which a request is due, ascending and below `seconds`; `rate` is per second.

    `constant` leaves the same gap between any two. `poisson` draws each gap, and the one before the first, from the
    exponential distribution: many clients who do not know of one another, as in the Server scenario of MLPerf LoadGen.
    """
    if kind == "constant":
        number = 0
        while (due := number / rate) < seconds:  # not a sum of gaps, which would drift
            yield due
            number += 1
    else:
        assert kind == "poisson", kind
        due = random.expovariate(rate)
        while due < seconds:
            yield due
            due += random.expovariate(rate)

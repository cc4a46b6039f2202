"""The search for the knee: the highest rate that a server carries. Pure.

A rate is **carried** when every request was sent, at least 95 % of what was offered came back as 2xx while it was
measured, and the p99 latency is within a limit: `--slo-ms`, or five times the p99 of a client that is alone. The search
doubles the rate until it is not carried (or halves it until it is), then takes the geometric middle between the highest
that was and the lowest that was not, until they are a tenth apart. The knee is the highest that was carried.

A generator that was late makes latencies longer, never shorter, so what was carried all the same was carried. And it
can keep back no more answers than were due in the time by which it was late, so where more than that are missing, the
server did not carry the rate. In between nobody knows whose fault it was. The run is done once more, since anything on
the machine may have caused it; when it is late again, that rate is the limit of the generator and not of the server.
The search goes on below it, and what it finds is a lower bound for the server.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import floor, log10, sqrt

from zmesh.bench.figures import Figures
from zmesh.bench.verdict import faults

__all__ = ["ALONE_FACTOR", "GOODPUT_SHARE_MIN", "Knee", "Step", "judged"]

GOODPUT_SHARE_MIN = 0.95  # of what was offered
ALONE_FACTOR = 5.0  # p99 may be so many times that of a client that is alone
RATIO_MAX = 1.1  # between the lowest rate that was not carried and the highest that was, when the search ends
STEPS_MAX = 24
RATE_MIN, RATE_MAX = 0.1, 1e6  # requests per second
REPEATS = 1  # of a run that was late


@dataclass(frozen=True, slots=True)
class Step:
    """A run at one rate. `limit` is "" when it was carried, else "server", "generator" or "load"; `why` says more."""

    rate: float
    figures: Figures
    limit: str = ""
    why: str = ""


def judged(rate: float, figures: Figures, p99_seconds_max: float) -> Step:
    """The figures of a run at that rate, as a step."""
    found = sorted(faults(figures), key=lambda fault: fault.whose != "generator")
    others = [fault for fault in found if fault.whose != "generator"]
    if found == others and others:
        return Step(rate, figures, others[0].whose, others[0].brief)
    share, p99 = figures.goodput / figures.offered, figures.latency.percentile(99)
    kept_back = figures.lateness.longest / figures.seconds if found else 0.0
    if share + kept_back < GOODPUT_SHARE_MIN:
        return Step(rate, figures, "server", f"{share:.0%} of what was offered came back as 2xx in time")
    if not others and share >= GOODPUT_SHARE_MIN and p99 <= p99_seconds_max:
        return Step(rate, figures)
    if found:
        return Step(rate, figures, found[0].whose, found[0].brief)
    return Step(rate, figures, "server", f"p99 {p99 * 1e3:.1f} ms, above {p99_seconds_max * 1e3:.1f} ms")


@dataclass(slots=True)
class Knee:
    """What was tried, what it showed, and what to try next."""

    start: float
    steps: list[Step] = field(default_factory=list)

    def rates(self) -> Iterator[float]:
        """Rates to try. Each result has to be in `steps` before the next one is asked for."""
        while (rate := self._next()) is not None:
            before = len(self.steps)
            yield rate
            assert len(self.steps) == before + 1, "a rate was asked for and not tried"

    def _next(self) -> float | None:
        if not self.steps:
            return _rounded(self.start)
        if len(self.steps) >= STEPS_MAX:
            return None
        last = self.steps[-1]
        if last.limit == "generator" and self._times_late(last.rate) <= REPEATS:
            return last.rate
        if self.above is None:
            rate = last.rate * 2
        elif self.rate is None:
            rate = last.rate / 2
        elif self.above.rate / self.rate <= RATIO_MAX:
            return None
        else:
            rate = sqrt(self.rate * self.above.rate)
        rate = _rounded(rate)
        return rate if RATE_MIN <= rate <= RATE_MAX else None

    def _times_late(self, rate: float) -> int:
        return sum(step.rate == rate and step.limit == "generator" for step in self.steps)

    @property
    def rate(self) -> float | None:
        """The highest rate that was carried, below every rate that was not."""
        above = self.above
        carried = [step.rate for step in self.steps if not step.limit and (above is None or step.rate < above.rate)]
        return max(carried, default=None)

    @property
    def above(self) -> Step | None:
        """The lowest rate that was not carried, not even when it was tried again."""
        carried = {step.rate for step in self.steps if not step.limit}
        given_up = [step for step in self.steps if step.limit and step.rate not in carried]
        return min(given_up, key=lambda step: step.rate, default=None)

    @property
    def is_of_server(self) -> bool:
        """Whether it was found, and it was the server that could not do more."""
        return self.rate is not None and self.above is not None and self.above.limit == "server"

    def text(self) -> str:
        """The result as a sentence."""
        above = self.above
        if self.rate is None:
            assert above is not None, "a rate was carried, or it was not"
            return f"no knee was found: not even {above.rate:g} req/s was carried; {above.why}"
        if above is None:
            return f"no knee was found: {self.rate:g} req/s was carried, and no higher rate was tried"
        if above.limit == "server":
            return f"knee: {self.rate:g} req/s; at {above.rate:g} req/s {above.why}"
        if above.limit == "load":
            return f"no knee was found above {self.rate:g} req/s: {above.why} at {above.rate:g} req/s; raise --seconds"
        return (
            f"{self.rate:g} req/s was carried, and the knee may be higher: {above.rate:g} req/s is the limit of the"
            f" generator, not of the server ({above.why}); give the generator a core or a machine of its own"
        )


def _rounded(rate: float) -> float:
    """To three digits: nobody has to read more of a rate that was made up."""
    return round(rate, 2 - floor(log10(rate)))

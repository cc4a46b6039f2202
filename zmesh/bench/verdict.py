"""Whether the figures of a run can be believed, and if not, through whose fault and what to do. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from zmesh.bench.figures import Figures

__all__ = ["CPU_SHARE_MAX", "LATE_SECONDS_MIN", "LATE_SHARE_MAX", "STALL_SECONDS_MAX", "Fault", "faults", "late_limit"]

# What the generator may add to a latency: each request counts from when it was due, so its lateness is in the figures.
LATE_SHARE_MAX = 0.1  # p99 of its lateness, as a share of the p99 latency
LATE_SECONDS_MIN = 0.001  # … below which it is never called late
STALL_SECONDS_MAX = 0.1  # the longest lateness of any request
CPU_SHARE_MAX = 0.9  # of a core; above it a closed loop may have measured its client


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a run is not valid. `whose`: "generator", "server", or "load" for what was asked. `brief` is for a table."""

    whose: str
    brief: str
    text: str


def late_limit(figures: Figures) -> float:
    """The p99 lateness, in seconds, above which a run is not valid."""
    return max(LATE_SECONDS_MIN, LATE_SHARE_MAX * figures.latency.percentile(99))


def faults(figures: Figures) -> Iterator[Fault]:
    """None for a run that is valid. Each is a sentence that ends with what to do."""
    if not figures.due:
        yield Fault(
            "load", "no request was due", "no request was due while it was measured: raise the rate, or --seconds"
        )
        return
    if not figures.good:
        brief = f"no request was answered with 2xx ({_what_instead(figures)})"
        yield Fault("server", brief, f"{brief}: try one with curl first")
        return
    yield from _lateness(figures)
    if figures.not_sent:
        yield Fault(
            "server",
            f"{figures.not_sent} requests were not sent",
            f"{figures.not_sent} of {figures.due} requests were not sent, because all {figures.connections} connections"
            " were busy and too many requests waited for one: the server does not keep up with this rate, so lower it;"
            " if it does, raise --connections",
        )


def _lateness(figures: Figures) -> Iterator[Fault]:
    late, limit = figures.lateness.percentile(99), late_limit(figures)
    advice = "lower the rate, or give the generator a core or a machine of its own"
    if late > limit:
        yield Fault(
            "generator",
            f"the generator was late: p99 {_ms(late)}, and {_ms(limit)} is allowed",
            f"the generator was late, not the server: one request in a hundred left {_ms(late)} or more after it was"
            f" due, and {_ms(limit)} is allowed (a tenth of the p99 latency, {_ms(LATE_SECONDS_MIN)} at least);"
            f" {advice}",
        )
    elif figures.lateness.longest > STALL_SECONDS_MAX:
        yield Fault(
            "generator",
            f"the generator stood still: {_ms(figures.lateness.longest)}, and {_ms(STALL_SECONDS_MAX)} is allowed",
            f"the generator stood still, not the server: a request left {_ms(figures.lateness.longest)} after it was"
            f" due, and {_ms(STALL_SECONDS_MAX)} is allowed; {advice}",
        )


def _what_instead(figures: Figures) -> str:
    fates = {f"{count} were answered {status}": count for status, count in sorted(figures.statuses.items())}
    fates[f"{figures.timed_out} timed out"] = figures.timed_out
    fates[f"{figures.broken} lost their connection"] = figures.broken
    fates[f"{figures.unconnected} got no connection"] = figures.unconnected
    return ", ".join(text for text, count in fates.items() if count) or "none was sent"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds * 1e3:.0f} ms"

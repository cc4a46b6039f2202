"""What a run of `scripts/chaos` shows at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tests.chaos.checker import ECHO_SECONDS, INVARIANTS, Times, Violation, charged_deaths
from tests.chaos.checker_mesh import baseline, best_of, rates
from tests.chaos.history import History

SHOWN_MAX = 12
ANY = "(any time)"


def report(history: History, violations: Sequence[Violation]) -> str:
    lines = [*summary(history), "", *table(history, violations)]
    if violations:
        began = history.phases.get("load", 0.0)
        more = f"; the first {SHOWN_MAX}" if len(violations) > SHOWN_MAX else ""
        lines += ["", f"{len(violations)} violations{more}:"]
        lines += [f"  {one.invariant} at {one.at - began:.2f} s: {one.text}" for one in violations[:SHOWN_MAX]]
    else:
        lines += ["", "every invariant held"]
    return "\n".join(lines)


def summary(history: History) -> list[str]:
    requests = history.requests.values()
    waits = sorted(request.answers[0].at - request.sent for request in requests if request.answers)
    statuses = Counter(request.answers[0].status for request in requests if request.answers)
    left = sum(request.left is not None for request in requests)
    unanswered = sum(not request.answers and request.left is None for request in requests)
    doubled = sum(len(request.answers) > 1 for request in requests) + len(history.extras)
    runs = Counter((nonce, batch.stage) for batch in history.batches for nonce in batch.nonces)
    faults = Counter(fault.name for fault in history.faults)
    phases = history.phases
    shown = {200: 0, 500: 0, **statuses}
    answered = ", ".join(f"{count} answered {status}" for status, count in sorted(shown.items()))
    hit = ", ".join(f"{count} {name}" for name, count in sorted(faults.items()))
    lines = [
        f"{len(history.requests)} requests: {answered}, {left} left by their client, "
        f"{unanswered} without an answer, {doubled} answered twice",
        f"faults: {hit or 'none'}; {history.missed} times nobody was there to hit",
        f"executions: {len(history.batches)} batches; {sum(count > 1 for count in runs.values())} requests were run "
        f"more than once at a stage, at most {max(runs.values(), default=0)} times",
        f"deaths charged to what ran: {charged_deaths(history)}",
    ]
    if waits:
        p50, p99 = (waits[min(len(waits) - 1, int(len(waits) * share))] for share in (0.5, 0.99))
        lines.append(f"waits: p50 {p50 * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms, longest {waits[-1]:.2f} s")
    if {"baseline", "nemesis", "recovery", "drain"} <= phases.keys():
        during = rates(history, phases["nemesis"], phases["recovery"])
        after = best_of(rates(history, phases["recovery"], phases["drain"]), 3)
        lines.append(
            f"200s a second: {baseline(history):.0f} before the faults, "
            f"{sum(during) / max(1, len(during)):.0f} during them, {after:.0f} after (best 3 s)"
        )
    return lines


def table(history: History, violations: Sequence[Violation]) -> list[str]:
    """Faults by invariants. A violation counts for each fault that had an effect in its time."""
    times = Times(history)
    struck = sorted({fault.name for fault in history.faults})
    counts: Counter[tuple[str, str]] = Counter()
    for one in violations:
        near = {fault.name for fault in times.overlapping(one.at, one.until, ECHO_SECONDS)} or {ANY}
        counts.update((name, one.invariant) for name in near)
    asked = history.settings.get("faults", struck)
    rows = [[name, *(_cell(name, invariant, struck, counts) for invariant in INVARIANTS)] for name in [*asked, ANY]]
    head = ["", *INVARIANTS]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in [head, *rows]]


def _cell(name: str, invariant: str, struck: Sequence[str], counts: Counter[tuple[str, str]]) -> str:
    if counts[name, invariant]:
        return str(counts[name, invariant])
    if name not in struck and name != ANY:
        return "–"  # it never came to it
    if invariant == "kin" and name not in ("kill-agent", ANY):
        return "–"
    return "✓"

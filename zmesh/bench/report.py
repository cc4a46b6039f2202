"""What a person reads of a run, and what a program reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from zmesh.bench.figures import PERCENTILES, Figures, Histogram
from zmesh.bench.knee import Knee, Step
from zmesh.bench.load import Load
from zmesh.bench.target import Target
from zmesh.bench.verdict import CPU_SHARE_MAX, STALL_SECONDS_MAX, Fault, faults, late_limit
from zmesh.status import table

__all__ = ["FORMAT", "document", "progress_line", "result_document", "result_text", "sweep_document", "sweep_text"]

FORMAT = 1  # of the JSON; a field that goes or changes its meaning raises it

COLUMNS = ("RATE", "OFFERED", "GOODPUT", "P50 MS", "P99 MS", "MAX MS", "NOT 2XX", "LATE P99 MS", "CARRIED")


def _asked(load: Load) -> str:
    """The load, in words."""
    if load.clients:
        how = f"closed loop, {load.clients} clients"
    else:
        how = f"open loop, {load.rate:g} req/s, {load.arrivals} arrivals, seed {load.seed}"
    return f"{how}, {load.seconds:g} s after {load.warmup:g} s of warm-up"


def result_text(target: Target, load: Load, figures: Figures) -> str:
    """A run, line by line, its validity last."""
    lines = [f"{target.method} {target.url}", _asked(load), "", *_lines(load, figures), ""]
    found = list(faults(figures))
    lines += [f"INVALID: {fault.text}" for fault in found] or ["valid"]
    return "\n".join(lines)


def _lines(load: Load, figures: Figures) -> Iterator[str]:
    yield f"requests     {figures.due} due, {figures.due - figures.not_sent - figures.unconnected} sent"
    answers = [f"{status}: {count}" for status, count in sorted(figures.statuses.items())]
    yield f"answers      {', '.join(answers) or 'none'}"
    if lost := _lost(figures):
        yield f"no answer    {lost}"
    offered = "" if load.clients else f" of {figures.offered:.1f} offered"
    yield f"goodput      {figures.goodput:.1f} req/s{offered} (2xx answers within the {figures.seconds:g} s)"
    since = "sent" if load.clients else "due"
    yield f"latency      {_durations(figures.latency)}, since {since} (2xx and timed out)"
    if figures.latency_of_others.count:
        yield f"other        {_durations(figures.latency_of_others)} (all other answers)"
    if not load.clients:
        limits = f"p99 {_ms(late_limit(figures))}, max {_ms(STALL_SECONDS_MAX)}"
        late = _durations(figures.lateness, (50.0, 99.0))
        yield f"lateness     {late} (the generator's own; allowed: {limits})"
    yield f"connections  {_connections(load, figures)}"
    yield f"generator    {figures.cpu_share:.0%} of a core{_warning(figures)}"


def _warning(figures: Figures) -> str:
    return ": it may be the limit, and not the server" if figures.cpu_share > CPU_SHARE_MAX else ""


def _lost(figures: Figures) -> str:
    trouble = f" ({figures.trouble})" if figures.trouble else ""
    counts = {
        "timed out": figures.timed_out,
        "lost their connection": figures.broken,
        f"got no connection{trouble}": figures.unconnected,
        "not sent": figures.not_sent,
    }
    return ", ".join(f"{count} {fate}" for fate, count in counts.items() if count)


def _connections(load: Load, figures: Figures) -> str:
    most = load.clients or load.connections
    text = f"{figures.connections} at most of {most}, {figures.opened} opened"
    if figures.waited.count:
        text += f"; {figures.waited.count} waited for one: {_durations(figures.waited, (50.0, 99.0))}"
    return text


def _durations(histogram: Histogram, percents: Iterable[float] = PERCENTILES) -> str:
    if not histogram.count:
        return "none"
    shown = [f"p{percent:g} {1e3 * histogram.percentile(percent):.2f}" for percent in percents]
    return ", ".join([*shown, f"max {_ms(histogram.longest)}"])


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def _step_row(step: Step) -> tuple[str, ...]:
    """A row of COLUMNS."""
    figures = step.figures
    return (
        f"{step.rate:g}",
        f"{figures.offered:.1f}",
        f"{figures.goodput:.1f}",
        f"{figures.latency.percentile(50) * 1e3:.2f}",
        f"{figures.latency.percentile(99) * 1e3:.2f}",
        f"{figures.latency.longest * 1e3:.2f}",
        str(figures.due - figures.good),
        f"{figures.lateness.percentile(99) * 1e3:.2f}",
        f"no: {step.why}" if step.limit else "yes",
    )


def sweep_text(target: Target, load: Load, alone: Figures, p99_seconds_max: float, knee: Knee) -> str:
    """All steps of a sweep, in the order in which they were tried, and the knee."""
    return "\n".join(
        [
            f"{target.method} {target.url}",
            f"sweep, {load.arrivals} arrivals, seed {load.seed}, steps of {load.seconds:g} s after {load.warmup:g} s of"
            f" warm-up; p99 limit {_ms(p99_seconds_max)}",
            f"one client alone: {alone.goodput:.1f} req/s, {_durations(alone.latency, (50.0, 99.0))}",
            "",
            table(COLUMNS, map(_step_row, knee.steps)),
            "",
            knee.text(),
        ]
    )


def document(version: str, target: Target, load: Load) -> dict[str, Any]:
    """The head of the JSON: what was asked for. `result` or `sweep` comes beside it."""
    parameters = {**asdict(load), "timeout_ms": load.timeout_seconds * 1e3}
    del parameters["timeout_seconds"]
    return {
        "zmesh_bench": FORMAT,
        "version": version,
        "url": target.url,
        "method": target.method,
        "bodies": len(target.bodies),
        "request_bytes": [len(request) for request in target.requests[:100]],
        "parameters": parameters,
    }


def result_document(figures: Figures) -> dict[str, Any]:
    """The figures of a run and their verdict."""
    found = list(faults(figures))
    limits = {"late_p99_limit_ms": late_limit(figures) * 1e3, "late_max_limit_ms": STALL_SECONDS_MAX * 1e3}
    return {**figures.to_json(), **limits, "valid": not found, "faults": [_fault(fault) for fault in found]}


def sweep_document(alone: Figures, p99_seconds_max: float, knee: Knee) -> dict[str, Any]:
    return {
        "alone": result_document(alone),
        "p99_limit_ms": p99_seconds_max * 1e3,
        "steps": [
            {"rate": step.rate, "carried": not step.limit, "limit": step.limit, "why": step.why}
            | {"result": result_document(step.figures)}
            for step in knee.steps
        ],
        "knee_per_second": knee.rate,
        "knee_is_of_server": knee.is_of_server,
        "text": knee.text(),
    }


def _fault(fault: Fault) -> dict[str, str]:
    return {"whose": fault.whose, "text": fault.text}


def progress_line(load: Load, elapsed: float, figures: Figures) -> str:
    """So far; for a line that is written over and over."""
    whole = load.warmup + load.seconds
    wrong = figures.fates - figures.good
    if elapsed < load.warmup:
        return f"{elapsed:.0f} of {whole:g} s, warming up"
    if elapsed < whole:
        return f"{elapsed:.0f} of {whole:g} s, {figures.good} answers 2xx, {wrong} others"
    return f"{whole:g} s are over, waiting for {max(0, figures.due - figures.fates)} answers"

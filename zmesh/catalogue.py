"""Every family of metrics that zmesh shows, under the operator's namespace: mosec's names where mosec has one.

Plain words, so that a worker can see which names are taken without importing what writes them out. docs/metrics.md has
a line for each.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

__all__ = ["CATALOGUE", "NOT_A_NAME", "Family", "base_name", "problem_of"]

NAME_CHARACTERS_MAX, HELP_CHARACTERS_MAX, VALUE_CHARACTERS_MAX = 100, 300, 128
LABELS_MAX, BUCKETS_MAX = 8, 32  # of a user's metric
WORKER_SERIES_MAX = 256  # of one worker: one for each set of label values that was used
KINDS = ("counter", "gauge", "histogram")
_OURS = frozenset({"stage", "connection", "le", "quantile"})  # labels that zmesh gives, or the format
_NAME = re.compile("[a-zA-Z][a-zA-Z0-9_]*")

NOT_A_NAME = ("_bucket", "_count", "_created", "_info", "_sum", "_total")  # what samples of a family end in


class Family(NamedTuple):
    """One family of metrics. A counter's samples end in `_total`, which `name` includes."""

    name: str
    kind: str  # counter, gauge, histogram
    labels: tuple[str, ...]
    help: str


def base_name(name: str) -> str:
    """What a family is called in OpenMetrics: no two may share it."""
    return name.removesuffix("_total")


_STAGE = ("stage",)
_WORKER = ("stage", "connection")

CATALOGUE: tuple[Family, ...] = (
    # mosec's five
    Family("throughput_total", "counter", ("code", "endpoint"), "Answers on inference routes, by HTTP status"),
    Family(
        "process_duration_second",
        "histogram",
        _WORKER,
        "Seconds a worker had a batch that brought a result, from hand-out to its last result and without the wait in "
        'ahead_wait_seconds; stage="total": from request to answer 200',
    ),
    Family("batch_size", "histogram", _WORKER, "Tasks in a batch when it is handed out, at stages that batch"),
    Family(
        "batch_duration_second",
        "histogram",
        _WORKER,
        "Seconds a batch was held open for company, while a worker was free and its first task there",
    ),
    Family("remaining_task", "gauge", (), "Requests that have no answer yet"),
    # Queues
    Family("queue_depth", "gauge", _STAGE, "Tasks waiting in the queue of a stage"),
    Family("queue_bytes", "gauge", _STAGE, "Bytes of the payloads waiting in the queue of a stage"),
    Family("queue_wait_seconds", "histogram", _STAGE, "Seconds a task waited at a stage until it was handed out"),
    Family("suspect_tasks", "gauge", _STAGE, "Tasks waiting to run apart, since a worker died or overran with them"),
    Family("held_tasks", "gauge", _STAGE, "Tasks held back because their gateway does not take its answers"),
    # Workers
    Family("leased_tasks", "gauge", _STAGE, "Tasks in the hands of the workers of a stage"),
    Family("ahead_wait_seconds", "histogram", _WORKER, "Seconds a batch given ahead waited until its worker was free"),
    Family("workers", "gauge", ("stage", "state"), "Workers of a stage by state: starting, ready, draining, lost, …"),
    Family("workers_ready", "gauge", _STAGE, "Workers of a stage that take batches"),
    Family("stage_failing", "gauge", _STAGE, "1 while a stage cannot be started, else 0"),
    # What happened at a stage
    Family("tasks_total", "counter", ("stage", "outcome"), "Rows that a stage answered: ok or error"),
    Family("attempts_total", "counter", _STAGE, "Tasks handed to workers, each time counted"),
    Family("released_total", "counter", ("stage", "reason"), "Batches handed out, by why they left: full, crowd, …"),
    Family("hop_bytes_total", "counter", ("stage", "direction"), "Bytes of payloads to workers (in) and back (out)"),
    Family("deaths_total", "counter", _STAGE, "Deaths of workers that were charged to the tasks they held"),
    Family("exits_total", "counter", _STAGE, "Worker processes that ended, for whatever reason"),
    Family("returned_total", "counter", _STAGE, "Tasks that came back to the queue because their lease ended"),
    Family("poisoned_total", "counter", _STAGE, "Tasks given up because workers died of them"),
    Family("expired_total", "counter", _STAGE, "Tasks whose deadline passed at a stage"),
    Family("cancelled_total", "counter", _STAGE, "Tasks that nobody wanted any more"),
    Family("shed_total", "counter", _STAGE, "Tasks refused because a queue was full"),
    # Programs
    Family("loop_lag_seconds", "histogram", ("role",), "Seconds that an event loop was late, looked at twice a second"),
    Family("broker_up", "gauge", (), "1 when the broker answered this scrape, else 0"),
    Family("broker_tasks", "gauge", (), "Tasks in the broker, at whatever stage"),
    Family("late_total", "counter", (), "Results that came for what was already answered"),
    Family("malformed_total", "counter", (), "Messages the broker could not read"),
    Family("refused_peers_total", "counter", (), "Greetings the broker refused"),
)

_TAKEN = frozenset(base_name(family.name) for family in CATALOGUE)


def problem_of(kind: str, name: str, help: str, labels: Sequence[str], buckets: Sequence[float]) -> str:
    """Why a user's metric cannot be so, in words that follow its name; empty when it can."""
    base = base_name(name) if kind == "counter" else name
    if not _NAME.fullmatch(name) or len(name) > NAME_CHARACTERS_MAX:
        return f"must be called by letters, digits and _, a letter first, at most {NAME_CHARACTERS_MAX} of them"
    if base.endswith(NOT_A_NAME):
        return f"cannot end in {base[base.rindex('_') :]}, which the format uses itself"
    if base in _TAKEN:
        return "is one of zmesh's own; call yours otherwise"
    if not help or len(help) > HELP_CHARACTERS_MAX or help.encode(errors="replace").decode() != help:
        return f"needs a help text of at most {HELP_CHARACTERS_MAX} characters"
    if len(labels) > LABELS_MAX or len(set(labels)) < len(labels):
        return f"may have {LABELS_MAX} labels, no two alike, not {', '.join(labels)}"
    for label in labels:
        if not _NAME.fullmatch(label) or len(label) > NAME_CHARACTERS_MAX or label in _OURS:
            return f"cannot have a label {label!r}: letters, digits and _, and not one of {', '.join(sorted(_OURS))}"
    if kind == "histogram":
        edges = [float("-inf"), *buckets, float("inf")]
        if not 1 <= len(buckets) <= BUCKETS_MAX or not all(low < high for low, high in pairwise(edges)):
            return f"needs 1 to {BUCKETS_MAX} buckets, finite and each above the one before"
    return ""

"""Every family of metrics that zmesh shows, under the operator's namespace: mosec's names where mosec has one.

Plain words, so that a worker can see which names are taken without importing what writes them out. docs/metrics.md has
a line for each.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CATALOGUE", "NOT_A_NAME", "Family", "base_name"]

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

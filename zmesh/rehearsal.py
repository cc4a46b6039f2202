"""A worker before its first request: made, and warmed up with its examples."""

from __future__ import annotations

from math import inf
from typing import Any

from zmesh.alarms import ALARMS, Call
from zmesh.core.effects import Run
from zmesh.emitter import emitter_of
from zmesh.messages import Columns, LeaseId, TaskId
from zmesh.worker import Worker

__all__ = ["examples_of", "items_of", "make_worker", "warm_up"]


def make_worker(cls: type[Worker], stage: str, worker_id: int, max_batch_size: int) -> Worker:
    """A worker that knows its place before its `__init__` runs. Raises what that raises."""
    worker = cls.__new__(cls)
    worker.stage, worker.worker_id, worker.max_batch_size = stage, worker_id, max_batch_size
    worker.__init__()  # type: ignore[misc]
    return worker


def examples_of(worker: Worker) -> list[Any]:
    """What its class or its `__init__` has set: `multi_examples`, or else `example` if that is not None."""
    examples = list(worker.multi_examples)
    return examples if examples or worker.example is None else [worker.example]


def items_of(worker: Worker, example: Any) -> list[Any]:
    """The items of an example: a list is a batch where batches are made, and anything else is one item."""
    return list(example) if worker.max_batch_size > 1 and isinstance(example, list) else [example]


def warm_up(worker: Worker) -> None:
    """Run its examples, one by one. Raises what they raise."""
    emitter = emitter_of(worker)  # whose events go nowhere
    forward = worker.forward if emitter is None else emitter.forward
    for example in examples_of(worker):
        items = items_of(worker, example)
        ALARMS.run(_rehearsal(len(items)), forward, items if worker.max_batch_size > 1 else example)


def _rehearsal(count: int) -> Call:
    """So that `current_task` has an answer: tasks that nobody sent and that have all the time in the world."""
    columns = Columns([TaskId(0)] * count, [3] * count, [0] * count, [1] * count, [0] * count, [b""] * count)
    return Call(Run(LeaseId(0), columns, [inf] * count, frozenset()), list(range(count)), frozenset())

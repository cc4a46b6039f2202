"""A task's life, as a table.

Rule 1: every state, and every step between states, is in TASK_STEPS; nothing else assigns `Task.state`.
Rule 2: this file knows no worker, no socket and no clock.
Rule 3: a task is the only thing that lives from SUBMIT to REPLY, one object for one request.

A task waits (QUEUED), is with a worker (LEASED), waits for the next stage (QUEUED again) and is answered (DONE). One
that was running when a process died of it, or that may be what took too long, is a SUSPECT: it waits apart, runs alone
or among other suspects, and costs nobody else a thing. One whose gateway does not take its answers is HELD until it
does. A late success moves a task on from wherever it is, which is why ADVANCE and FINISH are legal while it waits.

The diagram in docs/states.md is drawn from the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

from zmesh.messages import Context, Payload, State, TaskId

if TYPE_CHECKING:
    from zmesh.core.peers import Gateway
    from zmesh.core.workers import Lease

__all__ = [
    "DONE",
    "HELD",
    "LEASED",
    "QUEUED",
    "SUSPECT",
    "TASK_STEPS",
    "Route",
    "Step",
    "Task",
    "TaskState",
    "move_on",
    "refer",
    "take_together",
]


class TaskState(IntEnum):
    QUEUED = 0
    SUSPECT = 1
    LEASED = 2
    DONE = 3
    HELD = 4  # its gateway has too many answers that it did not acknowledge


# A look at a member of an enum is ten times as dear as one at a global name; what each task or batch does asks these.
QUEUED, SUSPECT, LEASED, DONE, HELD = TaskState


class Step(IntEnum):
    LEASE = 0  # queue → worker
    RETURN = 1  # its lease ended without a result, through no fault of its own
    BLAME = 2  # a process died while running it, or its batch took too long
    ADVANCE = 3  # this stage is done, on to the next
    FINISH = 4  # the last stage is done
    FAIL = 5  # it deserves an error
    EXPIRE = 6  # its deadline passed while it waited
    CANCEL = 7  # nobody wants the answer
    POISON = 8  # it killed its worker too often, alone
    HOLD = 9  # its gateway does not take its answers
    FREE = 10  # it does again


ADVANCE = Step.ADVANCE


TASK_STEPS: Mapping[TaskState, Mapping[Step, TaskState]] = {
    TaskState.QUEUED: {
        Step.LEASE: TaskState.LEASED,
        Step.ADVANCE: TaskState.QUEUED,
        Step.FINISH: TaskState.DONE,
        Step.FAIL: TaskState.DONE,
        Step.EXPIRE: TaskState.DONE,
        Step.CANCEL: TaskState.DONE,
        Step.HOLD: TaskState.HELD,
    },
    TaskState.SUSPECT: {
        Step.LEASE: TaskState.LEASED,
        Step.ADVANCE: TaskState.QUEUED,
        Step.FINISH: TaskState.DONE,
        Step.FAIL: TaskState.DONE,
        Step.EXPIRE: TaskState.DONE,
        Step.CANCEL: TaskState.DONE,
    },
    TaskState.LEASED: {
        Step.RETURN: TaskState.QUEUED,
        Step.BLAME: TaskState.SUSPECT,
        Step.ADVANCE: TaskState.QUEUED,
        Step.FINISH: TaskState.DONE,
        Step.FAIL: TaskState.DONE,
        Step.CANCEL: TaskState.DONE,
        Step.POISON: TaskState.DONE,
    },
    TaskState.DONE: {},
    TaskState.HELD: {
        Step.ADVANCE: TaskState.QUEUED,
        Step.FINISH: TaskState.DONE,
        Step.FAIL: TaskState.DONE,
        Step.CANCEL: TaskState.DONE,
        Step.FREE: TaskState.QUEUED,
    },
}


class Route:
    """A named path: the indexes of its stages, in order, and for each of them the flags of a task and its lane there:
    twice the number of its step, and one more if that is the last."""

    __slots__ = ("flags", "lanes", "last", "path", "stages")

    def __init__(self, path: str, stages: tuple[int, ...]) -> None:
        self.last = last = len(stages) - 1
        self.path, self.stages = path, stages
        self.lanes = tuple(2 * hop + (hop == last) for hop in range(len(stages)))
        self.flags = tuple(
            int((State.INGRESS if hop == 0 else 0) | (State.EGRESS if hop == last else 0)) for hop in range(len(stages))
        )


class Task:
    """One request's unit of work. Times are seconds on the dispatcher's clock, `size` is bytes of payload."""

    __slots__ = (
        "__dict__",  # made for those that are in trouble, see below
        "arrived",
        "attempt",
        "compute_us",
        "context",
        "deadline",
        "gateway",
        "hop",
        "id",
        "kind",
        "lease",
        "memory",
        "payload",
        "queue_us",
        "route",
        "size",
        "state",
    )

    # At this stage; whoever has any of it was given back, and so has been attempted more than once.
    deaths = 0  # charged
    alone_deaths = 0  # of those, as the only row of its lease
    group_max = 0  # a suspect, and the largest batch that it may be in; 0: suspected of nothing
    returns = 0
    hedged = False  # given to a second worker because the first took too long

    def __init__(
        self,
        id: TaskId,
        route: Route,
        gateway: Gateway,
        payload: Payload,
        kind: int,
        deadline: float,
        arrived: float,
        context: Context | None,
    ) -> None:
        self.id = id
        self.route = route
        self.gateway = gateway
        self.payload = payload
        self.kind = kind
        self.deadline = deadline
        self.arrived = arrived  # at this stage's queue
        self.context = context
        self.size = len(payload)  # of what it stands for, if it is a reference
        self.memory = ""  # where that lies, if only its host can open it; of an inline payload it says nothing
        self.state = QUEUED
        self.hop = 0
        self.attempt = 1
        self.queue_us = 0
        self.compute_us = 0
        self.lease: Lease | None = None  # the one that counts

    @property
    def stage(self) -> int:
        return self.route.stages[self.hop]

    @property
    def stage_after(self) -> int | None:
        """Where its result goes; None if that is its answer."""
        return None if self.is_last_hop else self.route.stages[self.hop + 1]

    @property
    def is_last_hop(self) -> bool:
        return self.hop == self.route.last

    def take(self, step: Step) -> None:
        """The only assignment of `state`, with `take_together`; a step that is not in the table is a bug of ours."""
        following = TASK_STEPS[self.state].get(step)
        assert following is not None, f"task {self.id:x}: no {step.name} from {self.state.name}"
        self.state = following


def move_on(tasks: Sequence[Task], payloads: Sequence[Payload], kinds: Sequence[int], now: float) -> None:
    """To the queues of the next stages, with this stage's results; deaths belong to a stage and are forgotten."""
    take_together(tasks, ADVANCE)
    for task, payload, kind in zip(tasks, payloads, kinds, strict=True):
        task.hop += 1
        task.payload, task.kind, task.size = payload, kind, len(payload)
        task.arrived = now
        if task.attempt > 1:
            task.attempt = 1
            task.__dict__.clear()
        task.lease = None


def refer(tasks: Sequence[Task], sizes: Sequence[int], memory: str) -> None:
    """The payloads that they have now stand for so many bytes, some of which lie in that memory."""
    for task, size in zip(tasks, sizes, strict=True):
        task.size, task.memory = size, memory


def take_together(tasks: Sequence[Task], step: Step) -> None:
    """The same step for many, which are nearly always in the same state: one look into the table for all of these."""
    before, following = None, QUEUED
    for task in tasks:
        if task.state is not before:
            before = task.state
            found = TASK_STEPS[before].get(step)
            assert found is not None, f"task {task.id:x}: no {step.name} from {before.name}"
            following = found
        task.state = following

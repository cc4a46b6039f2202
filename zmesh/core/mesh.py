"""Everything a broker knows, and the few primitive changes that keep its counts true.

The mesh is the state; `intake`, `outcomes`, `endings` and `presence` say what each event does to it, and the dispatcher
is the door through which events come. Nobody else touches it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from random import Random

from zmesh.config import Limits, Plan
from zmesh.core.directory import Directory
from zmesh.core.effects import DispatcherEffect, Report, Send
from zmesh.core.peers import Gateway, Peer
from zmesh.core.stages import StageRecord
from zmesh.core.tasks import Route, Step, Task, TaskState
from zmesh.core.workers import Lease, Worker
from zmesh.messages import LeaseId, Message, Payload, SessionId, TaskId

__all__ = ["Mesh"]


class Mesh:
    """Mutable, owned by one dispatcher. `now` is the time of the turn in progress."""

    def __init__(self, plan: Plan, limits: Limits, random: Random, now: float) -> None:
        self.plan, self.limits, self.now = plan, limits, now
        self.stages = [StageRecord(stage, index) for index, stage in enumerate(plan.stages)]
        indexes = {stage.name: index for index, stage in enumerate(plan.stages)}
        self.routes = {r.path: Route(r.path, tuple(indexes[name] for name in r.stages)) for r in plan.routes}
        self.tasks: dict[TaskId, Task] = {}
        self.task_bytes = 0
        self.leases: dict[LeaseId, Lease] = {}
        self.late_leases: OrderedDict[LeaseId, Lease] = OrderedDict()  # ended, but results may still come
        self.lease_count = 0
        self.late = 0  # results that came too late to matter
        self.draining = False
        self.exiting: deque[tuple[float, Worker]] = deque()  # in the order in which their grace ends
        self.effects: list[DispatcherEffect] = []
        self.directory = Directory(plan, limits, random, self.effects)
        self.awake: dict[int, StageRecord] = {}  # stages to hand out from in this turn
        self.owed: dict[SessionId, Gateway] = {}  # gateways to reply to in this turn
        self._story: deque[tuple[float, str, object, list[TaskId]]] = deque(maxlen=limits.story_steps_max)

    def tell(self, peer: Peer, message: Message) -> None:
        peer.told = self.now
        self.effects.append(Send(peer.address, peer.session, message))

    def report(self, level: str, text: str) -> None:
        self.effects.append(Report(level, text))

    def remember(self, step: str, who: object, tasks: list[TaskId]) -> None:
        """One entry per message, not per task."""
        self._story.append((self.now, step, who, tasks))

    def story(self, task: TaskId) -> list[str]:
        """The last steps of a task that are still remembered, oldest first."""
        return [f"{at:.6f} {step} {who}" for at, step, who, ids in self._story if task in ids]

    def awaken(self, stage: StageRecord) -> None:
        self.awake[stage.index] = stage

    def enqueue(self, stage: StageRecord, tasks: list[Task]) -> None:
        """Tasks arrive at a stage, from a gateway or from the stage before."""
        stage.queue.push(tasks)
        stage.batcher.arrived(self.now, len(tasks))
        self.awake[stage.index] = stage

    def leave(self, task: Task) -> None:
        """Take back what a task's present state counts, before it changes."""
        stage = self.stages[task.stage]
        if task.state is TaskState.LEASED:
            stage.leased -= 1
        else:
            stage.queue.leave(task)

    def close(self, task: Task, step: Step, status: int | None = None, payload: Payload = b"", kind: int = 0) -> None:
        """The end of a task; with a status its gateway is told."""
        self.leave(task)
        self.bury(task, step, status, payload, kind)

    def bury(self, task: Task, step: Step, status: int | None = None, payload: Payload = b"", kind: int = 0) -> None:
        """The end of a task that no queue and no lease counts any more."""
        task.take(step)
        del self.tasks[task.id]
        self.task_bytes -= task.size
        gateway = task.gateway
        if status is not None and gateway.session in self.directory.sessions:
            gateway.owe(task, status, payload, kind)
            self.owed[gateway.session] = gateway

"""Everything a broker knows, and the few primitive changes that keep its counts true.

The mesh is the state; `intake`, `outcomes`, `endings`, `presence` and `silence` say what each event does to it, and the
dispatcher is the door through which events come. Nobody else touches it.
"""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict, deque
from operator import itemgetter
from random import Random

from zmesh.config import Limits, Plan
from zmesh.core.directory import Directory
from zmesh.core.effects import DispatcherEffect, Report, Send
from zmesh.core.events import Address
from zmesh.core.meters import Meters
from zmesh.core.midway import Midway
from zmesh.core.peers import Gateway, Peer
from zmesh.core.stages import StageRecord
from zmesh.core.tallies import SECONDS_BOUNDS, Histogram
from zmesh.core.tasks import DONE, LEASED, Route, Step, Task, move_on, refer, take_together
from zmesh.core.workers import Lease, Worker
from zmesh.messages import Drain, Kind, LeaseId, Message, Payload, PeerId, SessionId, Status, TaskId

__all__ = ["Mesh"]

HOST_BOUND, FINISH = int(Kind.HOST_BOUND), Step.FINISH


class Mesh:
    """Mutable, owned by one dispatcher. `now` is the time of the turn in progress."""

    def __init__(
        self, plan: Plan, limits: Limits, random: Random, now: float, host: str = "", agent: PeerId | None = None
    ) -> None:
        self.plan, self.limits, self.now, self.host, self.agent = plan, limits, now, host, agent
        self.midway = Midway(limits.midway_bytes_max, max((len(route.stages) for route in plan.routes), default=1))
        count = len(plan.stages)
        self.stages = [StageRecord(stage, index, self.midway, count) for index, stage in enumerate(plan.stages)]
        indexes = {stage.name: index for index, stage in enumerate(plan.stages)}
        self.routes = {r.path: Route(r.path, tuple(indexes[name] for name in r.stages)) for r in plan.routes}
        for route in self.routes.values():
            self._connect(route)
        self.tasks: dict[TaskId, Task] = {}
        self.task_bytes = 0
        self.leases: dict[LeaseId, Lease] = {}
        self.late_leases: OrderedDict[LeaseId, Lease] = OrderedDict()  # ended, but results may still come
        self.lease_count = 0
        self.meters = Meters()  # of user code
        self.loop_lag = Histogram(SECONDS_BOUNDS)  # of our event loop
        self.late = 0  # results that came too late to matter
        self.has_bound = False  # a payload came that only its host can open; before, nobody need be looked at for it
        self.drain: Drain | None = None  # what was asked for, once it was
        self.retiring: Drain | None = None  # the same, asked of the agent that we are a child of
        self.exiting: deque[tuple[float, Worker]] = deque()  # in the order in which their grace ends
        self.probes: dict[int, float] = {}  # sockets that lost somebody: when to ask their peers who it was
        self.probed: dict[int, float] = {}  # when that was done last
        self.effects: list[DispatcherEffect] = []
        self.directory = Directory(plan, limits, random, self.effects)
        self.awake: dict[int, StageRecord] = {}  # stages to hand out from in this turn
        self.owed: dict[SessionId, Gateway] = {}  # gateways to reply to in this turn
        self.held: dict[SessionId, Gateway] = {}  # gateways whose tasks are not leased, see `hold`
        self._story: deque[tuple[float, str, object, list[TaskId]]] = deque(maxlen=limits.story_steps_max)

    def _connect(self, route: Route) -> None:
        """Tell its stages of one another."""
        path = [self.stages[index] for index in route.stages]
        for stage, following in zip(path, [*path[1:], None], strict=True):
            stage.is_alone = stage.is_alone and len(path) == 1
            stage.after[following.index if following else None] = None
            if following is not None and stage not in following.before:
                following.before.append(stage)
                stage.onward.append(following)

    def end_in(self, seconds: float, worker: Worker) -> None:
        """Nothing will be expected of this worker any more after so long; what was said before does not hold."""
        worker.ends_at = self.now + seconds
        insort(self.exiting, (worker.ends_at, worker), key=itemgetter(0))

    def is_near(self, peer: Peer) -> bool:
        """Whether it is on the broker's host."""
        return not self.host or peer.host == self.host

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

    @property
    def is_finished(self) -> bool:
        """No task is left, and no answer that a gateway within reach has not acknowledged."""
        owing = [peer for peer in self.directory.gateways() if peer.lost_at is None and peer.kept.answered()]
        return not self.tasks and not owing

    def take_metrics(self, worker: Worker, address: Address, report: str) -> None:
        """What user code has counted there."""
        stage, is_here = self.stages[worker.stage].plan.name, worker.session in self.directory.sessions
        if problem := self.meters.take(worker.peer, stage, worker.tally.name, report, is_here=is_here):
            self.directory.strike(address, problem, self.now)
        for text in self.meters.complaints:
            self.report("warning", text)
        self.meters.complaints.clear()

    def awaken(self, stage: StageRecord) -> None:
        self.awake[stage.index] = stage

    def next_awake(self) -> StageRecord | None:
        """The next stage to hand out from in this turn. What one hands out may set free who is held up at another."""
        if self.midway.fell:
            self.midway.fell = False
            for stage in self.stages:
                if stage.queue.waiting:
                    self.awaken(stage)
        return self.awake.pop(next(iter(self.awake))) if self.awake else None

    def enqueue(self, stage: StageRecord, tasks: list[Task], alike_bytes: int | None = None) -> None:
        """Tasks arrive at a stage, from a gateway or from the stage before; with their bytes, if they are alike."""
        if alike_bytes is not None and not self.held:
            stage.queue.push_alike(tasks, alike_bytes)
        else:
            tasks = self.not_held(stage, tasks) if self.held else tasks
            stage.queue.push(tasks)
        stage.batcher.arrived(self.now, len(tasks))
        self.awake[stage.index] = stage

    def answered(self, stage: StageRecord, tasks: list[Task]) -> None:
        """A batch of these came back: whose task is done may ask again, and every stage of its route may expect it."""
        if stage.is_alone:
            stage.batcher.answered(self.now, len(tasks))
            return
        done = [task.route for task in tasks if task.state is DONE]
        if onward := len(tasks) - len(done):
            stage.batcher.passed_on(self.now, onward)
        stages: dict[int, int] = {}
        for route in dict.fromkeys(done):
            count = done.count(route)
            for index in route.stages:
                stages[index] = stages.get(index, 0) + count
        for index, count in stages.items():
            self.stages[index].batcher.answered(self.now, count)

    def leave(self, task: Task) -> None:
        """Take back what a task's present state counts, before it changes."""
        stage = self.stages[task.stage]
        if task.state is LEASED:
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
        task.payload = b""  # a lease that ended, or a queue, may remember the task for a while
        gateway = task.gateway
        if status is not None and gateway.session in self.directory.sessions:
            gateway.owed.add(task, status, payload, kind)
            self.owed[gateway.session] = gateway

    def refuse(self, gateway: Gateway, task: TaskId, status: Status, text: str, deadline: float) -> None:
        """An outcome for a task that never came to be."""
        gateway.refuse(task, status, text, deadline)
        self.owed[gateway.session] = gateway

    def begin_anew(self, task: Task, ms: int) -> None:
        """Its payload is lost: its gateway, which has the first one, submits it again. No queue and no lease counts it
        any more."""
        gateway = task.gateway  # which is there: with it, its tasks would be gone
        self.bury(task, Step.FAIL)
        gateway.give_back(task, ms)
        self.owed[gateway.session] = gateway

    def finish(self, tasks: list[Task], payloads: list[Payload], kinds: list[int]) -> None:
        """The good end of tasks that no queue and no lease counts any more: as `bury` for each, in whole columns."""
        take_together(tasks, FINISH)
        self.task_bytes -= sum([task.size for task in tasks])
        for task in tasks:
            del self.tasks[task.id]
            task.payload = b""
        gateways = {task.gateway for task in tasks}
        if len(gateways) == 1:  # nearly always
            self._owe(gateways.pop(), tasks, payloads, kinds)
        else:
            for task, payload, kind in zip(tasks, payloads, kinds, strict=True):
                self._owe(task.gateway, [task], [payload], [kind])

    def advance(
        self, tasks: list[Task], payloads: list[Payload], kinds: list[int], sizes: list[int] | None, memory: str
    ) -> dict[int, list[Task]]:
        """One step further, for tasks that no queue and no lease counts any more. Returns them by their next stage.

        With `sizes`, some payloads are references; what only their host can open lies in `memory`."""
        self.task_bytes += sum(map(len, payloads) if sizes is None else sizes) - sum([task.size for task in tasks])
        move_on(tasks, payloads, kinds, self.now)
        if sizes is not None:
            refer(tasks, sizes, memory)
            self.has_bound = self.has_bound or HOST_BOUND in kinds
        following = {task.route.stages[task.hop] for task in tasks}
        if len(following) == 1:  # nearly always
            return {following.pop(): tasks}
        return {stage: [task for task in tasks if task.stage == stage] for stage in sorted(following)}

    def _owe(self, gateway: Gateway, tasks: list[Task], payloads: list[Payload], kinds: list[int]) -> None:
        if gateway.session in self.directory.sessions:
            gateway.owed.add_good(tasks, payloads, kinds)
            self.owed[gateway.session] = gateway

    # Answers that a gateway did not acknowledge are never forgotten; a gateway with too many of them gets no new ones.

    def settle(self, gateway: Gateway) -> None:
        """Tell a gateway what it is owed."""
        for reply in gateway.settle(self.limits):
            self.tell(gateway, reply)
        if gateway.kept.bytes > self.limits.answer_bytes_max and gateway.session not in self.held:
            self._hold(gateway)

    def acknowledge(self, gateway: Gateway, handled: int) -> None:
        gateway.kept.acknowledge(handled)
        if self.held:
            self.relax(gateway)

    def relax(self, gateway: Gateway) -> None:
        """Its tasks are leased again once half the room for its answers is free."""
        if gateway.session in self.held and gateway.kept.bytes <= self.limits.answer_bytes_max // 2:
            self.release(gateway)

    def release(self, gateway: Gateway) -> None:
        """Nothing of this gateway is held back any more."""
        del self.held[gateway.session]
        for stage in self.stages:
            tasks = stage.queue.free(gateway)
            for task in tasks:
                task.take(Step.FREE)
            stage.queue.push_front(tasks)
            self.awaken(stage)

    def not_held(self, stage: StageRecord, tasks: list[Task]) -> list[Task]:
        """Those of them that may be leased; the others are held back."""
        self._hold_back(stage, [task for task in tasks if task.gateway.session in self.held])
        return [task for task in tasks if task.gateway.session not in self.held]

    def _hold(self, gateway: Gateway) -> None:
        """Lease nothing of its own any more; what is with workers, and suspects, are finished."""
        self.held[gateway.session] = gateway
        for stage in self.stages:
            self._hold_back(stage, stage.queue.pull(gateway))

    def _hold_back(self, stage: StageRecord, tasks: list[Task]) -> None:
        for task in tasks:
            task.take(Step.HOLD)
        stage.queue.hold(tasks)

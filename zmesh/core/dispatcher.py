"""The broker's half of the dialogue: the door to everything it knows, and the one place that hands out work.

`handle(*events, now)` records the facts of one turn and then hands out work once, so that everything that arrived
together is decided together. It returns effects; perform them in order. `next_wakeup()` is the only timer. Time is the
caller's monotonic clock, randomness a `Random` given in: the same events give the same effects.

Three kinds of wrong are told apart. Ours is an assertion. The peer's is a strike, and after a few it is not heard for a
while. The world's (a process died, a link broke, nobody reads) is an event like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from zmesh.config import Limits, Plan
from zmesh.core import endings, events, intake, orders, outcomes, presence, silence, streams
from zmesh.core.effects import DispatcherEffect
from zmesh.core.events import DispatcherEvent
from zmesh.core.mesh import Mesh
from zmesh.core.snapshot import snapshot_json
from zmesh.core.stages import Choice, StageRecord
from zmesh.core.tasks import Step, Task, take_together
from zmesh.core.workers import Lease, Worker
from zmesh.messages import Columns, Kind, LeaseId, PeerId, State, Status, TaskId, Tasks

__all__ = ["Dispatcher"]

HANDLERS: Mapping[type, Callable[..., None]] = {
    events.BatchFinished: outcomes.on_batch_finished,
    events.ChunkArrived: streams.on_chunk_arrived,
    events.TasksSubmitted: intake.on_tasks_submitted,
    events.TasksCancelled: intake.on_tasks_cancelled,
    events.CreditGranted: presence.on_credit_granted,
    events.PeerGreeted: presence.on_peer_greeted,
    events.PeerBeat: presence.on_peer_beat,
    events.PeerLeft: presence.on_peer_left,
    events.PeerUnreachable: presence.on_peer_unreachable,
    events.WorkerExited: presence.on_worker_exited,
    events.SendFailed: presence.on_send_failed,
    events.StatsAsked: presence.on_stats_asked,
    events.DrainAsked: presence.on_drain_asked,
    events.MessageBroken: presence.on_message_broken,
    events.ConnectionLost: silence.on_connection_lost,
    events.Stalled: silence.on_stalled,
    events.LoopLagged: lambda mesh, event: mesh.loop_lag.add(max(0.0, event.seconds)),
}
WHOLE = int(State.INGRESS | State.EGRESS)
HOST_BOUND, LEASE = int(Kind.HOST_BOUND), Step.LEASE
TOO_LATE = b"no answer before the deadline"


class Dispatcher:
    """Changed only by `handle`; touches no I/O. `mesh` is for reading."""

    def __init__(
        self, plan: Plan, limits: Limits, random: Random, now: float, *, host: str = "", agent: PeerId | None = None
    ) -> None:
        """`host` is this broker's, as workers name theirs in HELLO; without it all count as near. `agent` is the one
        whose child this broker is."""
        self.mesh = Mesh(plan, limits, random, now, host, agent)
        self._sweep_at = now + limits.heartbeat_seconds

    def handle(self, *events: DispatcherEvent, now: float) -> list[DispatcherEffect]:
        """Take what happened, decide once, and say what must be done."""
        mesh = self.mesh
        assert now >= mesh.now, "time never runs backwards"
        mesh.now = now
        for event in events:
            handler = HANDLERS.get(type(event))
            if handler is None:
                continue
            if mesh.directory.is_ignored(event, now):
                presence.on_peer_ignored(mesh, event)
            else:
                handler(mesh, event)
        while mesh.exiting and mesh.exiting[0][0] <= now:
            ends_at, worker = mesh.exiting.popleft()
            if worker.ends_at == ends_at:  # else it was put off
                presence.end_worker(mesh, worker)
        if now >= self._sweep_at:
            self._sweep_at = now + mesh.limits.heartbeat_seconds
            silence.sweep(mesh)
        if mesh.probes:
            silence.probe(mesh)
        for stage in mesh.stages:
            if stage.wake is not None and stage.wake <= now:
                mesh.awaken(stage)
            if stage.overdue_at is not None and stage.overdue_at <= now:
                orders.kill_overdue(mesh, stage)
        while mesh.awake or mesh.owed or mesh.midway.fell:
            while (awake := mesh.next_awake()) is not None:
                if awake.failing is None:
                    self._hand_out(awake)
                else:
                    presence.give_up(mesh, awake, awake.failing)
            for gateway in mesh.owed.values():
                mesh.settle(gateway)  # which may hold its tasks back, and so set others free
            mesh.owed.clear()
        effects = mesh.effects.copy()
        mesh.effects.clear()
        return effects

    def next_wakeup(self) -> float:
        """When `handle` must be called again even if nothing happens, on the clock of `now`."""
        wakeup = self._sweep_at
        for stage in self.mesh.stages:
            if stage.wake is not None and stage.wake < wakeup:
                wakeup = stage.wake
            if stage.overdue_at is not None and stage.overdue_at < wakeup:
                wakeup = stage.overdue_at
        if self.mesh.exiting and self.mesh.exiting[0][0] < wakeup:
            wakeup = self.mesh.exiting[0][0]
        return min(wakeup, *self.mesh.probes.values()) if self.mesh.probes else wakeup

    def story(self, task: TaskId) -> list[str]:
        """The last steps of a task that are still remembered, oldest first."""
        return self.mesh.story(task)

    def snapshot(self) -> str:
        """Everything an operator may want to see, as JSON text."""
        return snapshot_json(self.mesh)

    def _hand_out(self, stage: StageRecord) -> None:
        """The only place where work is handed out."""
        stage.wake = None
        queue = stage.queue
        while (queue.waiting or queue.suspects) and (choice := stage.choose(self.mesh.now)) is not None:
            batch = self._cut(stage, choice)
            wanted = self._still_wanted(stage, batch)
            if self.mesh.has_bound:
                wanted = self._within_reach(stage, choice.worker, wanted)
            if wanted:
                self._lease(stage, choice, wanted)

    def _cut(self, stage: StageRecord, choice: Choice) -> list[Task]:
        """A batch that one TASKS message can carry."""
        limits = self.mesh.limits
        queue = stage.queue
        cut = queue.cut_suspects if choice.suspect else queue.cut
        before = queue.bytes
        batch = cut(min(choice.size, limits.message_rows_max), limits.message_inline_bytes_max)
        stage.counts.bytes_in += before - queue.bytes
        return batch

    def _still_wanted(self, stage: StageRecord, batch: list[Task]) -> list[Task]:
        """Tasks whose time is over, or surely not enough, leave here."""
        mesh = self.mesh
        horizon = mesh.now + stage.least_remaining(mesh.now)
        late = [task for task in batch if task.deadline <= horizon]
        if not late:
            return batch
        stage.counts.expired += len(late)
        for task in late:
            stage.counts.bytes_in -= task.size
            mesh.bury(task, Step.EXPIRE, int(Status.TIMEOUT), TOO_LATE)
        return [task for task in batch if task.deadline > horizon]

    def _within_reach(self, stage: StageRecord, worker: Worker, batch: list[Task]) -> list[Task]:
        """Tasks whose payloads lie where this worker finds nothing leave here."""
        strays = [task for task in batch if task.kind == HOST_BOUND and task.memory != worker.memory]
        for task in strays:
            stage.counts.bytes_in -= task.size
            endings.start_over(self.mesh, stage, task)
        return [task for task in batch if task not in strays] if strays else batch

    def _lease(self, stage: StageRecord, choice: Choice, batch: list[Task]) -> None:
        mesh, now, worker = self.mesh, self.mesh.now, choice.worker
        mesh.lease_count += 1
        lease = Lease(LeaseId(mesh.lease_count), worker, batch, choice.suspect)
        mesh.leases[lease.id] = lease
        stage.crew.spend(worker, lease, now)
        if stage.overdue_at is None and stage.plan.timeout_seconds:
            stage.overdue_at = stage.kill_at(lease, mesh.limits)
        stage.leased += len(batch)
        stage.count_lease(worker, batch, choice.reason, now)
        take_together(batch, LEASE)
        for task in batch:
            task.lease = lease
        lease.ids = [task.id for task in batch]
        contexts = [task.context for task in batch]
        columns = Columns(
            lease.ids,
            [WHOLE] * len(batch) if stage.is_alone else [task.route.flags[task.hop] for task in batch],
            [ms if (ms := int((task.deadline - now) * 1000)) > 0 else 1 for task in batch],
            [task.attempt for task in batch],
            [task.kind for task in batch],
            [task.payload for task in batch],
            contexts if any(contexts) else None,
        )
        mesh.remember("leased to", f"{stage.plan.name}/{worker.worker_id}", lease.ids)
        mesh.tell(worker, Tasks(lease.id, columns, worker.take_acks(), stage.is_near(worker)))

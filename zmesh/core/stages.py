"""One stage as the dispatcher sees it: its queue, its crew, its sense of time, and what it has counted.

`choose` is the whole of the batching policy that concerns workers: who gets how many, now, or when to ask again. What
the clock says about a partial batch is the `Batcher`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from zmesh.config import Limits, StagePlan
from zmesh.core.batching import Batcher, Release
from zmesh.core.midway import Midway
from zmesh.core.queues import StageQueue
from zmesh.core.tallies import SECONDS_BOUNDS, Histogram, Tallies
from zmesh.core.tasks import Task
from zmesh.core.workers import Crew, Lease, Worker

__all__ = ["Choice", "StageCounts", "StageRecord"]

TALLIES_MAX = 512  # of workers in a mesh that are shown each by itself; a snapshot has to fit into a message


@dataclass(slots=True)
class StageCounts:
    """What happened since the broker started; only ever grows."""

    tasks_ok: int = 0
    tasks_error: int = 0
    bytes_in: int = 0  # of payloads handed to workers, each time counted
    bytes_out: int = 0  # of payloads that came back
    deaths: int = 0  # charged
    exits: int = 0  # worker processes that ended for whatever reason
    returned: int = 0  # tasks whose lease ended without a result
    poisoned: int = 0
    expired: int = 0
    cancelled: int = 0
    shed: int = 0
    released: dict[str, int] = field(default_factory=lambda: dict.fromkeys([why.value for why in Release], 0))


class Choice(NamedTuple):
    worker: Worker
    size: int
    reason: Release
    suspect: bool


class StageRecord:
    """Mutable, owned by the dispatcher."""

    def __init__(self, plan: StagePlan, index: int, midway: Midway, stages: int = 1) -> None:
        self.plan, self.index = plan, index
        self.queue = StageQueue(index, midway)
        self.crew = Crew()
        self.batcher = Batcher(plan.max_batch_size, plan.max_wait_ms / 1000, plan.batching)
        self.counts = StageCounts()
        self.tallies = Tallies(max(8, TALLIES_MAX // stages))
        self.queue_seconds = Histogram(SECONDS_BOUNDS)
        self.before: list[StageRecord] = []  # the stages whose results come here
        self.onward: list[StageRecord] = []  # the stages where its results go
        self.after: dict[int | None, None] = {}  # where its results go; None is their gateway
        self.is_alone = True  # the only one of every route that leads here
        self.leased = 0  # tasks with workers
        self.failing: str | None = None  # one line
        self.traceback = ""  # the whole of it
        self.was_ready = False
        self.wake: float | None = None  # when to ask `choose` again though nothing happens
        self.overdue_at: float | None = None  # no batch takes longer than the stage allows before then
        self._suspect_turn = True

    def is_near(self, worker: Worker) -> bool:
        """Whether everybody who may be given this worker's results can open its shared memory."""
        memory = worker.memory
        return bool(memory and self.onward) and all(stage.crew.memory == memory for stage in self.onward)

    def choose(self, now: float) -> Choice | None:
        """Who gets how many tasks now; None for nobody (then `wake` may say when to ask again)."""
        self.wake = None
        queue, crew = self.queue, self.crew
        waiting = queue.available
        worker = crew.longest_idle()
        if worker is not None and (self._suspect_turn or not waiting) and self._suspect_may_go():
            self._suspect_turn = False
            return Choice(worker, self._group_size(now), Release.SINGLE, True)
        if not waiting:
            return None
        choice = self._ordinary(worker, waiting, now)
        if choice is not None:
            self._suspect_turn = True
        return choice

    def _suspect_may_go(self) -> bool:
        """One waits, and no more than a quarter of the workers that are ready run one already."""
        if not self.queue.suspects:
            return False
        running = sum(lease.suspect for worker in self.crew.busy.values() for lease in worker.leases.values())
        return running < self._suspect_slots()

    def _suspect_slots(self) -> int:
        return max(1, self.crew.ready() // 4)

    def _group_size(self, now: float) -> int:
        """How many suspects to run together: one, if all of them are through in half the time that the most urgent
        has left; else the smallest power of two for which that holds, else as many as fit into a batch.

        What each of them may be in at most is the queue's to heed.
        """
        service, most = self.batcher.service, self.plan.max_batch_size
        left = [task.deadline - now for task in self.queue.suspects_here() if task.deadline > now]
        size = 1
        if left and service > 0:
            rounds = min(left) / 2 * self._suspect_slots() / service
            while size < most and -(-len(left) // size) > rounds:
                size *= 2
        return min(size, most)

    def _ordinary(self, worker: Worker | None, waiting: int, now: float) -> Choice | None:
        """A batch of those who are suspected of nothing; `worker` is the longest idle one."""
        most = self.plan.max_batch_size
        if waiting >= most:
            worker = worker or self._busy_worker(now)
            reason = Release.SINGLE if most == 1 else Release.FULL
            return None if worker is None else Choice(worker, most, reason, False)
        return None if worker is None else self._partial(worker, waiting, now)

    def _busy_worker(self, now: float) -> Worker | None:
        """Full batches go one ahead, where that holds up neither them nor a suspect, who needs an idle worker."""
        if self._suspect_may_go() or not self.batcher.prefetch_pays():
            return None
        return self.crew.next_free(now, self.batcher.service)

    def _partial(self, worker: Worker, waiting: int, now: float) -> Choice | None:
        crew, batcher = self.crew, self.batcher
        oldest = self.queue.oldest()
        others = len(crew.idle) - 1
        coming = self._coming if self.before else None
        pace = self._pace(worker)
        due = batcher.due(now, waiting, oldest, worker.idle_since, others, self._free_in, coming, pace)
        if due > now:
            self.wake = due
            return None
        size = -(-waiting // (others + 1)) if self.plan.spread else waiting
        return Choice(worker, size, batcher.reason(now, waiting, oldest, worker.idle_since), False)

    def _pace(self, worker: Worker) -> float:
        """How long batches take at this worker, as a multiple of what is usual: it may have an older GPU."""
        return self.batcher.pace(worker.seconds)

    def _free_in(self, now: float) -> float:
        """Seconds until one of the busy workers should be free; inf if nothing is known of that."""
        running = self.crew.longest_running()
        left = [self.batcher.remaining(now - lease.started, self._pace(worker)) for worker, lease in running]
        return min(left, default=inf)

    def _coming(self, now: float) -> list[tuple[float, int]]:
        """When the batches of the stages before this one should end, and how many tasks of each come here."""
        found = []
        for stage in self.before:
            for worker in stage.crew.busy.values():
                lease = worker.oldest()
                assert lease is not None, "who is busy has a lease"
                count = lease.left
                if len(stage.after) > 1:
                    count = sum(task.lease is lease and task.stage_after == self.index for task in lease.tasks)
                left = stage.batcher.remaining(now - lease.started, stage._pace(worker))
                found.append((now + left, count))
        return sorted(found)

    def count_lease(self, worker: Worker, batch: list[Task], reason: Release, now: float) -> None:
        """A batch leaves for this worker; its tasks' time in the queue is over."""
        queue_seconds, tally, size = self.queue_seconds, worker.tally, len(batch)
        self.counts.released[reason._value_] += 1  # `.value`, and the hash of a member, are calls into Python
        tally.sizes[(size - 1).bit_length()] += 1
        tally.tasks += size
        arrived, run = batch[0].arrived, 0
        waited_us = int((now - arrived) * 1e6)
        if self.plan.max_batch_size > 1:
            is_ahead = len(worker.leases) > 1
            tally.closing.add(0.0 if is_ahead else now - max(arrived, worker.idle_since))
        for task in batch:
            if task.arrived != arrived:  # who came in one message came together
                queue_seconds.add(now - arrived, run)
                arrived, run, waited_us = task.arrived, 0, int((now - task.arrived) * 1e6)
            run += 1
            task.queue_us += waited_us
        queue_seconds.add(now - arrived, run)

    def least_remaining(self, now: float) -> float:
        """Seconds a task must have left to be worth leasing: 0 unless the stage is sure that it cannot make it."""
        if self.crew.idle:
            return 0.0
        return self.batcher.shortest(now) or 0.0

    def lease_seconds(self, limits: Limits) -> float:
        """How long the oldest lease of a worker may be silent before its tasks are tried elsewhere as well.

        A stage with a timeout has its workers ended instead, and waits to see that it did not help.
        """
        longest = max(limits.lease_seconds_min, limits.lease_service_factor * self.batcher.longest)
        allowed = self.plan.timeout_seconds
        return max(longest, allowed + limits.kill_grace_seconds + limits.dead_seconds) if allowed else longest

    def kill_at(self, lease: Lease, limits: Limits) -> float:
        """When the worker of this lease is to be ended, for the first time or again. Only of a stage with a timeout."""
        if lease.killed_at is not None:
            return lease.killed_at + limits.heartbeat_seconds
        return lease.clock + self.plan.timeout_seconds + limits.kill_grace_seconds

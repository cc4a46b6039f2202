"""Workers of one stage: presence, credit and leases.

`Credit` is a worker's promise, a `Lease` the broker's. A worker says how many leases it wants in total since its HELLO;
what it was given, and what it brought along, is used up; a lease that completes grants one more by itself. So free
credit is `total - used`, and no message about it can be counted twice.

A crew keeps its workers in three orders, each a dict that costs the same with one worker and with a thousand: idle (the
longest idle first), ahead (busy with credit left) and busy (the earliest expected to finish first).

The steps of a worker's presence are a table; docs/states.md is drawn from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import IntEnum
from itertools import islice

from zmesh.core.events import Address
from zmesh.core.peers import Peer
from zmesh.core.tallies import Tally
from zmesh.core.tasks import DONE, Task
from zmesh.messages import LIST_ITEMS_MAX, Exited, Hello, LeaseId, SessionId, TaskId

__all__ = ["PRESENCE_STEPS", "Crew", "Lease", "Presence", "PresenceStep", "Worker"]

OVERDUE_FACTOR = 1.5  # past so many times its expected time a busy worker is given nothing ahead
RUNNING_LOOKED_AT_MAX = 8  # of those who run longest; with more of them one is free soon anyway


class Presence(IntEnum):
    STARTING = 0
    READY = 1
    DRAINING = 2
    LOST = 3  # its connection is gone, its process perhaps not
    EXITING = 4  # its process is gone, its last results perhaps still on their way
    GONE = 5


READY = Presence.READY  # by name it is cheaper, see `tasks`


class PresenceStep(IntEnum):
    READY = 0
    DRAIN = 1
    LOSE = 2  # EHOSTUNREACH
    EXIT = 3  # its agent saw the process end
    END = 4  # nothing more is expected of it


PRESENCE_STEPS: Mapping[Presence, Mapping[PresenceStep, Presence]] = {
    Presence.STARTING: {
        PresenceStep.READY: Presence.READY,
        PresenceStep.DRAIN: Presence.DRAINING,
        PresenceStep.LOSE: Presence.LOST,
        PresenceStep.EXIT: Presence.EXITING,
        PresenceStep.END: Presence.GONE,
    },
    Presence.READY: {
        PresenceStep.READY: Presence.READY,
        PresenceStep.DRAIN: Presence.DRAINING,
        PresenceStep.LOSE: Presence.LOST,
        PresenceStep.EXIT: Presence.EXITING,
        PresenceStep.END: Presence.GONE,
    },
    Presence.DRAINING: {
        PresenceStep.DRAIN: Presence.DRAINING,
        PresenceStep.LOSE: Presence.LOST,
        PresenceStep.EXIT: Presence.EXITING,
        PresenceStep.END: Presence.GONE,
    },
    Presence.LOST: {
        PresenceStep.LOSE: Presence.LOST,
        PresenceStep.EXIT: Presence.EXITING,
        PresenceStep.END: Presence.GONE,
    },
    Presence.EXITING: {
        PresenceStep.LOSE: Presence.EXITING,
        PresenceStep.EXIT: Presence.EXITING,
        PresenceStep.END: Presence.GONE,
    },
    Presence.GONE: {},
}


class Lease:
    """A batch in a worker's hands. Row `i` is `tasks[i]` as long as that task's own `lease` is this one."""

    __slots__ = (
        "answered",
        "clock",
        "id",
        "ids",
        "is_free",
        "is_interrupted",
        "is_open",
        "killed_at",
        "left",
        "started",
        "streamed",
        "stuck_since",
        "succeeded",
        "suspect",
        "tasks",
        "worker",
    )

    def __init__(self, id: LeaseId, worker: Worker, tasks: list[Task], suspect: bool) -> None:
        self.id, self.worker, self.tasks, self.suspect = id, worker, tasks, suspect
        self.ids: list[TaskId] = []  # of its tasks
        self.left = len(tasks)  # rows without a status
        self.answered = bytearray(len(tasks))
        self.started = 0.0  # when it was given, and again when it became its worker's oldest
        self.clock = 0.0  # the same, and again whenever some of its rows were answered: how long it is silent
        self.is_open = True
        self.is_free = False  # answered before its worker's HELLO: it costs and grants no credit there
        self.succeeded = False  # some row did
        self.is_interrupted = False  # its worker's agent was told to
        self.killed_at: float | None = None  # when its worker's agent was last told to, because it takes too long
        self.streamed: set[TaskId] | None = None  # of its tasks, those whose clients were told something
        self.stuck_since: float | None = None  # nobody wants it, and it runs for far too long

    def start(self, now: float) -> None:
        self.started = self.clock = now

    def is_wanted(self) -> bool:
        """Whether anybody waits for any of its rows, from this lease or from another."""
        stage = self.worker.stage
        return any(
            not answered and task.state is not DONE and task.stage == stage
            for answered, task in zip(self.answered, self.tasks, strict=True)
        )


class Worker(Peer):
    """One running copy of a stage, in one session."""

    __slots__ = (
        "acks",
        "batches",
        "ends_at",
        "exit",
        "has_succeeded",
        "idle_since",
        "is_beyond_reach",
        "leases",
        "may_interrupt",
        "memory",
        "presence",
        "seconds",
        "stage",
        "tally",
        "tasks",
        "total",
        "used",
        "worker_id",
    )

    def __init__(self, session: SessionId, address: Address, hello: Hello, stage: int, now: float) -> None:
        super().__init__(session, address, hello, now)
        self.stage = stage
        self.worker_id = hello.worker_id
        self.memory = hello.memory  # the shared memory that it can open; empty for none
        self.presence = Presence.STARTING
        self.total = 0  # leases wanted since HELLO
        self.used = 0  # leases given since HELLO, and those brought along
        self.leases: dict[LeaseId, Lease] = {}  # in the order they were given
        self.idle_since = now
        self.acks: list[LeaseId] = []
        self.exit: Exited | None = None
        self.ends_at: float | None = None  # when it is lost or exited: how long we wait for its last words
        self.tally = Tally()  # its stage has one for it, which it shares with its predecessors
        self.batches = 0
        self.tasks = 0
        self.seconds = 0.0  # that its batches take, see `Batcher.ran`
        self.has_succeeded = False  # it brought a batch to a good end
        self.may_interrupt = False  # it did so since it was last interrupted
        self.is_beyond_reach = False  # it was reported that no agent is there that could end it

    def succeed(self, former: Worker) -> None:
        """The same process in a new session."""
        self.batches, self.tasks, self.seconds = former.batches, former.tasks, former.seconds
        self.has_succeeded, self.may_interrupt = former.has_succeeded, former.may_interrupt

    def take(self, step: PresenceStep) -> None:
        following = PRESENCE_STEPS[self.presence].get(step)
        assert following is not None, f"worker {self.worker_id}: no {step.name} from {self.presence.name}"
        self.presence = following

    @property
    def credit(self) -> int:
        return self.total - self.used

    def take_acks(self) -> list[LeaseId]:
        """What to acknowledge now, as many as one message may carry."""
        acks, self.acks = self.acks[:LIST_ITEMS_MAX], self.acks[LIST_ITEMS_MAX:]
        return acks

    def oldest(self) -> Lease | None:
        """What it runs now."""
        return next(iter(self.leases.values()), None)


class Crew:
    """The workers of one stage that can be given work, and when. `memory` is the shared memory that all of them can
    open, or that the last of them could while there is none; empty if there is no such memory."""

    __slots__ = ("ahead", "busy", "idle", "memory", "workers")

    def __init__(self) -> None:
        self.memory = ""
        self.workers: dict[SessionId, Worker] = {}
        self.idle: dict[SessionId, Worker] = {}
        self.ahead: dict[SessionId, Worker] = {}
        self.busy: dict[SessionId, Worker] = {}

    def join(self, worker: Worker) -> None:
        self.workers[worker.session] = worker
        self._look_at_memory()
        self.sort(worker)

    def part(self, worker: Worker) -> None:
        self.workers.pop(worker.session, None)
        self._look_at_memory()
        self.idle.pop(worker.session, None)
        self.ahead.pop(worker.session, None)
        self.busy.pop(worker.session, None)

    def _look_at_memory(self) -> None:
        if self.workers:
            first = next(iter(self.workers.values())).memory
            self.memory = first if all(worker.memory == first for worker in self.workers.values()) else ""

    def ready(self) -> int:
        """How many workers could run a batch, now or after what they hold."""
        return sum(worker.presence is READY for worker in self.workers.values())

    def sort(self, worker: Worker) -> None:
        """Put a worker where its leases and its credit belong; it keeps its place if that did not change."""
        session = worker.session
        usable = worker.presence is READY and worker.total > worker.used
        if worker.leases:
            self.idle.pop(session, None)
            self.busy.setdefault(session, worker)
            if usable and not next(iter(worker.leases.values())).suspect:
                self.ahead.setdefault(session, worker)
            else:
                self.ahead.pop(session, None)
        else:
            self.busy.pop(session, None)
            self.ahead.pop(session, None)
            if usable:
                self.idle.setdefault(session, worker)
            else:
                self.idle.pop(session, None)

    def spend(self, worker: Worker, lease: Lease, now: float) -> None:
        """A lease is given: it takes one credit."""
        assert worker.credit > 0, "never above credit"
        worker.used += 1
        lease.start(now)
        worker.leases[lease.id] = lease
        self.sort(worker)

    def release(self, worker: Worker, lease: Lease, now: float, grant: bool) -> None:
        """A lease is over. One that was finished grants a new one; the next in the worker's hands starts its clock."""
        lease.is_open = False
        was_oldest = worker.oldest() is lease
        del worker.leases[lease.id]
        if grant and not lease.is_free:
            worker.total += 1
        if was_oldest:
            self.busy.pop(worker.session, None)
            self.ahead.pop(worker.session, None)
            following = worker.oldest()
            if following is not None:
                worker.tally.ahead.add(now - following.started)
                following.start(now)
            else:
                worker.idle_since = now
        self.sort(worker)

    def longest_idle(self) -> Worker | None:
        return next(iter(self.idle.values()), None)

    def next_free(self, now: float, service: float) -> Worker | None:
        """The busy worker with credit that is expected to finish first, unless it is overdue. `service` is what is
        usual at the stage, by which a slow worker is soon overdue, and should be: what is given ahead waits there."""
        for worker in self.ahead.values():
            oldest = worker.oldest()
            if oldest is not None and (service <= 0 or now - oldest.started <= OVERDUE_FACTOR * service):
                return worker
        return None

    def longest_running(self) -> Iterator[tuple[Worker, Lease]]:
        """A few of the busy workers and what they run, longest first."""
        for worker in islice(self.busy.values(), RUNNING_LOOKED_AT_MAX):
            lease = worker.oldest()
            assert lease is not None, "who is busy has a lease"
            yield worker, lease

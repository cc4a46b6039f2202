"""One host: an agent (zmesh/agent.py) and the workers it starts (zmesh/stage.py), in virtual time.

A worker reads everything that was said to it, then runs what it has to run, and hears nothing while it runs `forward`.
Its agent sees its exit, tells the broker what the slate said, and starts another one when the restart rules allow it.
An agent that dies takes its workers with it and nobody reports that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from tests.simulation.actors import RETRY_SECONDS, whole_ms
from tests.simulation.checks import Broken
from tests.simulation.model import Batch, Part, Slate
from tests.simulation.network import Cable, PeerLine
from tests.simulation.world import Process
from zmesh.config import StagePlan
from zmesh.core.agency import AgentEvent, AgentLink, Beat, End, Retire, WorkerGone
from zmesh.core.effects import Leave, Reconnect, Report, Run, SessionEffect, Transmit
from zmesh.core.events import DrainAsked, LinkLost, SessionEvent, Started, Tick
from zmesh.core.restarts import Deeds, Restarts
from zmesh.core.session import Session
from zmesh.messages import (
    Credit,
    Drain,
    Exited,
    Kill,
    LeaseId,
    Message,
    PeerId,
    Phase,
    SessionId,
    Status,
    WorkerBeat,
    WorkerState,
)

if TYPE_CHECKING:
    from tests.simulation.simulation import Simulation

__all__ = ["Agent", "Slot", "Worker"]

BOOT_SECONDS = (0.05, 0.30)
EXIT_SEEN_SECONDS = 0.001
SEGFAULT, KILLED, TERMINATED = -11, -9, -15
RETIRING_SECONDS = 2.5
EVENTS = (0, 1, 1, 2, 5)  # how many a batch says


class Worker(Process):
    """One worker process. `ended` is called with its exit code."""

    def __init__(
        self,
        simulation: Simulation,
        name: str,
        stage: StagePlan,
        number: int,
        cable: Cable,
        ended: Callable[[Worker, int], None],
        *,
        fingerprint: str = "",
    ) -> None:
        super().__init__(simulation.world, name)
        self.simulation, self.checks, self.stage, self.number = simulation, simulation.checks, stage, number
        self.dice = self.world.dice(f"worker {name}")
        self.peer = PeerId(self.dice.randbytes(16))
        self.slate = Slate()
        self.session = Session(
            peer=self.peer,
            stage=stage.name,
            worker_id=number,
            host=name.partition("/")[0].partition(".")[0],
            pid=1000 + number,
            fingerprint=fingerprint or simulation.plan.fingerprint,
            max_batch_size=stage.max_batch_size,
            prefetch=stage.prefetch,
            limits=simulation.limits,
            memory=name.partition("/")[0].partition(".")[0],
        )
        index = simulation.plan.stages.index(stage) + 1
        self.line = PeerLine(simulation.network, index, cable, self)
        self.batch: Batch | None = None
        self.is_ready = self.is_booted = self.was_out_of_memory = False
        self.may_be_interrupted = False  # it has finished something since it last was
        self.part_began = 0.0
        self.slow_batch_seconds = 0.0  # how much longer its next batch takes
        self.sick_until = 0.0
        self.on_ready: Callable[[], None] = lambda: None
        self._ended = ended
        self._connect_at: float | None = None
        self._next: Run | None = None
        self._left: Leave | None = None
        self._orders: list[DrainAsked | LinkLost] = []
        self.world.after(self.dice.uniform(*BOOT_SECONDS), self._boot)

    def _boot(self) -> None:
        if not self.is_alive:
            return
        if self.simulation.is_broken(self.stage.name):
            self.exit(1)
            return
        self.is_booted = True
        self.slate.write(0, Phase.IDLE)
        self._connect_at = self.world.now
        self.wake()

    # What its agent or the kernel does.

    def order_drain(self, seconds: float) -> None:
        deadline_ms = max(1, int(seconds * 1000))
        self._orders.append(DrainAsked((0, b""), SessionId(0), Drain(deadline_ms, "the agent stops")))
        self.wake()

    def order_epoch(self, epoch: int) -> None:
        """Its agent has met another broker."""
        if self.session.epoch not in (0, epoch):
            self._orders.append(LinkLost())
            self.wake()

    def exit(self, code: int, *, linger: bool = False) -> None:
        """The process ends."""
        if self.is_alive:
            self.is_alive = False
            self.checks.worker_ended(self, code)
            self.line.disconnect(linger=linger)
            self._ended(self, code)

    # The loop.

    def turn(self) -> None:
        if self.batch is not None or not self.is_booted:
            return  # inside `forward`: nobody listens
        self._listen()
        self._go_on()

    def _go_on(self) -> None:
        if self._left is not None:
            self.exit(self._left.exit_code, linger=True)
        elif self.is_alive and self._next is not None:
            self._begin()
        else:
            self._arm()

    def _listen(self) -> None:
        happened: list[SessionEvent] = []
        if self._connect_at is not None and self.world.now >= self._connect_at:
            self._connect_at = None
            self.line.connect()
            happened.append(Started())
        happened += self._orders
        self._orders = []
        happened += self.line.receive()
        if self.line.is_parking:
            self.line.flush()
            if self.line.is_overfull:
                happened.append(LinkLost())
        if happened or self._next is None:
            self._handle(*(happened or [Tick()]))

    def _handle(self, *happened: SessionEvent) -> None:
        self.checks.session_hears(self, happened)
        effects = self.session.handle(*happened, now=self.world.now)
        self.checks.session_says(self, effects)
        for effect in effects:
            self._perform(effect)

    def _perform(self, effect: SessionEffect) -> None:
        match effect:
            case Transmit(session, message):
                self.line.send(session, message)
                if type(message) is Credit and message.state is WorkerState.READY and not self.is_ready:
                    self.is_ready = True
                    self.on_ready()
            case Run():
                self._next = effect
            case Reconnect(after_seconds):
                self.world.tell(self.name, f"connects anew in {after_seconds:.3f} s")
                self.hurt()
                self.line.disconnect()
                self._connect_at = self.world.now + after_seconds
            case Report(level, text):
                self.world.tell(self.name, f"{level}: {text}")
            case Leave(reason):
                self.world.tell(self.name, f"leaves: {reason}")
                self._left = effect

    def remake_socket(self) -> None:
        """The program makes a fresh socket without being asked to."""
        if self.batch is None and self.is_booted and self._left is None:
            self.hurt()
            self._connect_at = None
            self.line.connect()
            self._handle(Started())
            self._go_on()

    def _arm(self) -> None:
        now = self.world.now
        at = self.session.next_wakeup()
        if at is not None:
            self.wake_at(now + max(0.001, whole_ms(at - now)))
        if self._connect_at is not None:
            self.wake_at(max(now, self._connect_at))
        if self.line.is_parking and self.line.connection is not None:
            self.wake_at(now + RETRY_SECONDS)

    # Running a batch.

    def _begin(self) -> None:
        lease, self._next = self._next, None
        assert lease is not None
        asks = self.checks.asks_of(self, lease)
        self.batch = Batch(lease, asks, self.stage.name, retry=self.stage.retry, now=self.world.now)
        self._begin_part()

    def _begin_part(self) -> None:
        batch = self.batch
        assert batch is not None
        cost = self.simulation.scenario.costs[self.stage.name]
        self.part_began = self.world.now
        sick = self.name.encode() if self.world.now < self.sick_until else b""
        part = batch.begin(self.world.now, self.session.cancelled_running, self.dice, cost, sick)
        if part.rows:
            part.seconds += self.slow_batch_seconds
            self.simulation.faults.lasts(self.slow_batch_seconds)
            self.slow_batch_seconds = 0.0
            self.slate.write(batch.lease.lease, Phase.FORWARD)
            if self.world.is_told:
                text = f"runs {len(part.rows)} rows of lease {batch.lease.lease}"
                self.world.tell(self.name, text, [batch.asks[row].id for row in part.rows])
            self.checks.part_begins(self, batch, part)
            if self.stage.name in self.simulation.scenario.speakers:
                self._will_speak(batch, part)
            self.simulation.faults.part_begins(self, part, batch.asks)
        left = batch.clock + self.stage.timeout_seconds - self.world.now
        if self.stage.timeout_seconds and left < part.seconds and part.hears_signals:
            self.world.after(max(0.0, left), self._alarm, batch, part)
        elif part.seconds:
            self.world.after(part.seconds, self._end_part, batch, part)
        else:
            self._end_part(batch, part)

    def _will_speak(self, batch: Batch, part: Part) -> None:
        for _ in range(self.dice.choice(EVENTS)):
            self.world.after(part.seconds * self.dice.random(), self._speak, batch, part)

    def _speak(self, batch: Batch, part: Part) -> None:
        if not self.is_alive or self.is_stopped or self.batch is not batch or batch.part is not part:
            return
        event = batch.speak(self.session.cancelled_running)
        if event is not None:
            self.checks.speaks(self, batch, event)
            self._handle(event)

    def _alarm(self, batch: Batch, part: Part) -> None:
        """SIGALRM in `forward`, or as soon as the process runs again."""
        if self.is_alive and self.batch is batch and self.is_stopped:
            self.world.at(self.stopped_until + 0.001, self._alarm, batch, part)
        elif self.is_alive and self.batch is batch and batch.part is part:
            self.checks.part_overran(self, batch)
            text = b"request timeout: the stage took longer than %g s" % self.stage.timeout_seconds
            self._break_off(batch, part, Status.TIMEOUT, text)

    def interrupt(self, lease: int) -> None:
        """SIGUSR1: it is heard in `forward` only, and only if it is meant for this lease."""
        batch, slate = self.batch, self.slate
        if batch is None or (slate.lease, slate.phase) != (lease, Phase.FORWARD) or self.is_stopped:
            return
        part = batch.part
        if part is not None and part.hears_signals:
            self.checks.interrupted(self, batch)
            self._break_off(batch, part, Status.CANCELLED, b"nobody waits for it")

    def _break_off(self, batch: Batch, part: Part, status: Status, text: bytes) -> None:
        self.world.tell(self.name, f"breaks off lease {batch.lease.lease}: {status.name}")
        batch.break_off(status, text)
        self._end_part(batch, part)

    def _end_part(self, batch: Batch, part: Part) -> None:
        if not self.is_alive or self.batch is not batch or batch.part is not part:
            return
        if self.is_stopped:
            self.world.at(self.stopped_until + 0.001, self._end_part, batch, part)
            return
        if part.killer is not None:
            ask, phase, row = part.killer
            ask.kills += 1
            self.slate.write(batch.lease.lease, phase, row if phase is not Phase.FORWARD else 0)
            self.world.tell(self.name, f"dies of {ask.nonce} in {phase.name.lower()}", [ask.id])
            self.exit(self.dice.choice((SEGFAULT, -6, 1)))
            return
        self.checks.part_ends(self, batch, part)
        if part.rows:
            self.slate.write(batch.lease.lease, Phase.ENCODE, part.rows[-1])
        batch.part = None
        if part.event is not None:
            batch.clock = self.world.now
            self._handle(part.event)
        if batch.todo:
            self._listen()
            self._begin_part()
            return
        self.world.after(10e-6, self._finish, batch)

    def _finish(self, batch: Batch) -> None:
        """A moment later than the send, in which it may die: the slate still names the lease."""
        if not self.is_alive:
            return
        if self.is_stopped:
            self.world.at(self.stopped_until, self._finish, batch)
            return
        self.slate.finish()
        self.may_be_interrupted = self.may_be_interrupted or (batch.succeeded and not batch.is_broken_off)
        self.batch = None
        self.turn()


@dataclass(eq=False)
class Slot:
    """A place for one worker of a stage on this host, and the way from there to the broker."""

    stage: StagePlan
    number: int
    restarts: Restarts
    cable: Cable
    worker: Worker | None = None
    start_at: float | None = None


class Agent(Process):
    """The parent of one host's workers."""

    def __init__(self, simulation: Simulation, host: int, life: int) -> None:
        super().__init__(simulation.world, f"h{host}.{life}" if life else f"h{host}")
        self.simulation, self.checks, self.host, self.life = simulation, simulation.checks, host, life
        dice = self.world.dice(f"agent {host} {life}")
        self.peer = PeerId(dice.randbytes(16))
        self.host_name = f"h{host}"
        self.link = AgentLink(self.peer, self.host_name, 10 + host, simulation.plan.fingerprint, simulation.limits)
        self.is_retiring = False
        seconds = simulation.scenario.wire_seconds
        self.cable = Cable(self.name, seconds)
        self.line = PeerLine(simulation.network, 0, self.cable, self)
        self.slots: list[Slot] = []
        for stage in simulation.plan.stages:
            restarts = Restarts(stage.num, Random(dice.getrandbits(32)))
            for number in range(1, stage.num + 1):
                cable = Cable(f"{self.name}/{stage.name}/{number}", seconds)
                self.slots.append(Slot(stage, number, restarts, cable, start_at=self.world.now))
        self._processes = self._epoch = 0
        self._connect_at: float | None = self.world.now
        self._gone: list[tuple[Worker, int, bool]] = []
        self.wake()

    @property
    def workers(self) -> list[Worker]:
        return [slot.worker for slot in self.slots if slot.worker is not None and slot.worker.is_alive]

    def turn(self) -> None:
        now = self.world.now
        self._start_due()
        events: list[AgentEvent] = [Tick()]
        if self._connect_at is not None and now >= self._connect_at:
            self._connect_at = None
            self.line.connect()
            events.append(Started())
        self.line.flush()
        gone, self._gone = self._gone, []
        for worker, code, is_oom in gone:
            events.append(WorkerGone(self._bury(worker, code, is_oom=is_oom)))
        self._handle(*events, *self.line.receive())
        self._arm()

    def _handle(self, *events: AgentEvent) -> None:
        self.checks.agent_hears(events)
        effects = self.link.handle(*events, now=self.world.now)
        self.checks.agent_says(effects)
        if self.link.joined and self.link.epoch != self._epoch:
            self._epoch = self.link.epoch
            for worker in self.workers:
                worker.order_epoch(self._epoch)
        for effect in effects:
            match effect:
                case Transmit(session, message):
                    self._say(session, message)
                case Beat(session):
                    self._say(session, self.link.heartbeat([self._beat(slot) for slot in self.slots if slot.worker]))
                case Reconnect(after_seconds):
                    self.hurt()
                    self.line.disconnect()
                    self._connect_at = self.world.now + after_seconds
                case Report(level, text):
                    self.world.tell(self.name, f"{level}: {text}")
                case Retire(drain):
                    self._retire(drain)
                case Leave(reason):
                    raise Broken(f"{self.name}, who is welcome, leaves: {reason}")
                case End(kill):
                    for worker in self.workers:
                        if worker.peer == kill.peer and worker.slate.lease == kill.lease:
                            self._obey(worker, kill)

    def _retire(self, drain: Drain) -> None:
        if self.is_retiring:
            return
        self.is_retiring = True
        self.world.tell(self.name, f"retires: {drain.reason}")
        for slot in self.slots:
            slot.start_at = None
        for worker in self.workers:
            worker.order_drain(RETIRING_SECONDS)
        self.simulation.faults.retires(self)

    def _obey(self, worker: Worker, kill: Kill) -> None:
        self.world.tell(self.name, f"{'interrupts' if kill.interrupt else 'kills'} {worker.name}: {kill.reason}")
        if kill.interrupt:
            worker.interrupt(kill.lease)
            return
        if worker.batch is not None:
            self.checks.killed_by_order(worker, worker.batch, kill)
        worker.exit(KILLED)

    def _say(self, session: SessionId, message: Message) -> None:
        self.line.send(session, message)

    def _arm(self) -> None:
        now = self.world.now
        at = self.link.next_wakeup()
        if at is not None:
            self.wake_at(now + max(0.001, whole_ms(at - now)))
        moments = [slot.start_at for slot in self.slots if slot.start_at is not None]
        for moment in [*moments, *([self._connect_at] if self._connect_at is not None else [])]:
            self.wake_at(max(now, moment))
        if self.line.is_parking and self.line.connection is not None:
            self.wake_at(now + RETRY_SECONDS)

    # Processes.

    def _start_due(self) -> None:
        for slot in self.slots:
            if slot.start_at is not None and self.world.now >= slot.start_at:
                slot.start_at = None
                self._processes += 1
                name = f"{self.name}/{slot.stage.name}/{slot.number}#{self._processes}"
                slot.worker = Worker(self.simulation, name, slot.stage, slot.number, slot.cable, self._saw_exit)
                slot.worker.on_ready = slot.restarts.started
                self.checks.worker_started(slot.worker)

    def _saw_exit(self, worker: Worker, code: int) -> None:
        self._gone.append((worker, code, worker.was_out_of_memory))
        self.wake_at(self.world.now + EXIT_SEEN_SECONDS)

    def _bury(self, worker: Worker, code: int, *, is_oom: bool) -> Exited:
        slot = next(slot for slot in self.slots if slot.worker is worker)
        deeds = Deeds.WORKED if worker.slate.finished else Deeds.READY if worker.is_ready else Deeds.NONE
        now, slate = self.world.now, worker.slate
        slot.worker = None
        wait = slot.restarts.died(slot.number, deeds, now)
        slot.start_at = None if self.is_retiring else now + wait
        reason = "Traceback\nRuntimeError: no weights" if deeds is Deeds.NONE else f"exit code {code}"
        lease = LeaseId(slate.lease)
        is_failing = slot.restarts.is_failing
        self.world.tell(self.name, f"buries {worker.name}: {code} {slate} oom={is_oom} failing={is_failing}")
        return Exited(
            worker.peer, slot.stage.name, slot.number, code, lease, slate.phase, slate.row, is_oom, reason, is_failing
        )

    def _beat(self, slot: Slot) -> WorkerBeat:
        worker = slot.worker
        assert worker is not None
        lease = LeaseId(worker.slate.lease)
        return WorkerBeat(worker.peer, slot.stage.name, slot.number, 1, lease, worker.slate.phase, 0)

    def die(self) -> None:
        """SIGKILL. Its workers see the end of the pipe, or the kernel sees to it."""
        self.is_alive = False
        for slot in self.slots:
            slot.start_at = None
        for worker in self.workers:
            worker.exit(KILLED)
        self.line.disconnect()

    def remake_socket(self) -> None:
        self.hurt()
        self._connect_at = None
        self.line.connect()
        self._handle(Started())
        self._arm()

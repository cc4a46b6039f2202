"""What must hold in every world, checked while it happens: the invariants of the design, by number.

I1 each accepted request has one outcome. I2 never two. I3 it is the answer to that request: its nonce, and the stages
of its route in order. I4 it comes by the deadline and 250 ms, counting only time in which its gateway ran. I5 nothing
runs twice at the same time without an excuse, and what may run only once never starts twice. I6 tables are bounded. I7
after the last fault all of them drain to nothing and fresh requests are answered. I8 a poison ends few processes, and
innocents are not punished. I10 no worker holds more than it asked for. I11 nothing starts after its cancel or its
deadline came to that worker. I12 no task waits beside an idle worker for longer than its stage may wait.

What I5 promises. A second process may start a row while the first still runs it only if the broker could not know
better: one of them was stopped or cut off, the first runs for so long that its lease was hedged, or was given the row
by a broker that is gone; or the gateway came back from a broken connection and asked again. A once-only row has no
excuse.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from math import log2
from typing import TYPE_CHECKING

from tests.simulation.model import SICK, Ask, Batch, Flaw, Part, nonce_of
from tests.simulation.network import name_of
from zmesh.core import endings, events, invariants, link, sequences
from zmesh.core.effects import DispatcherEffect, Run, Send
from zmesh.core.events import Address, DispatcherEvent, Heard, RowsStreamed
from zmesh.core.tasks import TaskState
from zmesh.messages import Cancel, Kill, Payload, Phase, Reply, Results, State, Status, Tasks

if TYPE_CHECKING:
    from tests.simulation.actors import Broker, Gateway
    from tests.simulation.host import Worker
    from tests.simulation.simulation import Simulation

__all__ = ["Broken", "Checks"]

LATE_SECONDS = 0.250  # after its deadline, an outcome may be so late
EARLY_SECONDS = 1.0  # before it, a stage may be sure that it cannot make it
HEDGE_SLACK_SECONDS = 0.5  # a lease is as much older than its run: the way to the worker
CHECK_EVERY = 16  # turns of a broker between two looks at everything
CLOSED_SESSIONS_MAX = STRUCK_MAX = 1024
RETURNS_EXTRA = 1
MIDWAY_BYTES_PLENTY = 2**20  # no simulation has so much
OK, TIMEOUT, SHED, INTERNAL = int(Status.OK), int(Status.TIMEOUT), int(Status.SHED), int(Status.INTERNAL)
POISONED, UNAVAILABLE, TOO_LARGE = int(Status.POISONED), int(Status.UNAVAILABLE), int(Status.TOO_LARGE)
CHARGED = (-11, -6, 1, 0)  # exit codes that somebody is blamed for


class Broken(AssertionError):
    """Something that must hold does not; `ask` is the request it is about, if it is about one."""

    def __init__(self, text: str, ask: Ask | None = None) -> None:
        super().__init__(text)
        self.ask = ask


class Checks:
    """Sees everything, changes nothing."""

    def __init__(self, simulation: Simulation, hits: Counter[str]) -> None:
        self.simulation, self.world, self.hits = simulation, simulation.world, hits
        self.asks: list[Ask] = []
        self.by_id: dict[int, Ask] = {}
        self.outcomes: Counter[str] = Counter()
        self.is_thorough = False  # look at everything after every turn
        self.brokers: list[tuple[int, float]] = []  # epoch, and since when
        self.failing_at: dict[str, float] = {}  # by stage: when it was last seen failing
        self._said_failing: dict[str, float] = {}
        self._was_failing: dict[str, bool] = {}
        self._turns = 0
        self._heard = 0
        self._running: dict[tuple[int, str], Worker] = {}
        self._tasks: dict[Worker, dict[int, tuple[int, list[float]]]] = {}
        self._cancels: dict[Worker, dict[int, int]] = {}
        self._void: dict[bytes, bool] = {}  # errors of sick workers that came too late to count
        self._spoken: dict[tuple[int, str, int], int] = {}  # events, by task, worker and lease
        self._most = 0  # tasks that the broker can have had in this turn

    def expect(self, condition: object, text: str, ask: Ask | None = None) -> None:
        if not condition:
            raise Broken(text, ask)

    def add(self, ask: Ask) -> None:
        self.asks.append(ask)

    # ── the broker ────────────────────────────────────────────────────────────────────────────────────────────────

    def broker_started(self, broker: Broker) -> None:
        self.brokers.append((broker.epoch, self.world.now))
        self._was_failing.clear()

    def broker_hears(self, broker: Broker, happened: Sequence[DispatcherEvent]) -> None:
        self._see_failing(broker)
        self._most = len(broker.dispatcher.mesh.tasks)
        for event in happened:
            self.hits[f"the dispatcher hears {type(event).__name__}"] += 1
            if type(event) is events.TasksSubmitted:
                self._most += len(event.message.columns.ids)
            elif type(event) is events.BatchFinished and INTERNAL in event.message.statuses:
                self._note_void(broker, event.message)
            if type(event) is events.WorkerExited and event.message.failing:
                self._said_failing[event.message.stage] = self.world.now

    def broker_says(self, broker: Broker, effects: Sequence[DispatcherEffect]) -> None:
        self._see_failing(broker)
        for effect in effects:
            self.hits[f"the dispatcher asks for {type(effect).__name__}"] += 1
            if type(effect) is Send:
                if type(effect.message) is Tasks:
                    self._given(broker, effect.address, effect.message)
                    self._check_midway(broker, effect.message)
                elif type(effect.message) is Reply:
                    self._replied(broker, effect.message)

    def _replied(self, broker: Broker, reply: Reply) -> None:
        if SHED in reply.statuses:
            limit = broker.dispatcher.mesh.limits.queue_tasks_max
            for id, status in zip(reply.ids, reply.statuses, strict=True):
                if status == SHED and not self.by_id[id].is_shed:  # else it is said again
                    self.by_id[id].is_shed = True
                    self.expect(self._most > limit, f"one is shed with {self._most} there, {limit} may wait")
        if INTERNAL in reply.statuses:
            for id, payload in zip(reply.ids, reply.payloads, strict=True):
                if payload in self._void:
                    raise Broken(f"an error counts whose lease does not have the task: {payload!r}", self.by_id[id])

    def _note_void(self, broker: Broker, results: Results) -> None:
        """Remember the errors that must not count: those from a lease that does not have the task now."""
        mesh = broker.dispatcher.mesh
        lease = mesh.leases.get(results.lease) or mesh.late_leases.get(results.lease)
        if lease is not None and results.epoch == broker.epoch:
            for row, payload in zip(results.rows, results.payloads, strict=True):
                if payload.startswith(SICK) and lease.tasks[row].lease is not lease:
                    self._void[payload] = True

    def _given(self, broker: Broker, address: Address, tasks: Tasks) -> None:
        if len(tasks.columns.ids) > 1 and broker.dispatcher.mesh.leases[tasks.lease].suspect:
            self.hits["a group of suspects leaves"] += 1
        connection = broker.router.routes.get(address)
        for id in tasks.columns.ids:
            ask = self.by_id[id]
            ask.given += 1
            self.expect(not ask.heard, f"I2: {ask.nonce} is given out again though it has spoken", ask)
            if connection is not None:
                owner = connection.dealer.owner
                ask.holders.append(owner)
                if not connection.is_whole:
                    owner.hurt()

    def _check_midway(self, broker: Broker, tasks: Tasks) -> None:
        """Nothing is begun while too much waits beyond it. What waits only gets less while work is handed out, so what
        is left at the end of the turn was there all the time."""
        mesh = broker.dispatcher.mesh
        if mesh.limits.midway_bytes_max >= MIDWAY_BYTES_PLENTY or mesh.leases[tasks.lease].suspect:
            return
        waiting = [task for task in mesh.tasks.values() if task.state in (TaskState.QUEUED, TaskState.SUSPECT)]
        for task in mesh.leases[tasks.lease].tasks:
            beyond = sum(other.size for other in waiting if other.hop > task.hop)
            may_go = task.is_last_hop or beyond <= mesh.limits.midway_bytes_max
            self.expect(may_go, f"{task.id} is given out with {beyond} bytes beyond its step", self.by_id[task.id])

    def broker_turned(self, broker: Broker) -> None:
        """After every turn of a broker."""
        self._see_failing(broker)
        mesh, now = broker.dispatcher.mesh, self.world.now
        for stage in mesh.stages:
            if stage.crew.idle and stage.queue.waiting > stage.queue.available:
                self.hits["midway: a step is withheld from an idle worker"] += 1
            if stage.crew.idle and stage.queue.available and stage.failing is None:
                worker = stage.crew.longest_idle()
                assert worker is not None
                wait = (
                    stage.plan.max_wait_ms / 1000
                )  # twice, since what was held back comes to the front, whoever is older
                latest = max(stage.queue.oldest(), worker.idle_since) + 2 * wait + 1e-6
                asked = stage.wake is not None and stage.wake <= latest
                self.expect(
                    asked, f"I12: {stage.queue.available} tasks of {stage.plan.name} wait beside an idle worker"
                )
            is_failing = stage.failing is not None
            if is_failing and not self._was_failing.get(stage.plan.name):
                said = self._said_failing.get(stage.plan.name)
                self.expect(said == now, f"stage {stage.plan.name} is failing though no agent said so")
            self._was_failing[stage.plan.name] = is_failing
        self._turns += 1
        if self.is_thorough or self._turns % CHECK_EVERY == 0:
            self._look_at_everything(broker)

    def _look_at_everything(self, broker: Broker) -> None:
        try:
            invariants.check(broker.dispatcher)
        except AssertionError as error:
            raise Broken(f"invariants of the core: {error}") from error
        directory = broker.dispatcher.mesh.directory
        self.expect(len(directory._closed) <= CLOSED_SESSIONS_MAX, "I6: closed sessions")
        self.expect(len(directory._strikes) <= STRUCK_MAX, "I6: addresses with strikes")

    def _see_failing(self, broker: Broker) -> None:
        for stage in broker.dispatcher.mesh.stages:
            if stage.failing is not None:
                self.failing_at[stage.plan.name] = self.world.now

    def name_at(self, broker: Broker, address: Address) -> str:
        """Who is, or was, at an address; for the transcript."""
        connection = broker.router.routes.get(address)
        local = broker.locals.get(address)
        owner = connection.dealer.owner.name if connection else local.name if local else "somebody"
        return f"{owner} ({name_of(address)})"

    # ── gateways ──────────────────────────────────────────────────────────────────────────────────────────────────

    def link_hears(self, happened: Iterable[object]) -> None:
        for event in happened:
            self.hits[f"a link hears {type(event).__name__}"] += 1

    def link_says(self, effects: Iterable[object]) -> None:
        for effect in effects:
            self.hits[f"a link asks for {type(effect).__name__}"] += 1

    def heard(self, gateway: Gateway, ask: Ask, payload: Payload) -> None:
        """I2: the events of a stream are its own, come in order and from one lease, and none after the end."""
        self.world.tell(gateway.name, f"delivers {bytes(payload)!r}", [ask.id])
        self.expect(ask.status is None, f"I2: request {ask.nonce} hears {bytes(payload)!r} after its answer", ask)
        nonce, lease, number = bytes(payload).split(b"/")
        self.expect(int(nonce) == ask.nonce, f"I3: request {ask.nonce} hears {bytes(payload)!r}", ask)
        self.expect(int(number) == len(ask.heard), f"I2: {bytes(payload)!r} is event {len(ask.heard)}", ask)
        leases = {event.split(b"/")[1] for event in ask.heard}
        self.expect(leases <= {lease}, f"I2: request {ask.nonce} hears lease {int(lease)} after {leases}", ask)
        ask.heard.append(bytes(payload))

    def speaks(self, worker: Worker, batch: Batch, event: RowsStreamed) -> None:
        for row in event.rows:
            key = batch.asks[row].id, worker.name, int(batch.lease.lease)
            self._spoken[key] = batch.said[row]

    def answered(self, gateway: Gateway, ask: Ask, status: int, payload: Payload) -> None:
        now = self.world.now
        self.world.tell(gateway.name, f"answers {ask.nonce}: {Status(status).name} {bytes(payload[:60])!r}", [ask.id])
        self.expect(ask.status is None, f"I2: request {ask.nonce} is answered twice", ask)
        self.expect(not ask.is_abandoned, f"request {ask.nonce} is answered though nobody waits", ask)
        ask.status, ask.answered = status, now
        self.outcomes[Status(status).name] += 1
        late = gateway.ran_between(ask.deadline, now)
        self.expect(late <= LATE_SECONDS, f"I4: request {ask.nonce} is answered {late:.3f} s late", ask)
        why_not = self._why_not(ask, status, bytes(payload))
        self.expect(why_not is None, f"request {ask.nonce} gets {Status(status).name}: {why_not}", ask)

    def _why_not(self, ask: Ask, status: int, payload: bytes) -> str | None:
        """Why this is not what the request deserves; None when it is."""
        if status == OK:
            if not self._is_whole(ask):
                return f"I2: it heard {ask.heard}, and that is not all"
            if ask.flaw not in (Flaw.NONE, Flaw.ENDLESS):
                return f"it should fail, being {ask.flaw.value}"
            return None if payload == ask.expected else f"I3: {payload!r} instead of {ask.expected!r}"
        if status == TIMEOUT and payload.startswith(b"request timeout: the stage took longer"):
            return None if ask.overran else "it did not, alone"
        if status == TIMEOUT:
            early = ask.deadline - self.world.now
            return None if early <= EARLY_SECONDS else f"{early:.3f} s before its deadline"
        if status == SHED:
            return None if ask.given == 0 else "it was accepted before"
        if status == UNAVAILABLE:
            seen = any(self.failing_at.get(stage, 0.0) >= ask.accepted for stage in ask.stages)
            return None if seen else "no stage of its route was failing"
        if status == TOO_LARGE:
            return None if ask.flaw is Flaw.HUGE else "it is small enough"
        if status == POISONED:
            most = max(ask.charged.values(), default=0)
            return None if most >= self.simulation.limits.deaths_max else f"I8: {most} deaths charged at one stage"
        if ask.flaw is Flaw.BAD and (status, payload) == ask.error:
            return None
        return self._why_no_internal(ask, payload) if status == INTERNAL else "nothing says so"

    def _is_whole(self, ask: Ask) -> bool:
        """Whether it heard all that some lease of it had to say."""
        if not ask.heard:
            return True  # it may be the answer of a lease that said nothing
        said = int(ask.heard[0].split(b"/")[1])
        return len(ask.heard) in [n for (id, _, lease), n in self._spoken.items() if (id, lease) == (ask.id, said)]

    def _why_no_internal(self, ask: Ask, payload: bytes) -> str | None:
        if payload.startswith(SICK):
            return (
                None
                if any(payload.startswith(SICK + holder.name.encode()) for holder in ask.holders)
                else "it was never there"
            )
        if payload == b"forward raised":
            return None if ask.flaw is Flaw.RAISE or ask.bystander else "its batch did not raise"
        if payload in (endings.BROKEN_STREAM, sequences.LOST_EVENTS, link.BROKEN_STREAM):
            if ask.stages[-1] not in self.simulation.scenario.speakers:
                return "nobody says anything to its client"
            return None if self._was_hurt(ask) else "everybody who had it is well"
        if payload == b"outcome unknown":
            if all(self.simulation.plan.stage(stage).retry for stage in ask.stages):
                return "no stage of its route is once-only"
            return None if self._was_hurt(ask) else "everybody who had it is well"
        if payload == b"the broker was lost too often":
            losses = sum(since > ask.accepted for _, since in self.brokers)
            return None if losses > 3 else f"only {losses} brokers were lost"
        if payload.startswith(b"given back"):
            enough = ask.given > self.simulation.limits.requeues_max
            return None if enough else f"it was given out only {ask.given} times"
        if b" is lost, and stage " in payload:
            plans = [self.simulation.plan.stage(stage) for stage in ask.stages[:-1]]
            return "no stage before its last is once-only" if all(plan.retry for plan in plans) else None
        return f"nothing explains {payload!r}"

    def _was_hurt(self, ask: Ask) -> bool:
        """Whether anybody who ever had the request ended, stopped or was cut off since it was accepted."""
        parties = [*ask.holders, self._gateway(ask)]
        new_broker = self.brokers[-1][1] > ask.accepted
        return new_broker or any(not one.is_alive or one.hurt_at >= ask.accepted for one in parties)

    def _gateway(self, ask: Ask) -> Gateway:
        return next(gateway for gateway in self.simulation.gateways if gateway.name == ask.gateway)

    # ── workers ───────────────────────────────────────────────────────────────────────────────────────────────────

    def worker_started(self, worker: Worker) -> None:
        self._tasks[worker], self._cancels[worker] = {}, {}

    def session_hears(self, worker: Worker, happened: Iterable[object]) -> None:
        for event in happened:
            self.hits[f"a session hears {type(event).__name__}"] += 1
            if type(event) is Heard:
                self._heard += 1
                message = event.message
                if type(message) is Tasks:
                    ends = [self.world.now + ms / 1000 for ms in message.columns.remaining_ms]
                    self._tasks[worker][message.lease] = self._heard, ends
                elif type(message) is Cancel:
                    self._cancels[worker].update(dict.fromkeys(message.ids, self._heard))

    def session_says(self, worker: Worker, effects: Iterable[object]) -> None:
        for effect in effects:
            self.hits[f"a session asks for {type(effect).__name__}"] += 1
        held, wanted = worker.session.held, worker.stage.prefetch
        self.expect(held <= wanted, f"I10: {worker.name} holds {held} leases and asked for {wanted}")

    def asks_of(self, worker: Worker, lease: Run) -> list[Ask]:
        """The requests that a worker is given, each as it must be when it comes to that stage."""
        stage, columns = worker.stage.name, lease.columns
        asks = [self.asks[nonce_of(payload)] for payload in columns.payloads]
        for ask, id, state, payload in zip(asks, columns.ids, columns.states, columns.payloads, strict=True):
            self.expect(ask.id == id, f"I3: {worker.name} is given the payload of {ask.id} as {id}", ask)
            self.expect(bytes(payload) == ask.input_at(stage), f"I3: {stage} is given {bytes(payload)!r}", ask)
            is_first, is_last = stage == ask.stages[0], stage == ask.stages[-1]
            expected = (State.INGRESS if is_first else 0) | (State.EGRESS if is_last else 0)
            self.expect(state == expected, f"{stage} is told {State(state)!r}", ask)
        return asks

    def part_begins(self, worker: Worker, batch: Batch, part: Part) -> None:
        stage, lease = worker.stage, batch.lease.lease
        heard, ends = self._tasks[worker][lease]
        cancels = self._cancels[worker]
        for row in part.rows:
            ask = batch.asks[row]
            self.expect(ends[row] > self.world.now, f"I11: {ask.nonce} starts after its deadline", ask)
            cancelled = cancels.get(ask.id, 0) > heard
            self.expect(not cancelled, f"I11: {ask.nonce} starts after its cancel", ask)
            self._starts(worker, ask, stage.name)
            if not stage.retry:
                again = stage.name in ask.starts
                self.expect(not again, f"I5: {ask.nonce} starts a second time at once-only {stage.name}", ask)
            ask.starts.append(stage.name)

    def _starts(self, worker: Worker, ask: Ask, stage: str) -> None:
        other = self._running.get((ask.id, stage))
        if other is not None and other is not worker and other.is_alive and not self._are_excused(other, worker, ask):
            raise Broken(f"I5: {ask.nonce} runs at {worker.name} and still at {other.name}", ask)
        self._running[ask.id, stage] = worker

    def _are_excused(self, first: Worker, second: Worker, ask: Ask) -> bool:
        """See the module."""
        parties = first, second, self._gateway(ask)
        was_hurt = any(one.hurt_at >= ask.accepted for one in parties) or self.brokers[-1][1] >= ask.accepted
        hedged = self.simulation.limits.lease_seconds_min - HEDGE_SLACK_SECONDS
        return was_hurt or self.world.now - first.part_began >= hedged

    def part_ends(self, worker: Worker, batch: Batch, part: Part) -> None:
        for row in part.rows:
            key = batch.asks[row].id, worker.stage.name
            if self._running.get(key) is worker:
                del self._running[key]

    def part_overran(self, worker: Worker, batch: Batch) -> None:
        """The worker takes longer than its stage allows, and it may be said of whoever is alone, or runs only once."""
        self.hits[f"{'one' if len(batch.asks) == 1 else 'several'} took too long"] += 1
        for row, ask in enumerate(batch.asks):
            is_last = len(batch.asks) == 1 or not worker.stage.retry or batch.said[row]
            ask.overran = ask.overran or bool(is_last)

    def interrupted(self, worker: Worker, batch: Batch) -> None:
        """Nobody waits for any of it, and it is not the first batch, nor the first one since the last interrupt."""
        self.hits["a worker is interrupted"] += 1
        self.expect(worker.may_be_interrupted, f"{worker.name} is interrupted before it has finished anything since")
        worker.may_be_interrupted = False
        self._nobody_wants(worker, batch, "is interrupted")

    def killed_by_order(self, worker: Worker, batch: Batch, kill: Kill) -> None:
        if "took longer" in kill.reason:
            self.hits["a worker is killed that takes too long"] += 1
            ran = self.world.now - batch.clock
            allowed = worker.stage.timeout_seconds + self.simulation.limits.kill_grace_seconds
            was_hurt = worker.hurt_at >= batch.clock or self.brokers[-1][1] >= batch.clock
            self.expect(ran >= allowed - HEDGE_SLACK_SECONDS or was_hurt, f"{worker.name} is killed after {ran:.3f} s")
            self.part_overran(worker, batch)
        elif "stuck" in kill.reason:
            self.hits["a worker is killed that is stuck"] += 1
            self._nobody_wants(worker, batch, "is killed as stuck")

    def _nobody_wants(self, worker: Worker, batch: Batch, what: str) -> None:
        rows = batch.part.rows if batch.part is not None else []
        for ask in [batch.asks[row] for row in rows]:
            is_done = ask.status is not None or ask.is_abandoned or ask.deadline <= self.world.now
            is_elsewhere = ask.starts.count(worker.stage.name) > 1 or self._was_hurt(ask)
            self.expect(is_done or is_elsewhere, f"{worker.name} {what}, and somebody waits for {ask.nonce}", ask)

    def worker_ended(self, worker: Worker, code: int) -> None:
        """Note whom its death may be charged to: whatever row of the running lease had no acknowledged status."""
        self.world.tell(worker.name, f"ends with {code}")
        batch = worker.batch
        if batch is None:
            return
        is_charged = code in CHARGED or worker.was_out_of_memory
        for row, ask in enumerate(batch.asks):
            key = ask.id, worker.stage.name
            if self._running.get(key) is worker:
                del self._running[key]
            is_blamed = worker.slate.phase is Phase.FORWARD or row == worker.slate.row
            ask.charged[worker.stage.name] += is_charged and is_blamed

    # ── agents ────────────────────────────────────────────────────────────────────────────────────────────────────

    def agent_hears(self, happened: Iterable[object]) -> None:
        for event in happened:
            self.hits[f"an agent hears {type(event).__name__}"] += 1

    def agent_says(self, effects: Iterable[object]) -> None:
        for effect in effects:
            self.hits[f"an agent asks for {type(effect).__name__}"] += 1

    # ── at the end ────────────────────────────────────────────────────────────────────────────────────────────────

    def at_the_end(self) -> None:
        """I1, I7 and I8, when all is calm."""
        for ask in self.asks:
            self.expect(ask.status is not None or ask.is_abandoned, f"I1: {ask.nonce} has no outcome", ask)
            if ask.flaw is Flaw.POISON:
                self._check_poison(ask)
        for gateway in self.simulation.gateways:
            self.expect(gateway.link.pending == 0, f"I7: {gateway.name} still waits for {gateway.link.pending}")
        self._broker_is_empty()
        for worker in self.simulation.workers():
            held, kept = worker.session.held, len(worker.session._kept)
            self.expect(held == 0, f"I7: {worker.name} still holds {held} leases")
            self.expect(kept == 0, f"I7: {worker.name} still keeps results of {kept} leases")

    def is_drained(self) -> bool:
        """Whether nobody has anything left in hand."""
        broker = self.simulation.broker
        sessions = [worker.session for worker in self.simulation.workers()]
        idle = not any(session.held or session._kept for session in sessions)
        return idle and broker is not None and not broker.dispatcher.mesh.tasks and not broker.dispatcher.mesh.leases

    def _broker_is_empty(self) -> None:
        broker = self.simulation.broker
        assert broker is not None
        mesh = broker.dispatcher.mesh
        for id in mesh.tasks:
            raise Broken(f"I7: {len(mesh.tasks)} tasks are left at the broker", self.by_id.get(id))
        for lease in mesh.leases.values():
            raise Broken(f"I7: lease {lease.id} is left with {lease.worker.worker_id}", self.by_id[lease.tasks[0].id])
        self.expect(mesh.task_bytes == 0, f"I7: {mesh.task_bytes} bytes are left")
        self.expect(not mesh.exiting and not broker.parked, "I7: something is left to send or to bury")
        for stage in mesh.stages:
            left = (stage.queue.waiting, stage.queue.suspects, stage.queue.bytes, stage.leased)
            self.expect(left == (0, 0, 0, 0), f"I7: stage {stage.plan.name} counts {left}")
        for gateway in mesh.directory.gateways():
            self.expect(not len(gateway.kept), f"I7: {len(gateway.kept)} replies are kept")
        self.expect(not mesh.held, "I7: a gateway's tasks are held")

    def _check_poison(self, ask: Ask) -> None:
        """I8: 3 + log2(group) processes, if every death was seen and charged; else again for each new beginning."""
        size = self.simulation.plan.stage(ask.flaw_at).max_batch_size
        bound = 3 + log2(size)
        if self._was_hurt_otherwise(ask):
            bound = (bound + self.simulation.limits.requeues_max + RETURNS_EXTRA) * (1 + len(self.brokers))
        self.expect(ask.kills <= bound, f"I8: poison {ask.nonce} ended {ask.kills} processes, {bound:g} allowed", ask)

    def _was_hurt_otherwise(self, ask: Ask) -> bool:
        agents = [*self.simulation.agents, *self.simulation.former_agents]
        parties = [*agents, *ask.holders, self._gateway(ask)]
        return self.brokers[-1][1] >= ask.accepted or any(one.hurt_at >= ask.accepted for one in parties)

    def unanswered(self) -> int:
        return sum(ask.status is None and not ask.is_abandoned for ask in self.asks)

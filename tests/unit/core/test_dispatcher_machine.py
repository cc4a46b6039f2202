"""Random lives of a dispatcher against a model that knows nothing of how it works.

The model is what peers can see: which tasks want an answer, which rows a worker started, which results were ever sent.
After every turn the invariants are checked and every effect is held against it; at the end of each life all workers are
made well, and every task that is left must get its answer.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from math import inf
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.planted import credit_is_granted_twice
from zmesh.config import Limits, Plan, RoutePlan, StagePlan
from zmesh.core import endings, events, intake, invariants, orders
from zmesh.core.dispatcher import Dispatcher
from zmesh.core.effects import Send
from zmesh.core.events import Address, DispatcherEvent
from zmesh.core.mesh import Mesh
from zmesh.core.queues import StageQueue
from zmesh.core.replies import KeptReplies
from zmesh.core.stages import StageRecord
from zmesh.core.tasks import TaskState
from zmesh.core.workers import Crew, Lease, Worker
from zmesh.messages import (
    PROTOCOL_VERSION,
    Ack,
    Cancel,
    Columns,
    Credit,
    Exited,
    Goodbye,
    Heartbeat,
    Hello,
    Kill,
    LeaseId,
    PeerId,
    Refuse,
    RefuseCode,
    Reply,
    Results,
    Role,
    SessionId,
    Status,
    Submit,
    TaskId,
    Tasks,
    Welcome,
    WorkerState,
)
from zmesh.messages import Phase as SlatePhase

EXAMPLES = 50 if os.environ.get("ZMESH_FAST") == "1" else 500
STEPS = 50
PLAN = Plan(
    stages=(
        StagePlan(name="many", worker="Many", max_batch_size=4, max_wait_ms=5.0),
        StagePlan(name="once", worker="Once", max_batch_size=2, batching="greedy", retry=False, timeout_seconds=4.0),
    ),
    routes=tuple(
        RoutePlan(path=path, stages=stages)
        for path, stages in {
            "/many": ("many",),
            "/once": ("once",),
            "/there": ("many", "once"),
            "/back": ("once", "many"),
        }.items()
    ),
)
ROUTES = {route.path: [("many", "once").index(stage) for stage in route.stages] for route in PLAN.routes}
PATHS = [*ROUTES, "/there", "/back", "/many", "/unknown"]
ONCE = 1
LIMITS = Limits(
    queue_tasks_max=24,
    queue_bytes_max=400,
    midway_bytes_max=30,
    story_steps_max=100,
    answer_bytes_max=1200,
    message_rows_max=5,
)
FAULTS = [Status.OK, Status.OK, Status.OK, Status.VALIDATION, Status.INTERNAL, Status.TIMEOUT]
CODES = [-11, -6, 1, -9, -15, 0]
CHARGED = {-11, -6, 1, 0}
SECONDS = [0.001, 0.01, 0.021, 0.3, 1.0, 2.0, 5.0, 11.0]
LONG_MS, HURRY_MS, SHORT_MS = 10**8, 2500, 400
PATIENCE = PLAN.stages[1].timeout_seconds + LIMITS.kill_grace_seconds

WORKERS_MAX = 6

small = st.integers(0, 5)
mask = st.integers(0, 7)


def result_of(id: int, stage: int) -> bytes:
    return b"%d was at %d" % (id, stage)


@dataclass(eq=False)
class Speaker:
    """A process that talks to the broker, over one connection after another."""

    peer: PeerId
    socket: int
    connection: int = 0
    session: SessionId = SessionId(0)  # noqa: RUF009
    is_linked: bool = False  # what the broker sends arrives
    is_alive: bool = True

    @property
    def address(self) -> Address:
        return self.socket, self.peer + bytes([self.connection])

    def connects(self) -> None:
        self.connection += 1
        self.session, self.is_linked = SessionId(0), True


@dataclass(eq=False)
class Hands(Speaker):
    """A worker process: it runs its oldest lease, keeps the next ones, and the results that were not acknowledged."""

    prefetch: int = 1
    used: int = 0
    held: dict[LeaseId, list[TaskId]] = field(default_factory=dict)
    open_rows: dict[LeaseId, list[int]] = field(default_factory=dict)
    kept: dict[LeaseId, list[Results]] = field(default_factory=dict)
    began: dict[LeaseId, float] = field(default_factory=dict)  # what ran
    good: set[LeaseId] = field(default_factory=set)  # finished, with a success
    interrupted: list[LeaseId] = field(default_factory=lambda: [LeaseId(0)])

    @property
    def stage(self) -> int:
        return self.socket - 1

    @property
    def running(self) -> LeaseId:
        return next(iter(self.held), LeaseId(0))

    def credit(self) -> events.CreditGranted:
        total = self.used + self.prefetch - len(self.held)
        return events.CreditGranted(self.address, self.session, Credit(total, WorkerState.READY))

    def says(self, results: Results) -> events.BatchFinished:
        return events.BatchFinished(self.address, self.session, results)


@dataclass(eq=False)
class Asker(Speaker):
    """A gateway process: it acknowledges what it heard, and is told again what it did not, or might not have heard."""

    number: int = 0  # of the last REPLY of this session
    heard: int = 0  # of the last one that arrived
    acknowledged: int = 0
    told: dict[int, list[TaskId]] = field(default_factory=dict)  # in this session
    may_repeat: set[TaskId] = field(default_factory=set)  # told in earlier sessions, and not acknowledged
    lost_at: float = 0.0

    def connects(self) -> None:
        super().connects()
        self.may_repeat |= {id for number, ids in self.told.items() if number > self.acknowledged for id in ids}
        self.number = self.heard = self.acknowledged = 0
        self.told = {}

    def handled(self) -> int:
        self.acknowledged = self.heard
        return self.heard


@dataclass(slots=True)
class Wanted:
    """A task that a gateway still wants answered."""

    gateway: Asker
    path: str
    deadline: float
    payload: bytes


class DispatcherMachine(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 3), has_poison=st.booleans())
    def start(self, seed: int, has_poison: bool) -> None:
        self.now = 100.0
        self.has_poison = has_poison  # some tasks kill whoever runs them
        self.dispatcher = Dispatcher(PLAN, LIMITS, Random(seed), self.now)
        self.epoch = self.dispatcher.mesh.directory.epoch
        self.numbers = count(1)
        self.speakers: dict[Address, Speaker] = {}
        self.in_flight: dict[Address, list[events.BatchFinished]] = {}  # results on their way, in order
        self.unsent: list[events.SendFailed] = []  # TASKS that nobody received
        # What is known of tasks.
        self.wanted: dict[TaskId, Wanted] = {}
        self.ok_sent: set[tuple[TaskId, int]] = set()
        self.started: set[tuple[TaskId, int]] = set()
        self.deaths: Counter[TaskId] = Counter()
        self.overran: set[TaskId] = set()
        self.orders: list[Kill] = []  # what the agent was told and has not yet done
        self.answered: set[TaskId] = set()
        # Who is there.
        self.agent = self._greet(Speaker(self._peer(), 0), Role.AGENT)
        self.gateways = [self._greet(Asker(self._peer(), 0), Role.GATEWAY) for _ in range(2)]
        self.workers: list[Hands] = []
        for socket in (1, 2):
            self.spawn(socket - 1, 2)

    # ── turns and what they must not do ───────────────────────────────────────────────────────────────────────────

    def turn(self, *happened: DispatcherEvent, after: float = 0.0) -> None:
        self.now += after
        for effect in self.dispatcher.handle(*happened, now=self.now):
            if isinstance(effect, Send):
                self._hear(self.speakers.get(effect.address), effect)
        invariants.check(self.dispatcher)

    def say(self, hands: Hands, *said: DispatcherEvent, after: float = 0.0) -> None:
        """A worker speaks; what it said before over the same connection arrives before."""
        if hands.is_linked:
            self.turn(*self.in_flight.pop(hands.address, []), *said, after=after)

    def _hear(self, speaker: Speaker | None, effect: Send) -> None:
        match effect.message:
            case Tasks() as tasks:
                self._check_tasks(effect.address[0] - 1, tasks)
                if isinstance(speaker, Hands) and speaker.is_linked and speaker.is_alive:
                    self._take(speaker, tasks)
                else:
                    self.unsent.append(events.SendFailed(effect.address, tasks))
            case Reply() as reply:
                assert isinstance(speaker, Asker) and speaker.session == effect.session, "a reply into the void"
                self._check_reply(speaker, reply)
                if not speaker.is_linked:
                    self.unsent.append(events.SendFailed(effect.address, reply))
            case Welcome(session=session) if speaker is not None:
                speaker.session = session
            case Refuse(code=code) if speaker is not None:
                assert code is RefuseCode.UNKNOWN_PEER and isinstance(speaker, Hands), f"{code.name} to {speaker}"
                speaker.is_linked = False
            case Ack(leases=leases) if isinstance(speaker, Hands) and speaker.is_linked:
                for lease in leases:
                    assert lease not in speaker.held, "a lease is acknowledged before its last row"
                    speaker.kept.pop(lease, None)
            case Kill() as kill:
                assert speaker is self.agent, "only agents end and interrupt"
                self._check_order(kill)
                self.orders.append(kill)
            case Cancel(ids=ids):
                assert not any(id in self.wanted for id in ids), "a task is cancelled that is still wanted"
            case _:
                pass

    def _check_tasks(self, stage: int, tasks: Tasks) -> None:
        columns = tasks.columns
        assert 0 < len(columns.ids) <= PLAN.stages[stage].max_batch_size
        for id, payload in zip(columns.ids, columns.payloads, strict=True):
            wanted = self.wanted.get(id)
            assert wanted is not None, f"task {id} is leased though nobody wants it: {self.dispatcher.story(id)}"
            assert wanted.deadline > self.now, f"task {id} is leased after its deadline"
            assert id not in self.answered, f"task {id} is run again after its answer: {self.dispatcher.story(id)}"
            hop = ROUTES[wanted.path].index(stage)
            if hop == 0:
                assert payload == wanted.payload, f"task {id} has the body of another"
            else:
                before = ROUTES[wanted.path][hop - 1]
                assert (id, before) in self.ok_sent, f"task {id} skipped a stage"
                assert payload == result_of(id, before), f"task {id} has the result of another"
            ran_before = stage == ONCE and (id, stage) in self.started
            assert not ran_before, f"task {id} may run but once: {self.dispatcher.story(id)}"

    def _check_order(self, kill: Kill) -> None:
        hands = next(hands for hands in self.workers if hands.peer == kill.peer)
        if kill.interrupt:
            assert not self._is_wanted(hands, kill.lease), f"lease {kill.lease} is interrupted, and somebody waits"
            last = hands.interrupted[-1]
            since = [lease for lease in hands.good if last < lease < kill.lease and lease not in hands.interrupted]
            assert since, f"lease {kill.lease} is interrupted, and nothing was finished since {last}"
            hands.interrupted.append(kill.lease)
        elif hands.stage == ONCE:
            ran = self.now - hands.began.get(kill.lease, -inf)  # what it never began, no agent ends
            assert ran >= PATIENCE - 0.001, f"a worker is killed that runs for {ran} s"
            self.overran |= set(hands.held.get(kill.lease, ()))
        else:
            assert not self._is_wanted(hands, kill.lease), f"a worker is stuck in {kill.lease}, and somebody waits"

    def _is_wanted(self, hands: Hands, lease: LeaseId) -> bool:
        """Whether somebody waits for a row of this that has no status, at this stage."""
        ids = [hands.held[lease][row] for row in hands.open_rows[lease]] if lease in hands.held else []
        done = [id for id in ids if id not in self.wanted or id in self.answered or (id, hands.stage) in self.ok_sent]
        return len(done) < len(ids)

    def _take(self, hands: Hands, tasks: Tasks) -> None:
        assert len(hands.held) < hands.prefetch, "above its credit"
        hands.used += 1
        hands.held[tasks.lease] = tasks.columns.ids
        hands.open_rows[tasks.lease] = list(range(len(tasks.columns.ids)))
        for lease in tasks.acks:
            hands.kept.pop(lease, None)
        self._run(hands)

    def _run(self, hands: Hands) -> None:
        """Whatever is now the oldest lease is running."""
        for id in hands.held.get(hands.running, ()):
            self.started.add((id, hands.stage))
        hands.began.setdefault(hands.running, self.now)

    def _check_reply(self, gateway: Asker, reply: Reply) -> None:
        assert reply.number == gateway.number + 1 and len(reply.ids) <= LIMITS.message_rows_max
        gateway.number = reply.number
        gateway.told[reply.number] = reply.ids
        self.answered.update(reply.ids)
        for id, status, payload in zip(reply.ids, reply.statuses, reply.payloads, strict=True):
            is_repeated = id in gateway.may_repeat
            gateway.may_repeat.discard(id)
            wanted = self.wanted.get(id)
            if gateway.is_linked:
                gateway.heard = reply.number
                self.wanted.pop(id, None)
            else:
                gateway.may_repeat.add(id)  # even in this session
            assert wanted or is_repeated, f"{Status(status).name} for {id}, which nobody asked or which had its answer"
            assert wanted is None or wanted.gateway is gateway, f"the answer of {id} went to another gateway"
            if wanted is None:
                continue
            if status == Status.OK:
                last = ROUTES[wanted.path][-1]
                assert (id, last) in self.ok_sent and payload == result_of(id, last), f"a made-up answer for {id}"
            if status == Status.TIMEOUT:
                left = wanted.deadline - self.now
                assert left <= HURRY_MS / 1000 or id in self.overran, f"{id} is late with {left} s left"
            if status == Status.POISONED:
                assert self.deaths[id] >= LIMITS.deaths_max, f"{id} is poisoned after {self.deaths[id]} deaths"

    # ── peers ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _peer(self) -> PeerId:
        return PeerId(next(self.numbers).to_bytes(4, "big") * 4)

    def _greet(self, speaker: Speaker, role: Role) -> Speaker:
        speaker.connects()
        self.speakers[speaker.address] = speaker
        stage = PLAN.stages[speaker.socket - 1].name if role is Role.WORKER else ""
        leases: dict[str, list[LeaseId]] = {}
        if isinstance(speaker, Hands):
            running, *waiting = speaker.held or [LeaseId(0)]
            answered = [lease for lease in speaker.kept if lease not in speaker.held]
            leases = {"running": [running] if running else [], "waiting": waiting, "answered": answered}
        hello = Hello(
            [PROTOCOL_VERSION],
            role,
            speaker.peer,
            speaker.connection,
            "here",
            1,
            PLAN.fingerprint,
            stage,
            epoch=self.epoch,
            **leases,
        )
        self.turn(events.PeerGreeted(speaker.address, hello))
        assert speaker.session, "HELLO without WELCOME"
        return speaker

    def _reconnect(self, hands: Hands) -> None:
        self._greet(hands, Role.WORKER)
        hands.used = len(hands.held)
        self.say(hands, hands.credit(), *self._says_again(hands))

    def _worker(self, number: int, **conditions: bool) -> Hands | None:
        alive = [
            hands
            for hands in self.workers
            if hands.is_alive and all(getattr(hands, name) == value for name, value in conditions.items())
        ]
        return alive[number % len(alive)] if alive else None

    # ── gateways ──────────────────────────────────────────────────────────────────────────────────────────────────

    @rule(number=small, path=st.integers(0, len(PATHS) - 1), rows=st.integers(1, 7), is_short=st.integers(0, 3))
    def submit(self, number: int, path: int, rows: int, is_short: int) -> None:
        gateway, route = self.gateways[number % 2], PATHS[path]
        ids = [TaskId(next(self.numbers)) for _ in range(rows)]
        left = SHORT_MS if is_short == 3 else LONG_MS
        for id in ids:
            self.wanted[id] = Wanted(gateway, route, self.now + left / 1000, b"body of %d" % id)
        self._submit(gateway, route, ids)

    @rule(number=small, rows=st.integers(3, 5))
    def submit_a_crowd(self, number: int, rows: int) -> None:
        for path in range(3):
            self.submit(number, (number + path) % len(ROUTES), rows, 0)

    @rule(number=small, rows=st.integers(2, 8))
    def crash_in_a_hurry(self, number: int, rows: int) -> None:
        """A slow batch ends, and the next one crashes and has little time left."""
        hands = self._worker(number, is_linked=True)
        if hands is None:
            return
        self._beat_for(1.0)
        self.finish(number, 0, 0)
        gateway, ids = self.gateways[number % 2], [TaskId(next(self.numbers)) for _ in range(rows)]
        for id in ids:
            self.wanted[id] = Wanted(gateway, "/many", self.now + HURRY_MS / 1000, b"body of %d" % id)
        self._submit(gateway, "/many", ids)
        if hands.is_alive and hands.running:
            self._end(hands, -11, SlatePhase.FORWARD)
            self.turn(after=LIMITS.exit_grace_seconds)
            self.spawn(hands.stage, hands.prefetch)

    def _submit(self, gateway: Asker, route: str, ids: list[TaskId], *, again: bool = False) -> None:
        if not gateway.is_linked:
            return  # it is kept, and submitted when the gateway is back
        self._say_submit(gateway, route, {id: self.wanted[id] for id in ids}, again, gateway.handled())

    def _say_submit(self, gateway: Asker, route: str, wanted: dict[TaskId, Wanted], again: bool, handled: int) -> None:
        ids, rows = list(wanted), wanted.values()
        left = [max(1, int((row.deadline - self.now) * 1000)) for row in rows]
        zeros = [0] * len(ids)
        columns = Columns(ids, zeros, left, zeros, zeros, [row.payload for row in rows])
        submit = Submit(route, columns, again, handled=handled)
        self.turn(events.TasksSubmitted(gateway.address, gateway.session, submit))

    def _wanted_of(self, gateway: Asker) -> dict[str, list[TaskId]]:
        by_path: dict[str, list[TaskId]] = {}
        for id, wanted in self.wanted.items():
            if wanted.gateway is gateway:
                by_path.setdefault(wanted.path, []).append(id)
        return by_path

    @precondition(lambda self: self.wanted)
    @rule(
        number=small,
        what=st.sampled_from(["submit again", "submit twice", "cancel", "cancel", "reconnect", "leave", "lose link"]),
    )
    def gateway_does(self, number: int, what: str) -> None:
        gateway = self.gateways[number % 2]
        match what:
            case "submit again" | "submit twice":
                for path, ids in self._wanted_of(gateway).items():
                    left = [id for id in ids if id in self.wanted]  # the turn before this one may have answered some
                    self._submit(gateway, path, left, again=what == "submit again")
            case "cancel":
                self._cancel(number)
            case "lose link":
                if gateway.is_linked:
                    gateway.is_linked, gateway.lost_at = False, self.now
            case "reconnect":
                self._gateway_reconnects(gateway, float(number))
            case _:
                self._gateway_leaves(gateway)

    @precondition(lambda self: self.wanted)
    @rule(number=small, faults=small, seconds=st.sampled_from([0.0, 0.5, 1.0]), is_back=st.booleans())
    def answers_are_missed(self, number: int, faults: int, seconds: float, is_back: bool) -> None:
        """A gateway is out of reach when its tasks are answered."""
        gateway = self.gateways[number % 2]
        if gateway.is_linked:
            gateway.is_linked, gateway.lost_at = False, self.now
        self.all_finish(faults)
        self._beat_for(seconds)
        if is_back and not gateway.is_linked:
            self._gateway_returns(gateway)

    def _cancel(self, number: int) -> None:
        chosen = list(self.wanted)[number::3]
        for gateway in self.gateways:
            own = [id for id in chosen if self.wanted[id].gateway is gateway]
            chosen = [id for id in chosen if id not in own]
            if gateway.is_linked:
                self._forget(gateway, own, "client gone")

    @rule(number=small, is_done_before=st.booleans())
    def nobody_wants_a_batch_any_more(self, number: int, is_done_before: bool) -> None:
        """Mostly of a worker that has brought one to a good end, for others are left alone."""
        hands = self._worker(number, is_linked=True)
        if hands is None:
            return
        if is_done_before:
            self.finish(number, 0, 0)
        ids = [id for id in hands.held.get(hands.running, ()) if id in self.wanted]
        for gateway in self.gateways:
            if gateway.is_linked:
                self._forget(
                    gateway, [id for id in ids if id in self.wanted and self.wanted[id].gateway is gateway], ""
                )

    def _forget(self, gateway: Asker, ids: list[TaskId], reason: str) -> None:
        for id in ids:
            del self.wanted[id]
        cancel = Cancel(ids, reason, gateway.handled())
        self.turn(events.TasksCancelled(gateway.address, gateway.session, cancel))

    def _gateway_reconnects(self, gateway: Asker, seconds: float) -> None:
        if gateway.is_linked:
            gateway.is_linked, gateway.lost_at = False, self.now
        self.turn(events.PeerUnreachable(gateway.address))
        self._beat_for(seconds)
        if not gateway.is_linked:
            self._gateway_returns(gateway)

    def _gateway_returns(self, gateway: Asker) -> None:
        """It submits what has no answer and has time left, before it hears what the broker says again."""
        late = [id for id, it in self.wanted.items() if it.gateway is gateway and it.deadline <= self.now]
        by_path = {
            path: {id: self.wanted[id] for id in ids if id not in late}
            for path, ids in self._wanted_of(gateway).items()
        }
        self._greet(gateway, Role.GATEWAY)
        for path, wanted in by_path.items():
            self._say_submit(gateway, path, wanted, True, 0)
        self._forget(gateway, [id for id in late if id in self.wanted], "deadline")

    def _beat_for(self, seconds: float, *, workers: bool = True) -> None:
        """Time passes; no gateway stays away for so long that it would be given up."""
        for gateway in self.gateways:
            if not gateway.is_linked and self.now + seconds - gateway.lost_at >= LIMITS.dead_seconds - 1:
                self._gateway_returns(gateway)
        self.turn(*self._beats(workers=workers), after=seconds)

    def _gateway_leaves(self, gateway: Asker) -> None:
        if not gateway.is_linked:
            return
        for ids in self._wanted_of(gateway).values():
            for id in ids:
                del self.wanted[id]
        self.turn(events.PeerLeft(gateway.address, gateway.session, Goodbye([])))
        self.gateways[self.gateways.index(gateway)] = self._greet(Asker(self._peer(), 0), Role.GATEWAY)

    # ── workers ───────────────────────────────────────────────────────────────────────────────────────────────────

    @precondition(lambda self: sum(hands.is_alive for hands in self.workers) < WORKERS_MAX)
    @rule(stage=st.integers(0, 1), prefetch=st.integers(1, 3))
    def spawn(self, stage: int, prefetch: int) -> None:
        hands = Hands(self._peer(), stage + 1, prefetch=prefetch)
        self.workers.append(hands)
        self._reconnect(hands)

    def _finish(self, hands: Hands, rows: int, faults: int) -> events.BatchFinished | None:
        """Some rows of the running lease, all that are left if the mask names none of them.

        None when there is no lease, or when its process died of it.
        """
        lease = hands.running
        if not lease:
            return None
        left, ids = hands.open_rows[lease], hands.held[lease]
        if self.has_poison and any(self._is_poison(ids[row]) for row in left):
            self._end(hands, -11, SlatePhase.FORWARD)
            self.turn(after=LIMITS.exit_grace_seconds)
            self.spawn(hands.stage, hands.prefetch)  # its agent does not wait
            return None
        done = [row for row in left if rows >> row & 1] or list(left)
        statuses = [int(FAULTS[(faults + row) % len(FAULTS)]) for row in done]
        payloads = [result_of(ids[row], hands.stage) for row in done]
        results = Results(self.epoch, lease, done, statuses, [0] * len(done), payloads, 3)
        good = {(ids[row], hands.stage) for row, status in zip(done, statuses, strict=True) if status == 0}
        self.ok_sent |= good
        if hands.stage == ONCE or len(ids) == 1 or not PLAN.stages[hands.stage].timeout_seconds:
            self.overran |= {ids[row] for row, status in zip(done, statuses, strict=True) if status == Status.TIMEOUT}
        return self._says(hands, results, is_good=bool(good))

    def _says(self, hands: Hands, results: Results, *, is_good: bool) -> events.BatchFinished:
        lease = results.lease
        hands.kept.setdefault(lease, []).append(results)
        hands.good |= {lease} if is_good else set()
        hands.open_rows[lease] = [row for row in hands.open_rows[lease] if row not in results.rows]
        if not hands.open_rows[lease]:
            del hands.held[lease], hands.open_rows[lease]
            self._run(hands)
        return hands.says(results)

    @staticmethod
    def _is_poison(id: TaskId) -> bool:
        return id % 8 == 0

    @rule(number=small, rows=mask, faults=small)
    def finish(self, number: int, rows: int, faults: int) -> None:
        hands = self._worker(number)
        event = self._finish(hands, rows, faults) if hands is not None else None
        if event is not None:
            self.say(hands, event, after=0.001)

    @rule(faults=small)
    def all_finish(self, faults: int) -> None:
        for hands in [hands for hands in self.workers if hands.is_alive]:
            event = self._finish(hands, 0, faults)
            if event is not None:
                self.say(hands, event, after=0.001)

    @rule(number=small, rows=mask, faults=small)
    def finish_slowly(self, number: int, rows: int, faults: int) -> None:
        """The results are on their way when something else happens."""
        hands = self._worker(number, is_linked=True)
        event = self._finish(hands, rows, faults) if hands is not None else None
        if event is not None:
            self.in_flight.setdefault(hands.address, []).append(event)

    @rule(number=small, faults=small, more=st.integers(0, 20))
    def results_of_another_epoch_arrive(self, number: int, faults: int, more: int) -> None:
        """Of tasks that are anywhere, or nowhere."""
        hands = self._worker(number, is_linked=True)
        if hands is None:
            return
        ids = [*list(self.wanted)[more % 3 :: 3], TaskId(10**6)]
        statuses = [int(FAULTS[(faults + row) % len(FAULTS)]) for row in range(len(ids))]
        payloads = [result_of(id, hands.stage) for id in ids]
        self.ok_sent |= {(id, hands.stage) for id, status in zip(ids, statuses, strict=True) if status == 0}
        rows = list(range(len(ids)))
        results = Results(self.epoch + 1, LeaseId(1), rows, statuses, [0] * len(ids), payloads, 3, ids)
        self.say(hands, hands.says(results), after=0.001)

    @precondition(lambda self: self.orders)
    @rule()
    def the_agent_does_as_it_was_told(self) -> None:
        """If that is what the worker still runs."""
        orders, self.orders = self.orders, []
        for kill in orders:
            hands = next(hands for hands in self.workers if hands.peer == kill.peer)
            if not hands.is_alive or hands.running != kill.lease:
                continue
            if kill.interrupt:
                rows = hands.open_rows[kill.lease]
                ends = [int(Status.CANCELLED)] * len(rows), [0] * len(rows), [b""] * len(rows)
                self.say(hands, self._says(hands, Results(self.epoch, kill.lease, rows, *ends, 3), is_good=False))
                continue
            self._end(hands, -9, SlatePhase.FORWARD)

    @precondition(lambda self: self.in_flight)
    @rule(number=small)
    def results_arrive(self, number: int) -> None:
        address = list(self.in_flight)[number % len(self.in_flight)]
        self.turn(*self.in_flight.pop(address))

    @rule(
        number=small,
        code=st.sampled_from(CODES),
        phase=st.sampled_from([SlatePhase.FORWARD, SlatePhase.DECODE, SlatePhase.ENCODE]),
        row=st.integers(0, 2),
        is_oom=st.booleans(),
        is_failing=st.integers(0, 5),
    )
    def die(self, number: int, code: int, phase: SlatePhase, row: int, is_oom: bool, is_failing: int) -> None:
        hands = self._worker(number)
        if hands is not None:
            self._end(hands, code, phase, row, is_oom, is_failing == 5)

    def _end(
        self, hands: Hands, code: int, phase: SlatePhase, row: int = 0, is_oom: bool = False, is_failing: bool = False
    ) -> None:
        """The agent reports the end of this process, and what its slate said."""
        lease = hands.running
        if not lease:
            phase, row = SlatePhase.IDLE, 0
        elif code in CHARGED or (code == -9 and is_oom):
            self.deaths.update(hands.held[lease])
        hands.is_alive = False
        name = PLAN.stages[hands.stage].name
        exited = Exited(hands.peer, name, 0, code, lease, phase, row, is_oom, "a word", is_failing)
        self.turn(events.WorkerExited(self.agent.address, self.agent.session, exited))

    def _says_again(self, hands: Hands) -> list[events.BatchFinished]:
        return [hands.says(results) for of_lease in hands.kept.values() for results in of_lease]

    @rule(number=small, what=st.sampled_from(["credit", "say again", "say goodbye", "nonsense", "more nonsense"]))
    def worker_does(self, number: int, what: str) -> None:
        hands = self._worker(number, is_linked=True)
        if hands is None:
            return
        match what:
            case "credit":
                self.say(hands, hands.credit())
            case "say again":
                self.say(hands, *self._says_again(hands))
            case "say goodbye":
                hands.is_alive = False
                goodbye = events.PeerLeft(hands.address, hands.session, Goodbye(list(hands.held)))
                self.say(hands, *self._says_again(hands), goodbye)
                self._end(hands, 0, SlatePhase.FORWARD)
            case _:
                times = 1 if what == "nonsense" else LIMITS.strikes_max
                self.say(hands, *[events.MessageBroken(hands.address, what) for _ in range(times)])

    @rule(number=small, what=st.sampled_from(["break", "be unreachable", "reconnect", "reconnect"]))
    def link_does(self, number: int, what: str) -> None:
        hands = self._worker(number)
        if hands is None:
            return
        if what == "reconnect":
            self._reconnect(hands)
            return
        hands.is_linked = False
        if what == "be unreachable":
            self.turn(events.PeerUnreachable(hands.address))

    @rule(socket=st.integers(-1, 2), count=st.integers(1, 3))
    def a_socket_loses_somebody(self, socket: int, count: int) -> None:
        for _ in range(count):
            self.turn(events.ConnectionLost(socket), after=0.03)

    @precondition(lambda self: self.unsent)
    @rule(is_found=st.booleans())
    def sending_fails(self, is_found: bool) -> None:
        failed, self.unsent = self.unsent, []
        found = [events.PeerUnreachable(failed[0].address)] if is_found else []
        self.turn(*failed, *found)

    # ── time ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _beat(self, speaker: Speaker) -> events.PeerBeat:
        handled = speaker.handled() if isinstance(speaker, Asker) else 0
        return events.PeerBeat(speaker.address, speaker.session, Heartbeat(self.epoch, handled, []))

    def _beats(self, *, workers: bool = True) -> list[events.PeerBeat]:
        heard = [self.agent, *[gateway for gateway in self.gateways if gateway.is_linked]]
        if workers:
            heard += [hands for hands in self.workers if hands.is_alive and hands.is_linked]
        return [self._beat(speaker) for speaker in heard]

    @rule(seconds=st.sampled_from(SECONDS), is_silent=st.integers(0, 3))
    def time_passes(self, seconds: float, is_silent: int) -> None:
        self._beat_for(seconds, workers=is_silent != 3)

    @rule(is_stall=st.integers(0, 3))
    def wake_up(self, is_stall: int) -> None:
        if is_stall == 3:
            for gateway in self.gateways:
                gateway.lost_at += 30.0
            self.turn(events.Stalled(30.0), events.Tick(), after=30.0)
        self._beat_for(max(0.0, self.dispatcher.next_wakeup() - self.now))

    # ── the end ───────────────────────────────────────────────────────────────────────────────────────────────────

    def teardown(self) -> None:
        if not hasattr(self, "workers"):
            return
        self.has_poison = False
        for gateway in self.gateways:
            if not gateway.is_linked:
                self._gateway_returns(gateway)
        for stage in (0, 1):
            if not any(hands.is_alive and hands.stage == stage for hands in self.workers):
                self.spawn(stage, 2)
        living = [hands for hands in self.workers if hands.is_alive]
        for hands in living:
            self._reconnect(hands)
        for _ in range(200):
            if not self.wanted and not any(hands.held for hands in living):
                break
            for hands in living:
                while (event := self._finish(hands, 0, 0)) is not None:
                    self.say(hands, event)
                self.say(hands, hands.credit())
            self.turn(*self._beats(), after=0.5)
            for hands in living:
                if not hands.is_linked:
                    self._reconnect(hands)
        self.turn(*self._beats(), after=1.0)
        left = {id: self.dispatcher.story(id) for id in self.wanted}
        assert not left, f"never answered: {left}"
        mesh = self.dispatcher.mesh
        assert not mesh.tasks and not mesh.task_bytes, "nobody waits, and something is kept"
        assert not mesh.leases and not mesh.exiting, "nobody works, and leases are kept"
        self.turn(*self._beats())
        kept = [gateway.kept for gateway in mesh.directory.gateways()]
        assert not any(len(one) or one.bytes for one in kept) and not mesh.held, "answers are kept that were heard"


EASY = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
FULL = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=EASY,
    phases=[Phase.reuse, Phase.generate, Phase.shrink],
)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_random_lives_keep_every_promise():
    run_state_machine_as_test(DispatcherMachine, settings=FULL)


# ── the machine bites ─────────────────────────────────────────────────────────────────────────────────────────────


def leave_forgets_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    leave = StageQueue.leave

    def forgetful(queue: StageQueue, task) -> None:
        leave(queue, task)
        queue.bytes += task.size

    monkeypatch.setattr(StageQueue, "leave", forgetful)


def endings_return_what_was_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(lease: Lease) -> list:
        return [(row, task) for row, task in enumerate(lease.tasks) if task.state is not TaskState.QUEUED]

    monkeypatch.setattr(endings, "_open_rows", careless)


def what_may_run_once_runs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "_may_have_run", lambda lease: False)


def suspects_go_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suspect goes to whoever comes first, with or without company."""
    monkeypatch.setattr(
        Crew, "longest_idle", lambda crew: next(iter([*crew.idle.values(), *crew.ahead.values()]), None)
    )


def what_was_answered_is_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeptReplies, "answered", lambda kept: frozenset())


def answers_die_with_their_session(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(kept: KeptReplies) -> None:
        kept.said.clear()
        kept.unsaid, kept.bytes = [], 0

    monkeypatch.setattr(KeptReplies, "lose_session", forgetful)


def acknowledged_answers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    acknowledge = KeptReplies.acknowledge
    monkeypatch.setattr(KeptReplies, "acknowledge", lambda kept, handled: acknowledge(kept, handled - 1))


def what_came_back_is_leased_for_a_gateway_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mesh, "not_held", lambda mesh, stage, tasks: tasks)


def first_batches_are_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt = orders.interrupt_unwanted

    def impatient(mesh: Mesh, worker: Worker) -> None:
        worker.may_interrupt = True
        interrupt(mesh, worker)

    monkeypatch.setattr(intake, "interrupt_unwanted", impatient)


def what_somebody_wants_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_wanted(lease: Lease) -> bool:
        return all(task.state is not TaskState.DONE for task in lease.tasks)

    monkeypatch.setattr(Lease, "is_wanted", is_wanted)


def workers_are_killed_without_a_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        StageRecord, "kill_at", lambda stage, lease, limits: lease.clock + stage.plan.timeout_seconds / 2
    )


MUTATIONS = [
    first_batches_are_interrupted,
    what_somebody_wants_is_interrupted,
    workers_are_killed_without_a_grace,
    what_was_answered_is_run_again,
    answers_die_with_their_session,
    acknowledged_answers_are_kept,
    what_came_back_is_leased_for_a_gateway_that_is_full,
    leave_forgets_bytes,
    credit_is_granted_twice,
    endings_return_what_was_answered,
    what_may_run_once_runs_again,
    suspects_go_ahead,
]


@pytest.mark.parametrize("plant", MUTATIONS)
def test_planted_mutations_are_caught(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch):
    plant(monkeypatch)
    quick = settings(
        max_examples=100,
        stateful_step_count=STEPS,
        deadline=None,
        derandomize=True,
        database=None,
        report_multiple_bugs=False,
        phases=[Phase.generate],
        suppress_health_check=EASY,
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(DispatcherMachine, settings=quick)

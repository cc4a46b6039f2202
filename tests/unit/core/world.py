"""A dispatcher, a clock, and peers with names, so that a test reads as events in, effects out.

    world = World(stage("embed", max_batch_size=2))
    g, w = world.gateway(), world.worker("w1", credit=1)
    assert world.turn(g.submits(1, 2, 3)) == ["w1 ← TASKS 1: 1 2"]

A peer's methods make events and change nothing; only `World.turn` (and what is built on it) calls the dispatcher, and
after every turn the invariants are checked. Heartbeats are not shown, or they would be on every other line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import TypeVar

from zmesh.config import Limits, Plan, RoutePlan, StagePlan
from zmesh.core import events, invariants
from zmesh.core.dispatcher import Dispatcher
from zmesh.core.effects import DispatcherEffect, Forget, Report, Send
from zmesh.core.events import Address, DispatcherEvent
from zmesh.core.peers import Gateway as GatewayRecord
from zmesh.core.replies import KeptReplies
from zmesh.core.stages import StageRecord
from zmesh.core.tasks import Task
from zmesh.core.workers import Worker
from zmesh.messages import (
    PROTOCOL_VERSION,
    Ack,
    Cancel,
    Chunk,
    Columns,
    Context,
    Credit,
    Drain,
    Exited,
    Goodbye,
    Heartbeat,
    Hello,
    Kill,
    LeaseId,
    Message,
    PeerId,
    Phase,
    Refuse,
    Reply,
    Results,
    Role,
    SessionId,
    Stats,
    Status,
    Submit,
    TaskId,
    Tasks,
    Welcome,
    WorkerState,
)

SEGFAULT, ABORTED, KILLED, TERMINATED = -11, -6, -9, -15
GO = "/go"
P = TypeVar("P", bound="Peer")


def stage(name: str = "embed", **settings: object) -> StagePlan:
    """A stage that batches up to 4 and never waits for company."""
    return StagePlan(**{"name": name, "worker": "Embed", "max_batch_size": 4, "batching": "greedy", **settings})


class World:
    """`routes` maps paths to names of stages; without it /go leads through all stages in order. `parent` names the
    agent that the broker is a child of."""

    def __init__(
        self,
        *stages: StagePlan,
        routes: Mapping[str, Sequence[str]] | None = None,
        host: str = "",
        parent: str = "",
        **limits: object,
    ) -> None:
        stages = stages or (stage(),)
        routes = routes or {GO: [one.name for one in stages]}
        planned = tuple(RoutePlan(path=path, stages=tuple(names)) for path, names in routes.items())
        self.plan = Plan(stages=stages, routes=planned)
        self.limits = Limits(**limits)
        self.now = 100.0
        self.dispatcher = Dispatcher(self.plan, self.limits, Random(7), self.now, host=host, agent=_process(parent))
        self.mesh = self.dispatcher.mesh
        self.peers: list[Peer] = []  # who has been in a session
        self.everybody: list[Peer] = []
        self.names: dict[Address, str] = {}
        self.effects: list[DispatcherEffect] = []  # of the last turn, as they came

    # Time and turns.

    def turn(self, *happened: DispatcherEvent, after: float = 0.0) -> list[str]:
        """Let this happen `after` seconds from now, and say what must be done."""
        self.now += after
        self.effects = self.dispatcher.handle(*happened, now=self.now)
        invariants.check(self.dispatcher)
        for effect in self.effects:
            if isinstance(effect, Send) and isinstance(effect.message, Welcome):
                self._peer_at(effect.address).session = effect.session
        return [self.show(effect) for effect in self.effects if not self._is_heartbeat(effect)]

    def wait(self, seconds: float, *, silent: Iterable[Peer] = ()) -> list[str]:
        """Time passes; everybody but the `silent` gives a sign of life every heartbeat."""
        shown = []
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + self.limits.heartbeat_seconds)
            shown += self.turn(*[peer.beats() for peer in self.peers if peer not in silent and peer.is_known()])
        return shown

    def messages(self, kind: type[Message]) -> list[Message]:
        """Of the last turn."""
        sent = [effect.message for effect in self.effects if isinstance(effect, Send)]
        return [message for message in sent if isinstance(message, kind)]

    # Peers.

    def gateway(self, name: str = "g") -> Gateway:
        """A gateway in a session."""
        return self._join(Gateway(self, name, Role.GATEWAY, 0))

    def agent(self, name: str = "agent", role: Role = Role.AGENT) -> Agent:
        return self._join(Agent(self, name, role, 0))

    def worker(self, name: str = "w1", of: str = "", *, credit: int = 0) -> WorkerPeer:
        """A worker in a session, ready if it gives credit; `of` names its stage, the first if it is not given."""
        index = [one.name for one in self.plan.stages].index(of) if of else 0
        worker = self._join(WorkerPeer(self, name, Role.WORKER, index + 1))
        if credit:
            assert self.turn(worker.credits(credit)) == []
        return worker

    def stranger(self, name: str = "stranger", role: Role = Role.GATEWAY, socket: int = 0) -> Peer:
        """Somebody who has not said HELLO."""
        kind = {Role.GATEWAY: Gateway, Role.WORKER: WorkerPeer}.get(role, Agent)
        peer = kind(self, name, role, socket)
        self.names[peer.address] = name
        return peer

    def _join(self, peer: P) -> P:
        self.names[peer.address] = peer.name
        assert self.turn(peer.greets()) == [f"{peer.name} ← WELCOME"]
        self.peers.append(peer)
        return peer

    def _peer_at(self, address: Address) -> Peer:
        return next(peer for peer in self.everybody if peer.address == address)

    # What is inside, for reading.

    def stage(self, name: str = "") -> StageRecord:
        return next(one for one in self.mesh.stages if not name or one.plan.name == name)

    def task(self, id: int) -> Task:
        return self.mesh.tasks[TaskId(id)]

    def record(self, peer: Peer) -> Worker:
        """What the broker knows of a worker."""
        found = self.mesh.directory.sessions[peer.session]
        assert isinstance(found, Worker)
        return found

    def gateway_record(self, peer: Peer) -> GatewayRecord:
        """What the broker knows of a gateway."""
        found = self.mesh.directory.sessions[peer.session]
        assert isinstance(found, GatewayRecord)
        return found

    def kept(self, peer: Peer) -> KeptReplies:
        """What the broker keeps for a gateway."""
        return self.gateway_record(peer).kept

    # Words for effects.

    @staticmethod
    def _is_heartbeat(effect: DispatcherEffect) -> bool:
        return isinstance(effect, Send) and isinstance(effect.message, Heartbeat)

    def show(self, effect: DispatcherEffect) -> str:
        match effect:
            case Send(address, _, message):
                return f"{self.names[address]} ← {self._words(message)}"
            case Forget(address):
                return f"forget {self.names[address]}"
            case Report(level, text):
                return f"{level}: {text}"

    def _words(self, message: Message) -> str:
        match message:
            case Tasks(lease, columns, acks):
                return f"TASKS {lease}: {_list(columns.ids)}" + (f", ACK {_list(acks)}" if acks else "")
            case Reply():
                chunks = message.chunks or [0] * len(message.ids)
                rows = zip(message.ids, message.statuses, message.payloads, chunks, strict=True)
                return "REPLY " + ", ".join(f"{id} {_outcome(*outcome)}" for id, *outcome in rows)
            case Chunk(_, lease, ids, seqs, payloads):
                rows = zip(ids, seqs, payloads, strict=True)
                return f"CHUNK {lease}: " + ", ".join(f"{id}#{seq} {bytes(text).decode()!r}" for id, seq, text in rows)
            case Ack(leases, peers):
                names = [peer.name for peer in self.everybody if peer.peer in peers]
                return f"ACK {_list(leases)}" if leases else f"ACK the end of {_list(names)}"
            case Cancel(ids, reason):
                return f"CANCEL {_list(ids)}: {reason}"
            case Kill(peer, lease, reason, interrupt):
                (name,) = [one.name for one in self.everybody if one.peer == peer]
                return f"{'INTERRUPT' if interrupt else 'KILL'} {name} while it runs {lease}: {reason}"
            case Refuse(code, text):
                return f"REFUSE {code.name}: {text}"
            case _:
                return type(message).__name__.upper()


def _process(name: str) -> PeerId:
    return PeerId(name.encode().ljust(16, b"."))


def _list(items: Iterable[object]) -> str:
    return " ".join(map(str, items))


def _outcome(status: int, payload: bytes, chunks: int) -> str:
    word = "ok" if status == Status.OK else Status(status).name
    return word + (f" {bytes(payload).decode()!r}" if payload else "") + (f" after {chunks} events" if chunks else "")


class Peer:
    """Somebody who speaks to the broker. Every method makes an event, from this address and in this session."""

    def __init__(self, world: World, name: str, role: Role, socket: int) -> None:
        self.world, self.name, self.role, self.socket = world, name, role, socket
        self.peer = _process(name)
        self.address: Address = (socket, f"{name}/1".encode())
        self.session = SessionId(0)
        self.connection = 1
        world.everybody.append(self)

    def is_known(self) -> bool:
        return self.session in self.world.mesh.directory.sessions

    def reconnects(self) -> None:
        """A new socket: from now on it speaks from another address, in no session."""
        self.world.names[self.address] = f"the old {self.name}"
        self.connection += 1
        self.address = (self.socket, f"{self.name}/{self.connection}".encode())
        self.session = SessionId(0)
        self.world.names[self.address] = self.name

    def greets(self, **changes: object) -> events.PeerGreeted:
        said = {
            "versions": [PROTOCOL_VERSION],
            "role": self.role,
            "peer": self.peer,
            "connection": self.connection,
            "host": "here",
            "pid": 17,
            "fingerprint": self.world.plan.fingerprint,
            "shape": self.world.plan.shape,
            "stage": self.world.plan.stages[self.socket - 1].name if self.role is Role.WORKER else "",
            **changes,
        }
        return events.PeerGreeted(self.address, Hello(**said))

    def beats(self, handled: int = 0) -> events.PeerBeat:
        return events.PeerBeat(self.address, self.session, Heartbeat(self.world.mesh.directory.epoch, handled, []))

    def leaves(self, *leases: int) -> events.PeerLeft:
        return events.PeerLeft(self.address, self.session, Goodbye([LeaseId(lease) for lease in leases]))

    def is_unreachable(self) -> events.PeerUnreachable:
        return events.PeerUnreachable(self.address)

    def asks_to_drain(self, host: str = "") -> events.DrainAsked:
        return events.DrainAsked(self.address, self.session, Drain(0, "enough", host))

    def asks_for_stats(self) -> events.StatsAsked:
        return events.StatsAsked(self.address, self.session, Stats())

    def sends_rubbish(self) -> events.MessageBroken:
        return events.MessageBroken(self.address, "not a message")


class Gateway(Peer):
    def submits(
        self,
        *ids: int,
        route: str = GO,
        ms: int = 60_000,
        payload: bytes = b"x",
        again: bool = False,
        all: bool = False,
        handled: int = 0,
        contexts: list[Context | None] | None = None,
    ) -> events.TasksSubmitted:
        count = len(ids)
        columns = Columns(
            [TaskId(id) for id in ids], [1] * count, [ms] * count, [0] * count, [0] * count, [payload] * count, contexts
        )
        return events.TasksSubmitted(self.address, self.session, Submit(route, columns, again, all, handled))

    def cancels(self, *ids: int, reason: str = "client gone", handled: int = 0) -> events.TasksCancelled:
        return events.TasksCancelled(self.address, self.session, Cancel([TaskId(id) for id in ids], reason, handled))


class WorkerPeer(Peer):
    def credits(self, total: int, state: WorkerState = WorkerState.READY) -> events.CreditGranted:
        return events.CreditGranted(self.address, self.session, Credit(total, state))

    def finishes(
        self,
        lease: int,
        *rows: int,
        statuses: Mapping[int, Status] | None = None,
        payload: bytes = b"",
        session: SessionId | None = None,
        epoch: int = 0,
        chunks: list[int] | None = None,
    ) -> events.BatchFinished:
        """RESULTS for these rows, all of them if none is named, OK unless `statuses` says otherwise."""
        mesh = self.world.mesh
        given = mesh.leases.get(LeaseId(lease)) or mesh.late_leases.get(LeaseId(lease))
        named = list(rows or range(len(given.tasks) if given else 1))
        said = [int((statuses or {}).get(row, Status.OK)) for row in named]
        results = Results(
            epoch or mesh.directory.epoch, LeaseId(lease), named, said, [0] * len(named), [payload] * len(named), 5,
            None, chunks,
        )  # fmt: skip
        return events.BatchFinished(self.address, session or self.session, results)

    def streams(
        self,
        lease: int,
        *ids: int,
        seq: int = 0,
        text: str = "x",
        session: SessionId | None = None,
        epoch: int = 0,
    ) -> events.ChunkArrived:
        """An event for each of these tasks."""
        count = len(ids)
        chunk = Chunk(
            epoch or self.world.mesh.directory.epoch,
            LeaseId(lease),
            [TaskId(id) for id in ids],
            [seq] * count,
            [text.encode()] * count,
        )
        return events.ChunkArrived(self.address, session or self.session, chunk)

    def finishes_of_old(
        self, *ids: int, status: Status = Status.OK, payload: bytes = b"", chunks: list[int] | None = None
    ) -> events.BatchFinished:
        """RESULTS of a lease that another epoch gave, with the ids of its tasks."""
        count = len(ids)
        results = Results(
            1, LeaseId(1), list(range(count)), [int(status)] * count, [0] * count, [payload] * count, 5,
            [TaskId(id) for id in ids], chunks,
        )  # fmt: skip
        return events.BatchFinished(self.address, self.session, results)

    def cannot_be_sent(self, lease: int) -> events.SendFailed:
        """What the broker is told when TASKS of this lease never left."""
        columns = Columns([], [], [], [], [], [])
        return events.SendFailed(self.address, Tasks(LeaseId(lease), columns, []))


class Agent(Peer):
    def reports(
        self,
        worker: WorkerPeer,
        code: int,
        *,
        lease: int = 0,
        phase: Phase | None = None,
        row: int = 0,
        oom: bool = False,
        reason: str = "",
        failing: bool = False,
    ) -> events.WorkerExited:
        """EXITED of this worker. Without a phase it was in `forward`, or idle if it had no lease."""
        name = self.world.plan.stages[worker.socket - 1].name
        phase = phase if phase is not None else Phase.FORWARD if lease else Phase.IDLE
        exited = Exited(worker.peer, name, 0, code, LeaseId(lease), phase, row, oom, reason, failing)
        return events.WorkerExited(self.address, self.session, exited)
